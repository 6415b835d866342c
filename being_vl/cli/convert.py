"""the authors' pickle → legacy_image_bpe.json: the command `being-vl convert`.

Source: the released Being-VL-0.5 vocabulary, a pickled list of ((first, second), new_id). Differs from
loading it in that the pickle is read, never executed.
"""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Turn the authors' released vBPE pickle into legacy_image_bpe.json. The table encodes as "
        "their code does; its tokens cannot be decoded, so it is for comparison, not for new models."
    )
    parser.add_argument("--config", action="config", help="YAML file whose values flags override")
    parser.add_argument(
        "pickle", type=str, help="the released file, a pickled list of ((first, second), new_id)"
    )
    parser.add_argument("output", type=str, help="folder to write legacy_image_bpe.json into")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    return parser


def main(args: Namespace) -> int:
    from being_vl.bpe.legacy import LegacyImageBPE

    legacy = LegacyImageBPE.from_pickle(args.pickle)
    (path,) = legacy.save_pretrained(args.output)
    make_parser().save(args, Path(args.output) / "convert.yaml", overwrite=True)
    answer = {
        "file": path,
        "codebook_size": legacy.codebook_size,
        "num_merges": legacy.num_merges,
        "decodable": False,
    }
    if args.json:
        print(json.dumps(answer))
    else:
        print(
            f"{path}: {legacy.num_merges} rules over {legacy.codebook_size} codes; it encodes as the authors' "
            "code does and cannot decode"
        )
    return 0
