"""A stand-in for openclipart: strokes in three colours in folders of three kinds, and what must be left out."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

INKS = {"red": (220, 20, 20), "blue": (30, 70, 200), "green": (30, 150, 40)}


def draw(path: Path, ink: tuple[int, int, int], seed: int, *, moved: int = 0) -> None:
    """A few random strokes in one colour on a transparent page, in its middle."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGBA", (120, 120), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    for x0, y0, x1, y1 in rng.integers(20, 100, (4, 4)).tolist():
        pen.line((x0 + moved, y0, x1, y1), fill=(*ink, 255), width=14)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def draw_all(folder: Path) -> Path:
    """92 drawings of three kinds that count, and 16 files that do not."""
    for kind, place in enumerate(("animals/birds", "food/fruit", "tools")):
        for number, ink in enumerate(list(INKS.values()) * 10):
            draw(folder / place / f"some_{number}_ganson_01.png", ink, 100 * kind + number)
    for number in range(5):
        draw(folder / "unsorted" / f"{number}.png", INKS["red"], 900 + number)
        draw(folder / "office/telephone" / f"{number}.png", INKS["red"], 950 + number)
    near = folder / "tools/near"
    for number in range(6):  # the same drawing with one pixel more, six times
        draw(near / f"{number}.png", INKS["red"], 999, moved=number // 3)
    (folder / "tools/broken.png").write_bytes(b"\x89PNG no picture")
    Image.new("RGBA", (9, 9)).save(folder / "tools/empty.png")
    return folder
