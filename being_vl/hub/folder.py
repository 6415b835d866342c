"""folder → what it is, whether it is whole, and what of it goes to a repository.

The layouts are those of checkpoints (`being_vl.hub.checkpoint`) and of code shards (`being_vl.codes.shards`). Only
headers are read: a checkpoint of any size is checked in a moment. What is pushed is what the kind of folder is made
of: checkpoints of a trainer, its optimizer states and settings with paths of this machine are not uploaded.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from ..bpe.image_bpe import ImageBPE
from ..codes.shards import CodeShards
from ..files import RESULTS_FOLDER, check_model_folder, read_json, read_weight_map, reading
from ..models.families import MODEL_TYPES
from .classes import CLASSES
from .commit import CARD, PATTERNS, folder_files
from .part import VQ_FOLDER, variant_of, weight_names

CODES_PATTERNS = (
    "codes-*.parquet", "codes-*.tar", "manifest.json", "skipped.jsonl", CARD, "card.yaml", "LICENSE*",
)  # fmt: skip
ENTRIES_FOLDER = ".eval_results"
Kind = Literal["checkpoint", "vq_model", "image_bpe", "parts", "codes"]
_VQ_TYPES = CLASSES.keys() - MODEL_TYPES
_MAX_TOKENIZER_VALUES = 5 << 19  # 262,144 ids and 514,906 merges (Gemma 3), image tokens beside


def folder_kind(folder: Path) -> Kind:
    """What a folder holds: a checkpoint, a VQ model, a vocabulary, other parts of a checkpoint, codes."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    for part in (folder, folder / VQ_FOLDER):
        if part.is_dir():
            check_model_folder(part)
    config = read_json(folder / "config.json", optional=True)
    if config is not None:
        model_type = config.get("model_type")
        if model_type in MODEL_TYPES:
            return "checkpoint"
        if model_type in _VQ_TYPES:
            return "vq_model"
        raise ValueError(
            f"{folder / 'config.json'}: model_type is {model_type!r}, expected one of "
            f"{sorted([*MODEL_TYPES, *_VQ_TYPES])}"
        )
    if (folder / "tokenizer.json").exists() or (folder / "processor_config.json").exists():
        return "parts"
    if (folder / "image_bpe.json").exists():
        return "image_bpe"
    if any(any(folder.glob(pattern)) for pattern in CODES_PATTERNS[:2]):
        return "codes"
    if (folder / "preprocessor_config.json").exists():
        return "parts"
    raise ValueError(
        f"{folder} holds no checkpoint (config.json), vocabulary (image_bpe.json) or codes (codes-*.parquet, codes-*.tar)"
    )


@dataclass(frozen=True)
class Weights:
    """What the headers of a model's safetensors files say."""

    num_parameters: int
    dtypes: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]


def read_weights(folder: Path) -> Weights:
    """Names and sizes of a model's tensors, from the headers of its files; each variant is checked.

    Returns:
        what loads by default; of a folder with variants alone, the first of them.
    """
    variants = {variant_of(path.name) for path in folder.glob("model*.safetensors*")}
    first, *_ = (_read_variant(folder, variant) for variant in sorted(variants) or [""])
    return first


def _read_variant(folder: Path, variant: str) -> Weights:
    single, index = weight_names(variant)
    weight_map: dict[str, str] = {}
    names = [single]
    # Of a single file and an index transformers takes the file: an older save with more files left the index.
    if not (folder / single).exists() and (folder / index).exists():
        weight_map = read_weight_map(folder / index)
        names = sorted(set(weight_map.values()))
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes = Counter[str]()
    for name in names:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder}: {name} is missing")
        try:
            with safe_open(path, "np") as file:
                for key in file.keys():
                    part = file.get_slice(key)
                    shapes[key] = tuple(part.get_shape())
                    dtypes[part.get_dtype()] += 1
        except SafetensorError as error:
            raise ValueError(f"{path}: damaged or cut: {error}") from None
    missing = [key for key in weight_map if key not in shapes]
    if missing:
        raise ValueError(f"{folder / index}: {missing[0]!r} is in none of the files")
    commonest = tuple(kind for kind, _ in dtypes.most_common())
    return Weights(sum(map(math.prod, shapes.values())), commonest, shapes)


def quantizer_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint's quantizer."""
    with reading(folder / VQ_FOLDER / "config.json"):
        return AutoConfig.from_pretrained(folder / VQ_FOLDER)


def check_whole(folder: Path) -> Kind:
    """What a folder holds; fails on what could not be loaded from a repository as it can be here.

    A checkpoint must have all its parts, and these must belong together: sizes of the vocabulary in
    configuration, weights, tokenizer and image BPE, and the codebook of the VQ model. A VQ model, a
    vocabulary and code shards are checked by themselves.
    """
    kind = folder_kind(folder)
    match kind:
        case "checkpoint":
            with reading(folder):
                _check_checkpoint(folder)
        case "vq_model":
            read_weights(folder)
        case "image_bpe":
            ImageBPE.from_pretrained(folder)
        case "codes":
            CodeShards(folder)
        case "parts":
            raise ValueError(
                f"{folder} has parts of a checkpoint but no config.json: push the whole checkpoint, or the "
                "part with its own push_to_hub"
            )
    return kind


def _check_checkpoint(folder: Path) -> None:
    needed = (
        "tokenizer.json", "tokenizer_config.json", "image_bpe.json", "processor_config.json",
        f"{VQ_FOLDER}/config.json",
    )  # fmt: skip
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is no whole checkpoint: {', '.join(missing)} missing")
    config = AutoConfig.from_pretrained(folder)
    layout = config.layout
    codes = quantizer_config(folder).num_embeddings
    bpe = ImageBPE.from_pretrained(folder)
    tokenizer = read_json(folder / "tokenizer.json", max_values=_MAX_TOKENIZER_VALUES)
    ids = [
        *tokenizer.get("model", {}).get("vocab", {}).values(),
        *(token["id"] for token in tokenizer.get("added_tokens", [])),
    ]
    weights = read_weights(folder)
    read_weights(folder / VQ_FOLDER)
    rows = weights.shapes.get("model.embed_tokens.weight", (0,))[0]
    for what, expected, found in (
        ("image_bpe.json: the number of codes", layout.codebook_size, bpe.codebook_size),
        ("image_bpe.json: the number of merges", layout.num_merges, bpe.num_merges),
        ("tokenizer.json: the number of ids", layout.size, max(ids, default=-1) + 1),
        ("model.embed_tokens.weight: the number of rows", config.vocab_size, rows),
        (f"{VQ_FOLDER}/config.json: num_embeddings", bpe.quantizer_codebook_size, codes),
    ):
        if found != expected:
            raise ValueError(f"{folder}: {what} is {found}, but config.json says {expected}")


@dataclass(frozen=True)
class Plan:
    """What a push would do."""

    files: dict[str, Path]  # path in the repository → file
    left_out: list[str]  # paths below the folder that stay
    repo_type: str  # "model" or "dataset"
    outdated_card: list[str]  # results newer than the card that goes with them

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


@contextmanager
def planned(folder: Path, include: Sequence[str] = ()) -> Iterator[Plan]:
    """Check a folder, and list what of it goes; a card that is missing is made, outside of the folder."""
    kind = check_whole(folder)
    patterns = CODES_PATTERNS if kind == "codes" else PATTERNS
    files = folder_files(folder, (*patterns, *include))
    for pattern in include:
        if not folder_files(folder, [pattern]):
            raise ValueError(f"--include {pattern}: no such file in {folder}")
    everything = (path for path in folder.rglob("*") if path.is_file())
    left_out = sorted({path.relative_to(folder).as_posix() for path in everything} - files.keys())
    with tempfile.TemporaryDirectory() as made:
        outdated = []
        if CARD in files:
            written = files[CARD].stat().st_mtime
            results = (name for name in files if name.startswith(f"{RESULTS_FOLDER}/"))
            outdated = [name for name in results if files[name].stat().st_mtime > written]
        else:  # written beside links to the folder's own files
            from .card import write_card

            view = Path(made, folder.resolve().name)
            view.mkdir()
            for path in folder.iterdir():
                if path.name != ENTRIES_FOLDER:
                    (view / path.name).symlink_to(path.resolve())
            files |= {name: view / name for name in write_card(view)}
        repo_type = "dataset" if kind == "codes" else "model"
        yield Plan(dict(sorted(files.items())), left_out, repo_type, outdated)
