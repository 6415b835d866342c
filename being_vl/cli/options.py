"""Options that several commands share: one name, one type, one meaning.

A command says `add(parser, "output", help="folder of the shards", required=True)`; what it does not say is
taken from here. tests/cli/test_options.py checks that no command declares one of these names otherwise.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_type_hints

from jsonargparse import Namespace
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

if TYPE_CHECKING:
    from ..data.quantizing import Source

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
ImageInit = Literal["normal", "mean_text", "codebook", "constituents"]

SHARED: dict[str, dict[str, Any]] = {
    # parts
    "checkpoint": {"type": str, "metavar": "PATH", "help": "checkpoint: folder or Hub id"},
    "quantizer": {"type": str, "metavar": "PATH", "help": "quantizer: folder or Hub id"},
    "bpe": {"type": str, "metavar": "PATH", "help": "folder with image_bpe.json, or that file"},
    "base": {"type": str, "metavar": "PATH", "help": "text model: folder or Hub id"},
    "image-processor": {
        "type": str,
        "metavar": "PATH",
        "help": "folder or Hub id; default: that of --quantizer, else its resolution",
    },
    # data
    "codes": {
        "type": str,
        "metavar": "PATH",
        "help": "codes: folder of shards, .npy (N, h, w), .pt, .parquet or .tar",
    },
    "verify": {
        "type": bool,
        "nargs": "?",
        "const": True,
        "default": False,
        "help": "compare the checksums of the shards of --codes before use, which reads all of them",
    },
    "images": {"type": str, "metavar": "FOLDER", "help": "folder of images, searched recursively"},
    "image": {"type": str, "metavar": "FILE", "help": "an image"},
    "data": {
        "type": str,
        "metavar": "PATH",
        "help": "data set: saved to disk, readable by load_dataset, or Hub id",
    },
    "data-config": {"type": str, "help": "configuration of --data; default: its only one"},
    "split": {"type": str, "default": "train", "help": "split of --data"},
    "image-column": {"type": str, "help": "default: the only column of images"},
    "id-column": {"type": str, "help": "column of image ids; default: the number of the row"},
    "limit": {"type": PositiveInt, "help": "use only the first so many; default: all"},
    # what is made
    "output": {"type": str, "metavar": "FOLDER", "help": "folder to write"},
    "resume": {
        "type": bool,
        "nargs": "?",
        "const": True,
        "default": True,
        "help": "continue an interrupted run",
    },
    "shard-size": {"type": PositiveInt, "help": "rows in a shard"},
    # how
    "seed": {"type": NonNegativeInt, "default": 0, "help": "random seed"},
    "device": {"type": str, "help": "cpu, cuda, cuda:1, …; default: a GPU if there is one"},
    "dtype": {"type": Dtype, "default": "auto", "help": "of the weights"},
    "batch-size": {"type": PositiveInt, "help": "images in a batch"},
    "workers": {"type": NonNegativeInt, "help": "processes that prepare data"},
    "num-threads": {"type": PositiveInt, "help": "default: all CPUs"},
    "max-new-tokens": {"type": PositiveInt, "help": "most tokens of an answer"},
    "temperature": {
        "type": NonNegativeFloat,
        "default": 0.0,
        "help": "0: always the likeliest token",
    },
    "top-p": {"type": ClosedUnitInterval, "default": 1.0, "help": "probability mass sampled from"},
    "fps": {"type": PositiveFloat, "help": "frames to keep a second; default: all"},
    "num-frames": {
        "type": PositiveInt,
        "help": "frames to keep of each video, at most; default: all",
    },
    "rfid-weights": {
        "type": str,
        "metavar": "FILE",
        "help": "measure rFID with torch-fidelity's Inception weights",
    },
    "image-init": {
        "type": ImageInit,
        "default": "mean_text",
        "help": "how the rows of new tokens start; only mean_text leaves the probabilities of text alone",
    },
    "image-init-std": {
        "type": NonNegativeFloat,
        "help": "standard deviation of those rows; default: that of the text rows",
    },
}


def add(container: Any, *names: str, **changes: Any) -> None:
    """Add shared options to a parser or a group; `changes` replace what `SHARED` says of them."""
    for name in names:
        container.add_argument(f"--{name}", **{**SHARED[name], **changes})


def option(container: Any, name: str, type: Any, help: str, **more: Any) -> None:
    """Add an option of this command alone."""
    container.add_argument(f"--{name}", type=type, help=help, **more)


def options(container: Any, *table: tuple[str, Any, Any, str]) -> None:
    """Add several: name, type, default, help."""
    for name, type, default, help in table:
        option(container, name, type, help, default=default)


def add_about(parser: Any, name: str, help: str | None = None) -> None:
    """Add what the command is about, as its first positional argument."""
    shared = SHARED[name]
    parser.add_argument(name, type=shared["type"], help=help or shared["help"])


@dataclass(frozen=True)
class FieldOption:
    """A field of a dataclass as an option."""

    name: str
    type: Any
    default: Any
    help: str
    required: bool

    def add(self, container: Any, name: str) -> None:
        """Declare it under a name; train keeps underscores, as TrainingArguments has them."""
        required = {"required": True} if self.required else {"default": self.default}
        option(container, name, self.type, self.help, **required)


def describe_fields(cls: type) -> list[FieldOption]:
    """The fields of a dataclass with their types, defaults, and what its docstring says of them."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")[2]
    entries = re.findall(r"^    (\w[\w, ]*): ((?:.*\n?)(?: {8}.*\n?)*)", text, re.MULTILINE)
    helps = {n: " ".join(h.split()) for names, h in entries for n in names.split(", ")}
    hints = get_type_hints(cls)
    return [
        FieldOption(
            entry.name,
            hints[entry.name],
            entry.default if entry.default_factory is MISSING else entry.default_factory(),
            entry.metadata.get("help") or helps[entry.name].rstrip("."),
            entry.default is MISSING and entry.default_factory is MISSING,
        )
        for entry in fields(cls)
        if entry.init
    ]


def flag(container: Any, name: str, help: str, default: bool = False) -> None:
    """Add a switch: `--name`, `--name true` and `--name false`; in a file `name: true`."""
    option(container, name, bool, help, nargs="?", const=True, default=default)


def add_source(parser: Any, *, streams: bool) -> None:
    """Add --images, --data and what goes with them; with `streams`, those that are read in order."""
    group = parser.add_argument_group(
        "source", "one of --images, --data" + ", --webdataset, --videos" * streams
    )
    add(group, "images", "data")
    if streams:
        option(group, "webdataset", str, "tar files; quote it", metavar="GLOB")
        option(group, "videos", str, "folder of videos, searched recursively", metavar="FOLDER")
        add(group, "fps", "num-frames")
    rare = parser.rare("columns of --data")
    add(rare, "data-config", "split", "image-column", "id-column")
    if streams:
        flag(rare, "streaming", "read --data as a stream")


def open_source(args: Namespace, *, shard_size: int) -> Source:
    """The source that the options name."""
    from ..data.quantizing import FolderSource, Sampling, TarSource, load_dataset_source

    allowed = [name for name in ("images", "data", "webdataset", "videos") if name in args]
    given = [name for name in allowed if args[name] is not None]
    if len(given) != 1:
        options = ", ".join(f"--{name}" for name in allowed)
        named = ", ".join(f"--{name}" for name in given) or "none"
        raise ValueError(f"name one of {options}; got {named}")
    if given == ["videos"]:
        sampling = Sampling(args.fps, args.num_frames)
        if None not in (args.fps, args.num_frames):
            raise ValueError("name --fps or --num-frames, not both")
        return FolderSource(args.videos, shard_size=shard_size, sampling=sampling)
    if "videos" in args and (args.fps or args.num_frames):
        raise ValueError("--fps and --num-frames are of --videos")
    if args.images is not None:
        return FolderSource(args.images, shard_size=shard_size)
    if given == ["webdataset"]:
        return TarSource(args.webdataset)
    return load_dataset_source(
        args.data,
        shard_size=shard_size,
        split=args.split,
        config_name=args.data_config,
        streaming="streaming" in args and args.streaming,
        image_column=args.image_column,
        id_column=args.id_column,
    )


def answer(args: Namespace, data: Any, text: str, file: TextIO | None = None) -> None:
    """Print what a command did: `data` with `--json`, else `text`, the latter into `file` if given."""
    print(json.dumps(data)) if args.json else print(text, file=file)


def refuse_used(args: Namespace, folder: str | Path, pattern: str = "*") -> None:
    """With `--resume false`, refuse a folder in which a run has left something."""
    if not args.resume and any(Path(folder).glob(pattern)):
        raise ValueError(f"--output {folder}: holds a run, and --resume is false")


def refuse_nonempty(folder: Path) -> None:
    """Refuse an --output that is there with something in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"--output must be a missing or empty folder; {folder} is not an empty folder"
        )
