"""`being-vl tokenize`: conversations and codes → a data set of ids.

LLaVA's JSON, JSON Lines or a `datasets` data set, joined with the shards of `being-vl encode` by image id.
What interrupts it costs the unfinished shards alone: the same command continues.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    import numpy as np

    from ..data import SampleSource


def make_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        description="Tokenize conversations about images: OUTPUT/data-*.arrow, tokenized.json and "
        "skipped.jsonl, to be named by a training or opened with being_vl.data.load_tokenized. Run again after "
        "an interruption, it continues.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_argument(
        "--checkpoint", type=str, required=True, help="folder or Hub id of a checkpoint"
    )
    parser.add_argument("--output", type=str, required=True, help="folder of the data set")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=str, required=True,
        help="FILE.json or FILE.jsonl in LLaVA's form, or a data set: saved, readable by load_dataset, or "
        "a Hub id",
    )  # fmt: skip
    data.add_argument("--codes", type=str, nargs="+", default=[], help="folders of being-vl encode")
    data.add_argument("--split", type=str, default="train", help="split of the data set")
    data.add_argument("--dataset-config", type=str, help="configuration of the data set")
    data.add_argument(
        "--image-column",
        type=str,
        help="column of pictures or of their ids, as it was given to being-vl encode",
    )
    data.add_argument(
        "--image-root",
        type=str,
        default="",
        help="folder in front of the ids in the data's image names",
    )
    data.add_argument(
        "--id-column",
        type=str,
        help="as it was given to being-vl encode; default: the number of the row",
    )
    data.add_argument(
        "--source", type=str, help="name of this data in a mixture; default: its file's name"
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--on-missing", type=Literal["raise", "skip", "text"], default="raise",
        help="an image without codes: stop, leave its row out, or keep the row without the image",
    )  # fmt: skip
    rows.add_argument(
        "--max-length", type=PositiveInt, help="most tokens of a row; none is ever cut"
    )
    rows.add_argument(
        "--on-too-long",
        type=Literal["raise", "skip"],
        default="raise",
        help="what a longer row does",
    )
    rows.add_argument(
        "--on-control-token", type=Literal["raise", "skip"], default="raise",
        help="what a row does whose text spells a special token of the tokenizer",
    )  # fmt: skip
    rows.add_argument(
        "--on-bad-row", type=Literal["raise", "skip", "fix"], default="raise",
        help="anything else that is wrong with a row: stop, leave it out, or put missing placeholders in front",
    )  # fmt: skip
    rows.add_argument(
        "--accept-mismatch", type=Literal["quantizer", "positions"], nargs="+", default=[],
        help="what may differ: the quantizer of codes and checkpoint, the data set that numbered the images",
    )  # fmt: skip
    concepts = parser.add_argument_group(
        "filters", "for many concepts; docs/data.md says how they choose"
    )
    concepts.add_argument("--label-field", type=str, help="field of a class label")
    concepts.add_argument("--max-per-label", type=PositiveInt, help="most rows of a label")
    concepts.add_argument("--phrase-field", type=str, help="field that lists a row's noun phrases")
    concepts.add_argument("--spacy-model", type=str, help="find noun phrases with this spaCy model")
    concepts.add_argument(
        "--max-per-phrase", type=PositiveInt, default=100, help="most rows that a phrase brings in"
    )
    concepts.add_argument(
        "--min-phrase-count", type=PositiveInt, default=3, help="rarer phrases bring in no row"
    )
    concepts.add_argument(
        "--seed", type=NonNegativeInt, default=0, help="decides which rows a cap keeps"
    )
    work = parser.add_argument_group("work")
    work.add_argument("--shard-size", type=PositiveInt, default=2048, help="rows in a shard")
    work.add_argument(
        "--num-workers", type=NonNegativeInt, help="processes; default: one for each core"
    )
    work.add_argument("--json", action="store_true", help="print a summary as JSON")
    return parser


def main(args: Namespace) -> int:
    """Run the command.

    Raises:
        ValueError, OSError, ImportError: as of `being_vl.data`.
    """
    from tqdm import tqdm

    from ..data import TokenizeSettings, open_samples, tokenize_samples
    from ..processing.processing_being_vl import BeingVLProcessor

    started = time.perf_counter()
    output = Path(args.output)
    source = open_samples(
        args.data,
        split=args.split,
        config_name=args.dataset_config,
        image_column=args.image_column,
        id_column=args.id_column,
    )
    filters = {
        name: args[name]
        for name in (
            "label_field", "max_per_label", "phrase_field", "spacy_model", "max_per_phrase",
            "min_phrase_count", "seed",
        )
    }  # fmt: skip
    selection = _selection(source, filters)
    settings = TokenizeSettings(
        source=args.source or source.name,
        on_missing=args.on_missing,
        max_length=args.max_length,
        on_too_long=args.on_too_long,
        on_control_token=args.on_control_token,
        on_bad_row=args.on_bad_row,
        image_root=args.image_root,
        shard_size=args.shard_size,
    )
    processor = BeingVLProcessor.from_pretrained(args.checkpoint)
    total = source.num_samples if selection is None else len(selection)
    with tqdm(total=total, unit="row") as bar:
        manifest = tokenize_samples(
            source,
            processor,
            output,
            settings,
            checkpoint=args.checkpoint,
            codes=args.codes,
            selection=selection,
            selected_by=None if selection is None else filters,
            accept_mismatch=args.accept_mismatch,
            num_workers=_cores() if args.num_workers is None else args.num_workers,
            progress=bar.update,
        )
    _save_config(args, output)
    counts = manifest["counts"]
    seconds = round(time.perf_counter() - started, 3)
    before = "; finished before; nothing to do" if manifest["finished_before"] else ""
    if args.json:
        print(json.dumps({"output": str(output), **counts, "seconds": seconds}))
    else:
        print(
            f"{output}: {counts['rows']} rows, {counts['tokens']} tokens, {counts['images']} images; "
            f"{counts['skipped_rows']} rows left out{before}",
            file=sys.stderr,
        )
    return 0


def _selection(source: SampleSource, filters: dict[str, Any]) -> np.ndarray | None:
    from ..data import iter_samples, select_samples

    return select_samples(lambda: (row for _, _, row in iter_samples(source)), **filters)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _save_config(args: Namespace, output: Path) -> None:
    from ..files import write_atomic

    write_atomic(output / "tokenize.yaml", make_parser().dump(args).encode())
