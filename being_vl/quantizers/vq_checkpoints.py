"""published checkpoints → `BeingVLVQModel`.

Source: the layouts of transformers' Chameleon (`model.vqmodel.*` among a language model's shards, no
decoder), of taming-transformers and the original Chameleon (`vqgan.ckpt`, with a discriminator under
`loss.*`), and of Being-VL (Chameleon's keys plus `decoder.*`). It differs from their loaders in that only
the VQ-GAN's tensors are read, nothing is unpickled but tensors, sizes come from the weights themselves,
and a key that is missing, left over or of another shape is an error.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from .modeling_being_vl_vq import BeingVLVQConfig, BeingVLVQModel

_ANCHOR = "encoder.conv_in.weight"  # the key that finds a VQ-GAN, and its prefix, in any checkpoint
_WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "vqgan.ckpt",
    "pytorch_model.bin",
)
_DEFAULT_RESOLUTION = 512
_NAMED_KEYS = 8


class _Ignored:
    """Stands in for what PyTorch Lightning leaves in its checkpoints beside the tensors."""


# taming's own files hold these classes as dictionary keys; they are never run.
_LIGHTNING_CLASSES = [
    (_Ignored, f"pytorch_lightning.callbacks.{module}.{name}")
    for module, name in (
        ("model_checkpoint", "ModelCheckpoint"),
        ("lr_monitor", "LearningRateMonitor"),
        ("early_stopping", "EarlyStopping"),
    )
]

Reader = Callable[[Iterable[str]], dict[str, torch.Tensor]]


def load_vq_checkpoint(
    source: str | os.PathLike,
    *,
    config: BeingVLVQConfig | None = None,
    resolution: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> BeingVLVQModel:
    """Load a VQ-GAN from any of the published layouts.

    Args:
        source: a .safetensors or .ckpt/.pt/.pth/.bin file, a folder with such files (sharded or not), or
            the id of a repository on the Hub, of which only the files with VQ-GAN weights are fetched.
        config: its sizes; by default they are read off the weights.
        resolution: side in pixels that it was trained on, which weights do not tell; by default that of
            a config.json beside them, else 512. Unused with `config`.
        dtype: of the weights, but for the codebook, which stays float32.

    Returns:
        The model in eval mode; without `decoder.*` weights it can only encode.

    Raises:
        ValueError: no or several VQ-GANs in there, a file that holds more than tensors or is damaged, or
            keys that are missing, left over or of another shape; the message names them.
        FileNotFoundError: no weights at `source`.
    """
    name = os.fspath(source)
    keys, read = _open(name)
    prefix = _find_prefix(keys, name)
    wanted = [key for key in keys if key.startswith(prefix) and _is_model_key(key[len(prefix) :])]
    weights = {key[len(prefix) :]: tensor for key, tensor in read(wanted).items()}
    if config is None:
        resolution = resolution or _stored_resolution(name) or _DEFAULT_RESOLUTION
        config = infer_config(weights, resolution=resolution, name=name)
    elif config.has_decoder and not _has_decoder(weights):
        config = BeingVLVQConfig.from_dict({**config.to_dict(), "has_decoder": False})
    with torch.device("meta"):
        model = BeingVLVQModel(config)
    _check_keys(weights, model.state_dict(), name)
    kept = {"quantize.embedding.weight": torch.float32}
    weights = {key: tensor.to(kept.get(key, dtype)).contiguous() for key, tensor in weights.items()}
    model.load_state_dict(weights, assign=True)
    model.config.dtype = dtype
    return model.requires_grad_(True).eval()


def infer_config(
    weights: dict[str, torch.Tensor], *, resolution: int, name: str = "weights"
) -> BeingVLVQConfig:
    """Sizes of a VQ-GAN from its weights (keys without prefix).

    Groups of the norms cannot be read off; they are 32, as in every published model.

    Raises:
        ValueError: a weight that tells a size is missing, or sizes contradict each other.
    """

    def shape(key: str) -> torch.Size:
        if key not in weights:
            raise ValueError(f"{name}: {key} is missing, which tells the sizes of the model")
        return weights[key].shape

    def count(pattern: str) -> int:
        number = 0
        while pattern.format(number) in weights:
            number += 1
        return number

    base_channels, in_channels = shape(_ANCHOR)[:2]
    levels = count("encoder.down.{}.block.0.conv1.weight")
    channels = [shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)]
    if not channels or any(number % base_channels for number in channels):
        raise ValueError(
            f"{name}: channels of the levels are {channels}, which must be multiples of {base_channels} "
            f"({_ANCHOR})"
        )
    num_embeddings, embed_dim = shape("quantize.embedding.weight")
    has_decoder = _has_decoder(weights)
    return BeingVLVQConfig(
        embed_dim=embed_dim,
        num_embeddings=num_embeddings,
        latent_channels=shape("encoder.conv_out.weight")[0],
        resolution=resolution,
        in_channels=in_channels,
        out_channels=shape("decoder.conv_out.weight")[0] if has_decoder else 3,
        base_channels=base_channels,
        channel_multiplier=[number // base_channels for number in channels],
        num_res_blocks=count("encoder.down.0.block.{}.conv1.weight"),
        attn_resolutions=[
            resolution // 2**i
            for i in range(levels)
            if f"encoder.down.{i}.attn.0.q.weight" in weights
        ]
        or None,
        attn_type="vanilla" if "encoder.mid.attn_1.q.weight" in weights else None,
        has_decoder=has_decoder,
    )


def _stored_resolution(source: str) -> int | None:
    folder = str(Path(source).parent) if os.path.isfile(source) else source
    path = _fetch(folder, "config.json")
    if path is None:
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored.get("vq_config", stored).get("resolution")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a configuration: {error}") from error


def _has_decoder(weights: dict[str, torch.Tensor]) -> bool:
    return any(key.startswith("decoder.") for key in weights)


def _is_model_key(key: str) -> bool:
    return not key.startswith("loss.")  # taming's discriminator and LPIPS


def _find_prefix(keys: Iterable[str], name: str) -> str:
    prefixes = [
        key.removesuffix(_ANCHOR) for key in keys if key == _ANCHOR or key.endswith(f".{_ANCHOR}")
    ]
    if len(prefixes) != 1:
        found = f"{len(prefixes)}: {', '.join(sorted(prefixes))}" if prefixes else "none"
        raise ValueError(
            f"{name}: must hold one VQ-GAN, whose keys end like {_ANCHOR}, found {found}"
        )
    return prefixes[0]


def _check_keys(
    weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], name: str
) -> None:
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": [
            f"{key} {tuple(weights[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in sorted(expected.items())
            if key in weights and weights[key].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        raise ValueError(
            f"{name}: its keys do not fit the model: "
            + "; ".join(
                f"{len(keys)} {what}: {_some(keys)}" for what, keys in problems.items() if keys
            )
        )


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED_KEYS
    return ", ".join(names[:_NAMED_KEYS]) + (f" and {more} more" if more > 0 else "")


def _open(source: str) -> tuple[list[str], Reader]:
    """The keys of a checkpoint, and what reads some of its tensors."""
    if os.path.isfile(source):
        path = Path(source)
    else:
        path = next(filter(None, (_fetch(source, file) for file in _WEIGHT_FILES)), None)
        if path is None:
            raise FileNotFoundError(
                f"{source}: no weights there, looked for {', '.join(_WEIGHT_FILES)}"
            )
    if path.name.endswith(".index.json"):
        return _open_shards(source, path)
    if path.suffix == ".safetensors":
        return _safetensors_keys(path), lambda keys: _read_safetensors(path, keys)
    tensors = _read_torch(path)
    return list(tensors), lambda keys: {key: tensors[key] for key in keys}


def _fetch(source: str, file: str) -> Path | None:
    """A file of a folder or of a repository on the Hub, or None where there is none of that name."""
    if os.path.isdir(source):
        path = Path(source, file)
        return path if path.is_file() else None
    try:
        found = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise FileNotFoundError(
            f"{source}: neither a file, nor a folder, nor a reachable repository on the Hub"
        ) from error
    return Path(found) if found else None


def _open_shards(source: str, index: Path) -> tuple[list[str], Reader]:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: not an index of shards: {error}") from error

    def read(keys: Iterable[str]) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        wanted = set(keys)
        folder = str(index.parent) if os.path.isfile(source) else source
        for shard in sorted({shard_of[key] for key in wanted}):
            path = _fetch(folder, shard)
            if path is None:
                raise ValueError(f"{index}: names {shard}, which is not beside it")
            tensors |= _read_safetensors(path, [k for k in wanted if shard_of[k] == shard])
        return tensors

    return list(shard_of), read


def _safetensors_keys(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error


def _read_safetensors(path: Path, keys: Iterable[str]) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        with torch.serialization.safe_globals(_LIGHTNING_CLASSES):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # damaged files make the unpickler raise nearly any type
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {foreign[1]}" if foreign else "it is damaged or of another format"
        raise ValueError(
            f"{path}: not a checkpoint of tensors alone, and only those are read: {reason}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a dictionary of tensors, got {type(content).__name__}")
    return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}


__all__ = ["infer_config", "load_vq_checkpoint"]
