"""Options that name images: shared by the commands that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from ..data.quantizing import Source

_SOURCES = ("images", "dataset", "webdataset")


def add_source_arguments(parser: ArgumentParser, *, streams: bool) -> None:
    """Add --images, --dataset and what goes with them; with `streams`, those that are read in order."""
    group = parser.add_argument_group("source", "where the images are; name one")
    group.add_argument("--images", type=str, help="folder, searched recursively")
    group.add_argument(
        "--dataset", type=str, help="data set: saved to disk, readable by load_dataset, or a Hub id"
    )
    group.add_argument("--dataset-config", type=str, help="configuration of the data set")
    group.add_argument("--split", type=str, default="train", help="split of the data set")
    group.add_argument("--image-column", type=str, help="default: the only column of images")
    group.add_argument("--id-column", type=str, help="default: the number of the row")
    if streams:
        group.add_argument("--webdataset", type=str, help="glob pattern of tar files; quote it")
        group.add_argument(
            "--streaming", type=bool, default=False, help="read the data set as a stream"
        )


def open_source(args: Namespace, *, shard_size: int) -> Source:
    """The source that the options name.

    Raises:
        ValueError: none or several are named, or the source has no images.
        FileNotFoundError: no such data set.
    """
    from ..data.quantizing import FolderSource, TarSource, load_dataset_source

    allowed = [name for name in _SOURCES if name in args]
    given = [name for name in allowed if args[name] is not None]
    if len(given) != 1:
        options = ", ".join(f"--{name}" for name in allowed)
        named = ", ".join(f"--{name}" for name in given) or "none"
        raise ValueError(f"name one of {options}; got {named}")
    if args.images is not None:
        return FolderSource(args.images, shard_size=shard_size)
    if given == ["webdataset"]:
        return TarSource(args.webdataset)
    return load_dataset_source(
        args.dataset,
        shard_size=shard_size,
        split=args.split,
        config_name=args.dataset_config,
        streaming="streaming" in args and args.streaming,
        image_column=args.image_column,
        id_column=args.id_column,
    )
