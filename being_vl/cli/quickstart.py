"""`being-vl quickstart`: train and test a small model on easy-VQA."""

from __future__ import annotations

from typing import Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat

from . import run_command
from .options import add, option, options
from .parsing import Parser


def make_parser() -> Parser:
    parser = Parser(
        "Train and test a small model on easy-VQA, end to end (pixels → codes → merges → ids → answers), in minutes on "
        "a CPU. Each step is a command of being-vl and is printed. A stopped run continues when it is started again. "
        'Requires: pip install "being-vl[quickstart]".'
    )
    add(parser, "output", default="being-vl-quickstart")
    add(parser, "seed")
    add(parser, "device", default="cpu", help="of the language model")
    options(
        parser,
        ("minutes", PositiveFloat, 4.0, "approximate time on two CPU cores; sets the numbers of steps"),
        ("quantizer-kind", Literal["patch", "vqgan"], "patch", "k-means of patches, or a VQ-GAN"),
    )  # fmt: skip
    rows = "rows of the table: LLM+VQ+BPE (always made), LLM+VQ, and answers without the image"
    kinds = ["bpe", "vq", "question-only"]
    option(parser, "rows", Literal["bpe", "vq", "question-only"], rows, nargs="+", default=kinds)
    return parser


def main(args: Namespace) -> None:
    from ..studies.quickstart.compiling import Compiling

    with Compiling(run_command) as compiling:
        from ..studies.quickstart.pipeline import run
        from ..studies.quickstart.settings import Settings

        settings = Settings(
            output=args.output,
            seed=args.seed,
            minutes=args.minutes,
            device=args.device,
            quantizer=args.quantizer_kind,
            rows=args.rows,
        )
        run(settings, compiling.run)
