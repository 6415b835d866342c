"""tokens → images: token shapes as text and as PNG, and tokens drawn over an image.

Needs Pillow only. A code's colour is a fixed function of its number, so that equal
codes look equal in every drawing.
"""

import colorsys
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import new_file
from .image_bpe import ImageBPE

_BACKGROUND = (255, 255, 255)
_INK = (30, 30, 30)
_LINE = (255, 64, 32)
_CELL = 14
_LABEL = 14
_GAP = 10
_SHEET_WIDTH = 960  # pixels
_SHEET_COLUMNS = 8  # frames


def code_colour(code: int) -> tuple[int, int, int]:
    """A colour for a code; neighbouring numbers get distant hues."""
    hue = code * 0.6180339887498949 % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.45 + 0.4 * (code * 0.37 % 1.0), 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def token_text(bpe: ImageBPE, visual_id: int) -> list[str]:
    """A token's shape as lines of text, two characters a cell."""
    cells = bpe.cells(visual_id)
    left = min(col for _, col, _ in cells)
    width = max(col for _, col, _ in cells) - left + 1
    lines = [["··"] * width for _ in range(cells[-1][0] + 1)]
    for row, col, _ in cells:
        lines[row][col - left] = "██"
    return ["".join(line) for line in lines]


def token_sheet(
    bpe: ImageBPE,
    visual_ids: Sequence[int],
    pixels: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Image.Image:
    """Tokens drawn side by side, each with its id.

    Args:
        pixels: codes (h, w) → uint8 (h × d, w × d, 3), such as a quantizer's decoder; without it a cell is a square
            in the colour of its code, as are those of tokens with the repeat code.
    """
    drawn = []
    for visual_id in visual_ids:
        cells = bpe.cells(visual_id)
        repeats = any(code == bpe.repeat_code for *_, code in cells)  # looks like nothing by itself
        drawn.append(_token_image(cells, None if repeats else pixels))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox
    labels = [measure((0, 0), str(visual_id)) for visual_id in visual_ids]
    above = max([_LABEL, *(round(bottom) + 2 for *_, bottom in labels)])
    places, x, y, line = [], _GAP, _GAP, 0
    for image, (_, _, right, _) in zip(drawn, labels, strict=True):
        box = max(image.width, round(right))
        if x > _GAP and x + box + _GAP > _SHEET_WIDTH:
            x, y, line = _GAP, y + line + _GAP, 0
        places.append((x, y))
        x += box + _GAP
        line = max(line, above + image.height)
    sheet = Image.new("RGB", (_SHEET_WIDTH, y + line + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for visual_id, image, (x, y) in zip(visual_ids, drawn, places, strict=True):
        draw.text((x, y), str(visual_id), fill=_INK)
        sheet.paste(image, (x, y + above))
    return sheet


def _token_image(
    cells: list[tuple[int, int, int]], pixels: Callable[[np.ndarray], np.ndarray] | None
) -> Image.Image:
    """One token on the background; the cells around it are its first code's while a decoder draws them."""
    left = min(col for _, col, _ in cells)
    shape = cells[-1][0] + 1, max(col for _, col, _ in cells) - left + 1
    grid = np.full(shape, cells[0][2], np.int32)
    covered = np.zeros(shape, bool)
    for row, col, code in cells:
        grid[row, col - left], covered[row, col - left] = code, True
    if pixels is None:
        image = Image.new("RGB", (_CELL * shape[1], _CELL * shape[0]), _BACKGROUND)
        draw = ImageDraw.Draw(image)
        for row, col in np.argwhere(covered).tolist():
            square = (_CELL * col, _CELL * row, _CELL * (col + 1) - 1, _CELL * (row + 1) - 1)
            draw.rectangle(square, fill=code_colour(int(grid[row, col])), outline=_INK)
        return image
    values = np.array(pixels(grid))
    side = values.shape[0] // shape[0]
    values[~np.kron(covered, np.ones((side, side), bool))] = _BACKGROUND
    scale = max(1, -(-_CELL // side))
    size = (values.shape[1] * scale, values.shape[0] * scale)
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


def token_map(bpe: ImageBPE, ids: Sequence[int], height: int, width: int) -> np.ndarray:
    """int32 (height, width): which of ids covers each cell; errors as of ImageBPE.decode."""
    bpe.decode(ids, height, width)
    owner = np.full((height, width), -1, dtype=np.int32)
    for index, visual_id in enumerate(ids):
        row, col = divmod(int((owner.reshape(-1) < 0).argmax()), width)
        for cell_row, cell_col, _ in bpe.cells(int(visual_id)):
            owner[row + cell_row, col + cell_col] = index
    return owner


def draw_tokens(image: Image.Image, owner: np.ndarray) -> Image.Image:
    """The image with the borders of its tokens; owner is what token_map returns."""
    height, width = owner.shape
    drawn = image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    xs = [round(col * image.width / width) for col in range(width + 1)]
    ys = [round(row * image.height / height) for row in range(height + 1)]
    for row, col in np.argwhere(owner[:, 1:] != owner[:, :-1]).tolist():
        draw.line((xs[col + 1], ys[row], xs[col + 1], ys[row + 1]), fill=_LINE)
    for row, col in np.argwhere(owner[1:] != owner[:-1]).tolist():
        draw.line((xs[col], ys[row + 1], xs[col + 1], ys[row + 1]), fill=_LINE)
    return drawn


def contact_sheet(
    frames: Sequence[Image.Image], titles: Sequence[str] | None = None
) -> Image.Image:
    """Frames of one size in rows, each under its title; numbered by default."""
    names = [str(number) for number in range(len(frames))] if titles is None else titles
    starts = range(0, len(frames), _SHEET_COLUMNS)
    rows = [slice(start, start + _SHEET_COLUMNS) for start in starts]
    strips = [side_by_side(frames[row], names[row]) for row in rows]
    sheet = Image.new(
        "RGB", (max(s.width for s in strips), sum(s.height for s in strips)), _BACKGROUND
    )
    y = 0
    for strip in strips:
        sheet.paste(strip, (0, y))
        y += strip.height
    return sheet


def save_animation(
    frames: Sequence[Image.Image], path: str | os.PathLike, seconds: float = 0.25
) -> None:
    """Write frames of one size as an animated WebP (or GIF, by the name), each for so long, without loss and without end.

    Frames that are as the one before become one with it, that stands longer.
    """
    first, *others = (frame.convert("RGB") for frame in frames)
    save_image(
        first,
        path,
        save_all=True,
        append_images=others,
        duration=max(1, round(1000 * seconds)),
        loop=0,
        lossless=True,
        minimize_size=False,
    )


def save_image(image: Image.Image, path: str | os.PathLike, **options: Any) -> None:
    """Write an image in the format that its name says, whole or not at all; options as of Pillow's `save`."""
    with new_file(path) as aside:
        image.save(aside, **options)


def enlarged(image: Image.Image, least: int) -> Image.Image:
    """A small image in whole multiples of its size, its smaller side `least` pixels or more, so that cells stay sharp."""
    scale = max(1, -(-least // min(image.size)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def side_by_side(images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Images of one height next to each other, each under its title, whose letters grow with the images."""
    height = max(image.height for image in images)
    width = sum(image.width for image in images) + _GAP * (len(images) + 1)
    letters = max(_LABEL, height // 20)
    font = ImageFont.load_default(0.75 * letters)
    sheet = Image.new("RGB", (width, height + letters + 2 * _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    x = _GAP
    for image, title in zip(images, titles, strict=True):
        draw.text((x, _GAP // 2), title, fill=_INK, font=font)
        sheet.paste(image.convert("RGB"), (x, _GAP + letters))
        x += image.width + _GAP
    return sheet
