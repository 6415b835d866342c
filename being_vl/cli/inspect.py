"""tokens → text and PNG: the command `being-vl inspect`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt

from ..files import reading, write_atomic
from .loading import load_quantizer, load_vocabulary
from .options import add, add_about, answer, options
from .parsing import Parser

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from ..bpe.image_bpe import ImageBPE


def make_parser() -> Parser:
    parser = Parser(
        "Show the token shapes of a vocabulary as text and, with --output, as a PNG. With --image: one PNG of the "
        "image, its reconstruction and its tokens. With --video: a sheet of its frames with their tokens, and the "
        "reconstruction as animated WebP.",
        json="print the answer as JSON",
    )
    add_about(parser, "bpe", "folder with image_bpe.json, or that file; a checkpoint")
    add(parser, "image", help="an image to quantize and encode")
    options(parser, ("video", str, None, "a video to quantize and encode", "FILE"))
    add(parser, "fps", "num-frames")
    drawn = "draws --image and --video, and tokens in pixels; default: that of the checkpoint"
    add(parser, "quantizer", help=drawn)
    written = "image to write; default with --image and --video: NAME.tokens.png, else none"
    add(parser, "output", metavar="FILE.png", help=written)
    options(
        parser,
        ("tokens", NonNegativeInt, 24, "merged tokens to show"),
        ("first", NonNegativeInt, 0, "rank of the first of them"),
        ("shapes", NonNegativeInt, 8, "commonest shapes to show"),
        ("dump", str, None, "write every token into it", "FILE.txt"),
    )
    return parser


def main(args: Namespace) -> int:
    bpe = load_vocabulary("bpe", args.bpe)
    if args.image is not None and args.video is not None:
        raise ValueError("name --image or --video, not both")
    inspect = _inspect_vocabulary if args.image is None else _inspect_image
    if args.video is not None:
        inspect = _inspect_video
    data, lines = inspect(args, bpe)
    answer(args, data, "\n".join(lines))
    return 0


def _inspect_vocabulary(args: Namespace, bpe: ImageBPE) -> tuple[dict[str, Any], list[str]]:
    from ..bpe.drawing import save_image, token_sheet, token_text

    sizes = Counter(bpe.token_sizes()[bpe.codebook_size :].tolist())
    shapes = bpe.shape_table()
    merged = shapes.shape_of[bpe.codebook_size :].tolist()
    common = Counter(merged).most_common(args.shapes)
    ranks = range(args.first, min(args.first + args.tokens, bpe.num_merges))
    data: dict[str, Any] = {
        "codebook_size": bpe.codebook_size,
        "num_merges": bpe.num_merges,
        "merge_rule": bpe.merge_rule,
        "distinct_shapes": len(set(merged)),
        "ids_by_cells": {str(size): sizes[size] for size in sorted(sizes)},
        "tokens": [
            {
                "id": bpe.codebook_size + rank,
                "rank": rank,
                "rule": bpe.merges[rank].tolist(),
                "cells": bpe.cells(bpe.codebook_size + rank),
            }
            for rank in ranks
        ],
    }
    lines = [f"{bpe!r}: {data['distinct_shapes']} shapes", "", "cells a token   ids"]
    lines += [f"{size:>13}   {count}" for size, count in data["ids_by_cells"].items()]
    for shape, count in common:
        example = bpe.codebook_size + merged.index(shape)
        lines += ["", f"{count} ids of this shape, the first {example}:", *token_text(bpe, example)]
    for token in data["tokens"]:
        lines += ["", _token_line(token), *token_text(bpe, token["id"])]
    if args.output is not None:
        has_quantizer = (
            args.quantizer is not None or (Path(args.bpe) / "vq_model/config.json").exists()
        )
        pixels = _pixels(args) if has_quantizer else None
        sheet = token_sheet(bpe, [bpe.codebook_size + rank for rank in ranks], pixels=pixels)
        save_image(sheet, args.output)
        data["png"] = args.output
        lines += ["", f"wrote {args.output}"]
    if args.dump is not None:
        write_atomic(Path(args.dump), "\n".join(dump_lines(bpe)) + "\n")
        data["dump"] = args.dump
        lines += ["", f"wrote {args.dump}"]
    return data, lines


def _token_line(token: dict[str, Any]) -> str:
    first, second, row, col = token["rule"]
    codes = " ".join(str(code) for _, _, code in token["cells"])
    return (
        f"{token['id']} (rank {token['rank']}): {first} and {second} at ({row}, {col}); "
        f"{len(token['cells'])} cells, codes {codes}"
    )


def dump_lines(bpe: ImageBPE) -> list[str]:
    """Every merged token: its id, rule and cells, a line each."""
    lines = [f"# {bpe!r}", "# id = first + second at (row, column): (row, column) code, ..."]
    for rank, (first, second, row, col) in enumerate(bpe.merges.tolist()):
        visual_id = bpe.codebook_size + rank
        cells = ", ".join(f"({r}, {c}) {code}" for r, c, code in bpe.cells(visual_id))
        lines.append(f"{visual_id} = {first} + {second} at ({row}, {col}): {cells}")
    return lines


def _inspect_image(args: Namespace, bpe: ImageBPE) -> tuple[dict[str, Any], list[str]]:
    from ..bpe.drawing import save_image
    from ..processing.token_drawing import token_drawing
    from ..quantizers.image_loading import load_image

    image = load_image(args.image)
    model, processor = _quantizer(args)
    drawn = token_drawing(image, bpe, model, processor)
    height, width = drawn.codes.shape
    png = args.output or f"{Path(args.image).stem}.tokens.png"
    save_image(drawn.drawing, png)
    data = {
        "image": args.image,
        "png": png,
        "height": height,
        "width": width,
        "tokens": len(drawn.ids),
        "compression_ratio": height * width / len(drawn.ids),
        "ids": drawn.ids.tolist(),
    }
    line = f"{png}: {height}x{width} codes, {len(drawn.ids)} tokens, ratio {data['compression_ratio']:.3f}"
    return data, [line]


def _pixels(args: Namespace) -> Callable[[np.ndarray], np.ndarray]:
    """Codes (h, w) → uint8 (h × d, w × d, 3), by the decoder of the quantizer."""
    import numpy as np

    from ..processing.processing_being_vl import reconstruct

    model, processor = _quantizer(args)
    return lambda codes: np.asarray(reconstruct(codes, model, processor))


def _inspect_video(args: Namespace, bpe: ImageBPE) -> tuple[dict[str, Any], list[str]]:
    import numpy as np

    from ..bpe.drawing import (
        contact_sheet,
        draw_tokens,
        enlarged,
        save_animation,
        save_image,
        token_map,
    )
    from ..bpe.repeats import encode_frames
    from ..processing.processing_being_vl import reconstruct
    from ..quantizers.quantizing import quantize
    from ..quantizers.video_loading import load_video

    frames, metadata = load_video(args.video, fps=args.fps, num_frames=args.num_frames)
    model, processor = _quantizer(args)
    codes = np.stack(quantize(list(frames), model, processor))
    images = [reconstruct(frame, model, processor) for frame in codes]
    ids = encode_frames(bpe, codes)
    height, width = codes.shape[1:]
    drawn = [
        draw_tokens(enlarged(image, 160), token_map(bpe, own.tolist(), height, width))
        for image, own in zip(images, ids, strict=True)
    ]
    counts = [len(own) for own in ids]
    times = metadata.timestamps
    titles = [f"{time:.2f} s, {count} tokens" for time, count in zip(times, counts, strict=True)]
    png = args.output or f"{Path(args.video).stem}.tokens.png"
    save_image(contact_sheet(drawn, titles), png)
    webp = str(Path(png).with_suffix(".webp"))
    mean = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.25
    save_animation(images, webp, mean or 0.25)
    data = {
        "video": args.video,
        "png": png,
        "webp": webp,
        "frames": len(codes),
        "height": height,
        "width": width,
        "times": times,
        "tokens": counts,
        "compression_ratio": codes.size / sum(counts),
    }
    line = (
        f"{png}, {webp}: {len(codes)} frames of {height}x{width} codes, {sum(counts)} tokens, ratio "
        f"{data['compression_ratio']:.3f}"
    )
    return data, [line]


def _quantizer(args: Namespace) -> tuple[Any, Any]:
    """The quantizer and its image processor: those of --quantizer, else of the checkpoint."""
    if args.quantizer is not None:
        return load_quantizer(args.quantizer)
    from ..processing.processing_being_vl import BeingVLProcessor

    if not (Path(args.bpe) / "tokenizer_config.json").exists() and Path(args.bpe).exists():
        raise ValueError(
            f"{args.bpe} is a vocabulary without a quantizer: --image needs --quantizer, or a checkpoint "
            "in place of the vocabulary"
        )
    with reading(args.bpe):
        processor = BeingVLProcessor.from_pretrained(args.bpe)
        return processor.vq_model, processor.image_processor
