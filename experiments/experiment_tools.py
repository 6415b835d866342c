"""What the experiments share: their options, their result files, their images."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from being_vl.files import write_atomic
from being_vl.studies.analysis.markov import MarkovSource

SOURCES = {
    "mixed-1": MarkovSource("mixed"),
    "rows-1": MarkovSource("rows"),
    "mixed-2": MarkovSource("mixed", order=2),
    "rows-2": MarkovSource("rows", order=2),
}


def make_parser(description: str) -> ArgumentParser:
    """The options of every experiment."""
    parser = ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--output", type=str, default="docs/figures", help="folder of the results")
    parser.add_argument("--seeds", type=PositiveInt, default=3, help="0 to so many less one")
    parser.add_argument(
        "--quick", action="store_true", help="seconds in all; the figures mean nothing"
    )
    return parser


def seeds(args: Namespace) -> range:
    """0 to `--seeds` less one; 0 alone with `--quick`."""
    return range(1 if args.quick else args.seeds)


def write_results(rows: Sequence[dict[str, Any]] | dict[str, Any], path: Path) -> None:
    """JSON, one row a line, whole or not at all."""
    if isinstance(rows, dict):
        text = json.dumps(rows, indent=1)
    else:
        text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
    write_atomic(path, text + "\n")


def once(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, kept in a file of that name, so that a stopped command goes on where it was."""
    path = folder / (re.sub(r"\W+", "-", name) + ".json")
    if not path.exists():
        write_atomic(path, json.dumps(make()) + "\n")
    return json.loads(path.read_text())


def image_grids(name: str, count: int, codebook_size: int, side: int, seed: int) -> tuple[Any, Any]:
    """Training and held-out grids of codes of real images, from the benchmarks' data."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import bpe_data

    if name == "photographs":
        return bpe_data.photographs(count, codebook_size, side, seed)
    return bpe_data.drawings(codebook_size, seed)
