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
    restricted_number_type,
)

from ..files import place
from ..models.families import ImageInit

if TYPE_CHECKING:
    from ..data.quantizing import Source

# as numpy and torch both take it
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 1 << 32)])
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# name, type, metavar, default, help
_TABLE: tuple[tuple[str, Any, str | None, Any, str], ...] = (
    # parts
    ("checkpoint", str, "PATH", None, "checkpoint: folder or Hub id"),
    ("quantizer", str, "PATH", None, "quantizer: folder or Hub id"),
    ("bpe", str, "PATH", None, "folder with image_bpe.json, or that file"),
    ("base", str, "PATH", None, "text model: folder or Hub id"),
    ("image-processor", str, "PATH", None, "folder or Hub id; default: that of --quantizer, else its resolution"),
    # data
    ("codes", str, "PATH", None, "codes: folder of shards, .npy (N, h, w), .pt, .parquet or .tar"),
    ("verify", bool, None, False, "compare the checksums of the shards of --codes before use, which reads all of them"),
    ("images", str, "FOLDER", None, "folder of images, searched recursively"),
    ("image", str, "FILE", None, "an image"),
    ("data", str, "PATH", None, "data set: saved to disk, readable by load_dataset, or Hub id"),
    ("data-config", str, None, None, "configuration of --data; default: its only one"),
    ("split", str, None, "train", "split of --data"),
    ("image-column", str, None, None, "default: the only column of images"),
    ("id-column", str, None, None, "column of image ids; default: the number of the row"),
    ("limit", PositiveInt, None, None, "use only the first so many; default: all"),
    # what is made
    ("output", str, "FOLDER", None, "folder to write"),
    ("resume", bool, None, True, "continue an interrupted run"),
    ("shard-size", PositiveInt, None, None, "rows in a shard"),
    # how
    ("seed", Seed, None, 0, "random seed"),
    ("device", str, None, None, "cpu, cuda, cuda:1, …; default: a GPU if there is one"),
    ("dtype", Dtype, None, "auto", "of the weights"),
    ("batch-size", PositiveInt, None, None, "images in a batch"),
    ("workers", NonNegativeInt, None, None, "processes that prepare data"),
    ("engine", Literal["local", "ray"], None, "local", "ray: --workers actors on a cluster of Ray"),
    ("num-threads", PositiveInt, None, None, "default: all CPUs"),
    ("max-new-tokens", PositiveInt, None, None, "most tokens of an answer"),
    ("temperature", NonNegativeFloat, None, 0.0, "0: always the likeliest token"),
    ("top-p", ClosedUnitInterval, None, 1.0, "probability mass sampled from"),
    ("fps", PositiveFloat, None, None, "frames to keep a second; default: all"),
    ("num-frames", PositiveInt, None, None, "frames of each video, at most; default: all"),
    ("key-frame-interval", PositiveInt | None, None, None,
     "of codes of videos: one in so many frames repeats nothing; default: the first alone"),
    ("rfid-weights", str, "FILE", None, "measure rFID with torch-fidelity's Inception weights"),
    ("image-init", ImageInit, None, "mean_text",
     "how the rows of new tokens start; only mean_text leaves the probabilities of text alone"),
    ("image-init-std", NonNegativeFloat, None, None,
     "standard deviation of those rows; default: that of the text rows"),
)  # fmt: skip
_SWITCH = {"nargs": "?", "const": True}
SHARED: dict[str, dict[str, Any]] = {
    name: {"type": type, "metavar": metavar, "default": default, "help": help}
    | (_SWITCH if type is bool else {})
    for name, type, metavar, default, help in _TABLE
}


def add(container: Any, *names: str, **changes: Any) -> None:
    """Add shared options to a parser or a group; `changes` replace what `SHARED` says of them."""
    for name in names:
        container.add_argument(f"--{name}", **{**SHARED[name], **changes})


def option(container: Any, name: str, type: Any, help: str, **more: Any) -> None:
    """Add an option of this command alone; `more` is of `add_argument`."""
    container.add_argument(f"--{name}", type=type, help=help, **more)


def options(container: Any, *table: tuple[Any, ...]) -> None:
    """Add several such options, a row each: name, type, default, help, and perhaps metavar."""
    for name, type, default, help, *metavar in table:
        option(container, name, type, help, default=default, metavar=(*metavar, None)[0])


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
    option(container, name, bool, help, default=default, **_SWITCH)


def add_source(parser: Any, *, streams: bool) -> None:
    """Add --images, --data and what goes with them; with `streams`, those that are read in order."""
    group = parser.add_argument_group(
        "source", "one of --images, --data" + ", --webdataset, --videos" * streams
    )
    add(group, "images", "data")
    if streams:
        options(
            group,
            ("webdataset", str, None, "tar files or URLs, with * and {0000..0999}; quote it", "PATTERN"),
            ("videos", str, None, "folder of videos, searched recursively", "FOLDER"),
        )  # fmt: skip
        add(group, "fps", "num-frames")
    rare = parser.rare("columns of --data")
    add(rare, "data-config", "split", "image-column", "id-column")
    if streams:
        flag(rare, "streaming", "read --data as a stream")
        extension = "extension of the images in --webdataset, such as left.png; default: all"
        option(rare, "image-key", str, extension)


def add_engine(parser: Any) -> None:
    """Add --engine, and what each actor of Ray takes."""
    group = parser.rare("engine", "docs/cluster.md")
    add(group, "engine")
    options(
        group,
        ("cpus-per-worker", PositiveInt, 1, "of an actor"),
        ("gpus-per-worker", NonNegativeFloat, 0.0, "of an actor; 0.5: two share one"),
        ("rank", NonNegativeInt, 0, "this job of an array, hub_configs/slurm"),
        ("world", PositiveInt, 1, "jobs of the array; the last to end writes the manifest"),
    )  # fmt: skip


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
        return TarSource(args.webdataset, image_key=args.image_key)
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
    if not args.resume and any(place(folder).glob(pattern)):
        raise ValueError(f"--output {folder}: holds a run, and --resume is false")


def refuse_nonempty(folder: Path) -> None:
    """Refuse an --output that is there with something in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"--output must be a missing or empty folder; {folder} is not an empty folder"
        )
