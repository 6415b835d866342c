"""`being-vl tokenize`: conversations and codes → a data set of ids.

LLaVA's JSON, JSON Lines or a `datasets` data set, joined with the shards of `being-vl encode` by image id.
What interrupts it costs the unfinished shards alone: the same command continues.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from .loading import check_part
from .options import add, refuse_used
from .parsing import Parser

if TYPE_CHECKING:
    import numpy as np

    from ..data import SampleSource


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        "Tokenize conversations about images: OUTPUT/data-*.arrow, tokenized.json and skipped.jsonl, to be opened "
        "by being_vl.data.load_tokenized or named by a training.",
        json="print a summary as JSON",
    )
    add(parser, "checkpoint", required=True)
    add(
        parser,
        "data",
        help="LLaVA's .json or .jsonl; or a data set: saved, readable by load_dataset, or Hub id",
        required=True,
    )
    add(parser, "codes", nargs="+", default=[], help="folders of being-vl encode")
    add(parser, "verify")
    add(parser, "output", help="folder of the data set", required=True)
    add(parser, "resume")
    samples = parser.add_argument_group("samples")
    samples.add_argument(
        "--on-missing", type=Literal["raise", "skip", "text"], default="raise",
        help="an image without codes: stop, skip the sample, or keep it without the image",
    )  # fmt: skip
    samples.add_argument(
        "--on-too-long", type=Literal["raise", "skip"], default="raise", help="see --max-length"
    )
    samples.add_argument(
        "--on-control-token", type=Literal["raise", "skip"], default="raise",
        help="text that spells a special token of the tokenizer",
    )  # fmt: skip
    samples.add_argument(
        "--on-bad-row", type=Literal["raise", "skip", "fix"], default="raise",
        help="anything else that is wrong; fix puts missing placeholders in front",
    )  # fmt: skip
    samples.add_argument(
        "--max-length", type=PositiveInt, help="most tokens of a sample; none is ever cut"
    )
    samples.add_argument("--source", type=str, help="name in a mixture; default: the file's name")
    work = parser.add_argument_group("work")
    add(work, "workers", help="processes; default: one for each core")
    add(work, "shard-size", default=2048, help="samples in a shard")
    columns = parser.rare("columns of --data")
    add(columns, "data-config", "split", "id-column")
    add(columns, "image-column", help="of pictures or their ids, as given to being-vl encode")
    columns.add_argument(
        "--image-root",
        type=str,
        default="",
        metavar="FOLDER",
        help="what stands in front of the ids in the data's image names",
    )
    columns.add_argument(
        "--accept-mismatch", type=Literal["quantizer", "positions"], nargs="+", default=[],
        help="what may differ: the quantizer of codes and checkpoint, the data set that numbered the images",
    )  # fmt: skip
    filters = parser.rare("filters for many concepts", "docs/data.md says how they choose")
    filters.add_argument("--label-field", type=str, help="field of a class label")
    filters.add_argument("--max-per-label", type=PositiveInt, help="most samples of a label")
    filters.add_argument("--phrase-field", type=str, help="field that lists noun phrases")
    filters.add_argument("--spacy-model", type=str, help="find noun phrases with this spaCy model")
    filters.add_argument(
        "--max-per-phrase", type=PositiveInt, default=100, help="most samples that a phrase brings"
    )
    filters.add_argument(
        "--min-phrase-count", type=PositiveInt, default=3, help="rarer phrases bring no sample"
    )
    add(filters, "seed", help="decides which samples a cap keeps")
    return parser


def main(args: Namespace) -> int:
    """Run the command."""
    from tqdm import tqdm

    from ..data import TokenizeSettings, open_samples, tokenize_samples
    from ..processing.processing_being_vl import BeingVLProcessor

    started = time.perf_counter()
    output = Path(args.output)
    refuse_used(args, output, "data-*")
    check_part("--checkpoint", args.checkpoint)
    source = open_samples(
        args.data,
        split=args.split,
        config_name=args.data_config,
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
            verify_codes=args.verify,
            selection=selection,
            selected_by=None if selection is None else filters,
            accept_mismatch=args.accept_mismatch,
            num_workers=_cores() if args.workers is None else args.workers,
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
