"""`being-vl tokenize`: conversations and codes → a data set of ids.

LLaVA's JSON, JSON Lines or a `datasets` data set, joined with the shards of `being-vl encode` by image id.
After an interruption the same command continues; only unfinished shards are made again.
"""

from __future__ import annotations

import sys
import time
from typing import Literal

from jsonargparse import Namespace
from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from ..files import place, reading, write_atomic
from .loading import check_part
from .options import add, answer, option, options, refuse_used
from .parsing import Parser

_FILTERS = (
    "label_field", "max_per_label", "phrase_field", "spacy_model", "max_per_phrase", "min_phrase_count", "seed",
)  # fmt: skip
_SETTINGS = (
    "on_missing", "max_length", "on_too_long", "on_control_token", "on_bad_row", "image_root", "shard_size", "dropout",
    "seed",
)  # fmt: skip


def make_parser() -> Parser:
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
    add(
        parser,
        "codes",
        nargs="+",
        default=[],
        help="folders of being-vl encode, or files: .npy, .pt, .parquet, .tar",
    )
    add(parser, "verify")
    add(parser, "output", help="folder of the data set", required=True)
    add(parser, "resume")
    samples = parser.add_argument_group("samples")
    options(
        samples,
        ("on-missing", Literal["raise", "skip", "text"], "raise",
         "an image without codes: stop, skip the sample, or keep it without the image"),
        ("on-too-long", Literal["raise", "skip"], "raise", "see --max-length"),
        ("on-control-token", Literal["raise", "skip"], "raise", "text that spells a special token of the tokenizer"),
        ("on-bad-row", Literal["raise", "skip", "fix"], "raise",
         "anything else that is wrong; fix puts missing placeholders in front"),
        ("max-length", PositiveInt, None, "most tokens of a sample; none is ever cut"),
        ("source", str, None, "name in a mixture; default: the file's name"),
    )  # fmt: skip
    work = parser.add_argument_group("work")
    add(work, "workers", help="processes; default: one for each core")
    add(work, "shard-size", default=2048, help="samples in a shard")
    add(parser.rare("engine", "docs/cluster.md"), "engine")
    columns = parser.rare("columns of --data")
    add(columns, "data-config", "split", "id-column")
    add(columns, "image-column", help="of images or their ids, as given to being-vl encode")
    options(
        columns,
        ("image-root", str, "", "what stands in front of the ids in the data's image names", "FOLDER"),
    )  # fmt: skip
    may_differ = "what may differ: the quantizer of codes and checkpoint, the data set that numbered the images"
    kinds = Literal["quantizer", "positions"]
    option(columns, "accept-mismatch", kinds, may_differ, nargs="+", default=[])
    draws = parser.rare("dropout", "docs/data.md")
    options(
        draws,
        ("dropout", ClosedUnitInterval, 0.0, "BPE-dropout of images: the probability that a merge is left out"),
    )  # fmt: skip
    add(draws, "seed", help="of --dropout, and of the samples that a cap keeps")
    filters = parser.rare("filters for many concepts", "docs/data.md says how they choose")
    options(
        filters,
        ("label-field", str, None, "field of a class label"),
        ("max-per-label", PositiveInt, None, "most samples of a label"),
        ("phrase-field", str, None, "field that lists noun phrases"),
        ("spacy-model", str, None, "find noun phrases with this spaCy model"),
        ("max-per-phrase", PositiveInt, 100, "most samples that a phrase brings"),
        ("min-phrase-count", PositiveInt, 3, "rarer phrases bring no sample"),
    )
    return parser


def main(args: Namespace) -> int:
    from tqdm import tqdm

    from ..bpe.grids import check_threads
    from ..data import (
        TokenizeSettings,
        iter_samples,
        open_samples,
        select_samples,
        tokenize_samples,
    )
    from ..processing.processing_being_vl import BeingVLProcessor

    started = time.perf_counter()
    output = place(args.output)
    refuse_used(args, output, "data-*")
    check_part("--checkpoint", args.checkpoint, "processor_config.json")
    source = open_samples(
        args.data,
        split=args.split,
        config_name=args.data_config,
        image_column=args.image_column,
        id_column=args.id_column,
    )
    filters = {name: args[name] for name in _FILTERS}
    selection = select_samples(lambda: (row for _, _, row in iter_samples(source)), **filters)
    settings = TokenizeSettings(
        source=args.source or source.name, **{name: args[name] for name in _SETTINGS}
    )
    with reading(args.checkpoint):
        processor = BeingVLProcessor.from_pretrained(args.checkpoint)
    total = source.num_samples if selection is None else len(selection)
    with tqdm(total=total, unit="sample") as bar:
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
            num_workers=check_threads(None) if args.workers is None else args.workers,
            by_ray=args.engine == "ray",
            progress=bar.update,
        )
    write_atomic(output / "tokenize.yaml", make_parser().dump(args))
    counts = manifest["counts"]
    seconds = round(time.perf_counter() - started, 3)
    before = "; finished before; nothing to do" if manifest["finished_before"] else ""
    answer(
        args,
        {"output": str(output), **counts, "seconds": seconds},
        f"{output}: {counts['samples']} samples, {counts['tokens']} tokens, {counts['images']} images; "
        f"{counts['skipped_samples']} samples left out{before}",
        sys.stderr,
    )
    return 0
