"""the authors' pickle → legacy_image_bpe.json: the command `being-vl convert`.

Source: the released Being-VL-0.5 vocabulary, a pickled list of ((first, second), new_id). Differs from
loading it in that the pickle is read, never executed.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from ..files import write_atomic
from .options import add, answer
from .parsing import Parser


def make_parser() -> Parser:
    parser = Parser(
        "Turn the authors' released vBPE pickle into legacy_image_bpe.json. The table encodes as their code does; "
        "its tokens cannot be decoded, so it is for comparison, not for new models.",
        json="print a summary as JSON",
    )
    parser.add_argument(
        "pickle", type=str, help="the released file, a pickled list of ((first, second), new_id)"
    )
    add(parser, "output", help="folder of legacy_image_bpe.json", required=True)
    return parser


def main(args: Namespace) -> int:
    from ..bpe.legacy import LegacyImageBPE

    legacy = LegacyImageBPE.from_pickle(args.pickle)
    (path,) = legacy.save_pretrained(args.output)
    write_atomic(Path(args.output) / "convert.yaml", make_parser().dump(args))
    data = {
        "file": path,
        "codebook_size": legacy.codebook_size,
        "num_merges": legacy.num_merges,
        "decodable": False,
    }
    answer(
        args,
        data,
        f"{path}: {legacy.num_merges} rules over {legacy.codebook_size} codes; it encodes as the authors' "
        "code does and cannot decode",
    )
    return 0
