"""The main job end to end on easy-VQA: pixels → codes → merges → ids → answers, in minutes on a CPU."""

from __future__ import annotations

from typing import Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat

from . import run_command
from .options import add
from .parsing import Parser


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        "Train and test a small model on easy-VQA, end to end: pixels → codes → merges → ids → answers, in minutes "
        "on a CPU, by commands of being-vl, each of which is printed. Run again, it goes on where it was. It needs "
        'easy-vqa: pip install "being-vl[quickstart]".'
    )
    add(parser, "output", default="being-vl-quickstart")
    add(parser, "seed")
    parser.add_argument(
        "--minutes",
        type=PositiveFloat,
        default=4.0,
        help="about how long the run takes on two CPU cores; sets the numbers of steps",
    )
    add(parser, "device", default="cpu", help="of the language model")
    parser.add_argument(
        "--quantizer-kind",
        type=Literal["patch", "vqgan"],
        default="patch",
        help="k-means of patches, or a VQ-GAN",
    )
    parser.add_argument(
        "--rows",
        type=list[Literal["bpe", "vq", "question-only"]],
        default=["bpe", "vq", "question-only"],
        help="of the table: LLM+VQ+BPE, which is always made, LLM+VQ, and answers without looking",
    )
    return parser


def main(args: Namespace) -> None:
    """Run the command."""
    from ..studies.quickstart.pipeline import run
    from ..studies.quickstart.settings import Settings

    run(
        Settings(
            output=args.output,
            seed=args.seed,
            minutes=args.minutes,
            device=args.device,
            quantizer=args.quantizer_kind,
            rows=args.rows,
        ),
        run_command,
    )
