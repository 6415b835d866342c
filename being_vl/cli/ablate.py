"""`being-vl ablate`: the paper's ways of training, scored, with their table and Figures 3a and 3b.

On easy-VQA, from scratch, or on any data of the pipeline. Run again after an interruption it continues; seeds,
regimes and vocabularies can be added to a folder later.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from . import run_command
from .options import Seed, add, option, refuse_used
from .parsing import Parser

if TYPE_CHECKING:
    from ..studies.ablation.inputs import Inputs
    from ..studies.commands import Commands

# What docs/ablation.md reports was run with these; not in the paper.
_STAGE = {
    "packing": "shared_image",
    "per_device_train_batch_size": 8,
    "learning_rate": 2e-3,
    "adam_beta2": 0.98,
    "warmup_steps": 0.05,
}
_REGIMES = ("sft", "sft-long", "pt-full+sft", "pt-freeze+sft", "pt-freeze+sft-freeze")
_FILES = ("base", "quantizer", "codes", "sft_data", "test_data")


def make_parser() -> Parser:
    parser = Parser(
        "Train and score {VQ, VQ+BPE} × {SFT, PT(full)+SFT, PT(freeze)+SFT, PT(freeze)+SFT(freeze visual)}, and "
        "PT(freeze)+SFT for more vocabularies. Writes OUTPUT/rows/*.json, table.csv, table.md and figures. "
        "Without --base: on easy-VQA, with a small text model that is made here.",
        json="print the rows as JSON",
    )
    add(parser, "output", help="folder of the results", required=True)
    add(parser, "resume")
    chosen = parser.add_argument_group("cells")
    option(chosen, "merges", PositiveInt, "of VQ+BPE", default=512)
    option(
        chosen,
        "curve-merges",
        int,
        "more vocabularies, PT(freeze)+SFT alone",
        nargs="+",
        default=[],
    )
    option(chosen, "regimes", str, "default: all of them", nargs="+", default=list(_REGIMES))
    option(chosen, "seeds", Seed, "every cell is trained with each", nargs="+", default=[0, 1, 2])
    add(chosen, "device", help="of training and answers", default="cpu")
    own = parser.add_argument_group("own data", "all of the first five, or none for easy-VQA")
    add(own, "base", "quantizer")
    add(own, "codes", nargs="+")
    option(own, "sft-data", str, "as of being-vl tokenize --data", metavar="PATH")
    option(own, "test-data", str, "one image and one short answer a row", metavar="PATH")
    option(own, "pretrain-data", str, "default: --sft-data", metavar="PATH")
    add(own, "bpe", help="default: learned on the images of --sft-data")
    stages = parser.rare("stages", "options of being-vl train; both need max_steps")
    option(stages, "pretrain", dict[str, Any], "first stage", default={**_STAGE, "max_steps": 100})
    option(stages, "sft", dict[str, Any], "second stage", default={**_STAGE, "max_steps": 400})
    add(stages, "image-init", default="normal", help="as of being-vl init")
    add(stages, "image-init-std")
    easy = parser.rare("easy-VQA")
    option(easy, "train-images", PositiveInt, "default: all")
    option(easy, "test-images", PositiveInt, "default: all")
    option(easy, "test-split", Literal["validation", "test"], "to score on", default="test")
    option(easy, "data-seed", Seed, "of quantizer and text model", default=0)
    score = parser.rare("scores")
    add(score, "max-new-tokens", default=8)
    add(score, "limit", help="score only the first so many rows; default: all")
    return parser


def main(args: Namespace) -> int:
    import transformers

    from ..files import write_atomic
    from ..studies.ablation.cells import ablation_cells
    from ..studies.ablation.inputs import check_inputs
    from ..studies.ablation.reporting import draw_figures, markdown, table_csv
    from ..studies.ablation.running import AblationSettings, run_cells
    from ..studies.commands import Commands

    cells = ablation_cells(args.merges, args.regimes, args.seeds, args.curve_merges)
    settings = AblationSettings(
        pretrain=args.pretrain,
        sft=args.sft,
        image_init=args.image_init,
        image_init_std=args.image_init_std,
        max_new_tokens=args.max_new_tokens,
        test_limit=args.limit,
        device=args.device,
    )
    transformers.utils.logging.set_verbosity_error()
    output = Path(args.output)
    refuse_used(args, output)
    output.mkdir(parents=True, exist_ok=True)
    most = max(cell.merges for cell in cells)
    command = Commands(run_command, lambda line: print(f"$ {line}", file=sys.stderr))
    inputs = _inputs(args, command, output, most)
    check_inputs(inputs, most)
    rows = run_cells(command, inputs, cells, settings, output)
    page = markdown(rows, args.merges)
    write_atomic(output / "table.csv", table_csv(rows).encode())
    write_atomic(output / "table.md", page.encode())
    write_atomic(output / "ablate.yaml", make_parser().dump(args).encode())
    try:
        drawn = draw_figures(rows, output)
    except ImportError as error:
        print(f"no figures: {error}", file=sys.stderr)
        drawn = []
    if args.json:
        fields = ("merges", "regime", "seed", "metrics", "tokens_per_image", "steps", "seconds")
        print(json.dumps([{name: getattr(row, name) for name in fields} for row in rows]))
    else:
        print(page)
    for path in drawn:
        print(path, file=sys.stderr)
    return 0


def _inputs(args: Namespace, command: Commands, output: Path, merges: int) -> Inputs:
    from ..studies.ablation.inputs import Inputs, easyvqa_inputs, train_vocabulary

    given = [name for name in _FILES if args[name] is not None]
    if not given:
        return easyvqa_inputs(
            command,
            output / "inputs",
            train_images=args.train_images,
            test_images=args.test_images,
            merges=merges,
            test=args.test_split,
            seed=args.data_seed,
        )
    missing = [f"--{name.replace('_', '-')}" for name in _FILES if name not in given]
    if missing:
        raise ValueError(f"own data needs {', '.join(missing)} too; without any, easy-VQA is used")
    bpe = args.bpe or train_vocabulary(args.codes, args.sft_data, merges, output / "inputs")
    return Inputs(
        base=args.base,
        vq=args.quantizer,
        codes=tuple(args.codes),
        bpe=bpe,
        pretrain=args.pretrain_data or args.sft_data,
        sft=args.sft_data,
        test=args.test_data,
    )
