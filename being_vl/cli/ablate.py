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
from jsonargparse.typing import NonNegativeInt, PositiveInt

from . import run_command
from .options import add, refuse_used
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
    """The options of the command."""
    parser = Parser(
        "Train and score {VQ, VQ+BPE} × {SFT, PT(full)+SFT, PT(freeze)+SFT, PT(freeze)+SFT(freeze visual)}, and "
        "PT(freeze)+SFT for more vocabularies. Writes OUTPUT/rows/*.json, table.csv, table.md and figures. "
        "Without --base: on easy-VQA, with a small text model that is made here.",
        json="print the rows as JSON",
    )
    add(parser, "output", help="folder of the results", required=True)
    add(parser, "resume")
    chosen = parser.add_argument_group("cells")
    chosen.add_argument("--merges", type=PositiveInt, default=512, help="of VQ+BPE")
    chosen.add_argument(
        "--curve-merges", type=list[int], default=[], help="more vocabularies, PT(freeze)+SFT alone"
    )
    chosen.add_argument(
        "--regimes", type=list[str], default=list(_REGIMES), help="default: all of them"
    )
    chosen.add_argument(
        "--seeds", type=list[int], default=[0, 1, 2], help="every cell is trained with each"
    )
    add(chosen, "device", help="of training and answers", default="cpu")
    own = parser.add_argument_group("own data", "all of the first five, or none for easy-VQA")
    add(own, "base", "quantizer")
    add(own, "codes", nargs="+")
    own.add_argument("--sft-data", type=str, metavar="PATH", help="as of being-vl tokenize --data")
    own.add_argument(
        "--test-data", type=str, metavar="PATH", help="one image and one short answer a row"
    )
    own.add_argument("--pretrain-data", type=str, metavar="PATH", help="default: --sft-data")
    add(own, "bpe", help="default: learned on the images of --sft-data")
    stages = parser.rare("stages", "options of being-vl train; both need max_steps")
    stages.add_argument(
        "--pretrain", type=dict[str, Any], default={**_STAGE, "max_steps": 100}, help="first stage"
    )
    stages.add_argument(
        "--sft", type=dict[str, Any], default={**_STAGE, "max_steps": 400}, help="second stage"
    )
    add(stages, "image-init", default="normal", help="as of being-vl init")
    add(stages, "image-init-std")
    easy = parser.rare("easy-VQA")
    easy.add_argument("--train-images", type=PositiveInt, help="default: all")
    easy.add_argument("--test-images", type=PositiveInt, help="default: all")
    easy.add_argument(
        "--test-split", type=Literal["validation", "test"], default="test", help="to score on"
    )
    easy.add_argument(
        "--data-seed", type=NonNegativeInt, default=0, help="of quantizer and text model"
    )
    score = parser.rare("scores")
    add(score, "max-new-tokens", default=8)
    add(score, "limit", help="score only the first so many rows; default: all")
    return parser


def main(args: Namespace) -> int:
    """Run the command."""
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
