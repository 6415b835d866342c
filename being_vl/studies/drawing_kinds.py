"""a drawing's folder, name and pixels → its kind, title and main colour, as docs/drawings.md tells."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

# The longest folder that a drawing lies in decides its kind; drawings of other folders are left out.
KINDS = {
    "animals/birds": "bird", "animals/bugs": "bug", "animals/dinosaurs": "dinosaur",
    "animals/fish": "fish", "animals/mammals": "mammal",
    "buildings": "building", "buildings/furniture": "furniture",
    "computer/buttons": "button", "computer/folders": "folder", "computer/hardware": "computer",
    "computer/icons": "icon", "education/books": "book", "electronics/bulb": "light bulb",
    "food": "dish", "food/beverages": "drink", "food/desserts": "dessert", "food/fruit": "fruit",
    "food/vegetables": "vegetable",
    "geography": "map", "geography/astronomy": "planet", "science/astronomy": "planet",
    "office/telephone": "telephone",
    "people": "person", "people/bodypart": "body part", "people/clothing": "clothing",
    "people/smilies": "smiley", "people/stickmen": "stick figure",
    "plants": "plant", "plants/flowers": "flower", "plants/trees": "tree",
    "recreation/games/cards": "playing card", "recreation/games/chess": "chess piece",
    "recreation/holiday/valentines": "heart", "recreation/music": "music",
    "recreation/sports": "sport", "recreation/toys": "toy",
    "shapes/arrows": "arrow", "shapes/callouts": "callout", "shapes/flowchart": "flowchart symbol",
    "shapes/jigsaw": "jigsaw piece", "shapes/stars": "star",
    "signs_and_symbols/clocks": "clock", "signs_and_symbols/flags": "flag",
    "signs_and_symbols/led": "lamp", "signs_and_symbols/map_symbols": "sign",
    "signs_and_symbols/weather": "weather", "transportation/aiga-symbols": "sign",
    "transportation/roadsigns": "road sign",
    "special/patterns": "pattern",
    "tools": "tool", "tools/weapons": "weapon",
    "transportation": "vehicle", "transportation/boating": "boat",
}  # fmt: skip
# Names end in that of who drew it, cut off at 20 to 30 characters; a name ends where one of these begins.
_AUTHORS = (
    "ganson architetto arch frances benji nicu gerald lumen juliane jean jon linda jarno andrea "
    "jonadab susan matthew clemente dan lauris ani frouke mo bw christoph mimooh denco sek kurt "
    "gino fco nathan nath francesco frolland einar stepan rollandin arjen erwan mateya daniel "
    "patricia konstantin aj ruud frederic nurbldoff snuatautisticido william page simple symbol"
).split()
_COLORS = {  # RGB of the eleven basic colour terms of English (Berlin and Kay), some by several
    "black": [(0, 0, 0), (35, 35, 35)], "white": [(255, 255, 255)],
    "gray": [(128, 128, 128), (90, 90, 90), (190, 190, 190)],
    "red": [(220, 20, 20), (150, 10, 20)], "orange": [(250, 140, 20)],
    "yellow": [(250, 230, 40), (250, 240, 140)], "green": [(30, 150, 40), (120, 210, 80), (20, 80, 30)],
    "blue": [(30, 70, 200), (90, 160, 230), (20, 30, 100)], "purple": [(130, 40, 160)],
    "pink": [(245, 150, 190)], "brown": [(120, 70, 30), (190, 140, 90)],
}  # fmt: skip
_COLOR_NAMES = [name for name, values in _COLORS.items() for _ in values]
_COLOR_VALUES = np.array([value for values in _COLORS.values() for value in values])


def kind_of(folder: str) -> str | None:
    """The kind of drawings in a folder of the source, by the longest entry of `KINDS` that it lies in."""
    while folder and folder != ".":
        if folder in KINDS:
            return KINDS[folder]
        folder = folder.rpartition("/")[0]
    return None


def title_of(stem: str) -> str:
    """`wooden_table_benji_park_01` → `wooden table`; empty where nothing is left."""
    words = [word for word in re.split(r"[^a-z]+", stem.lower()) if word]
    kept = next((i for i, word in enumerate(words) if i and word in _AUTHORS), len(words))
    return " ".join(word for word in words[:kept] if len(word) > 1)


def main_color(rgb: np.ndarray, alpha: np.ndarray) -> str:
    """The nearest basic colour of most opaque pixels; white only where next to nothing else is.

    Args:
        rgb: uint8 (height, width, 3).
        alpha: uint8 (height, width); the ground is 0.
    """
    pixels = rgb[alpha > 127].astype(int)
    distances = ((pixels[:, None] - _COLOR_VALUES) ** 2).sum(-1)
    counts = Counter(_COLOR_NAMES[nearest] for nearest in distances.argmin(1))
    others = {color: count for color, count in sorted(counts.items()) if color != "white"}
    if not others or sum(others.values()) < 0.05 * len(pixels):
        return "white"
    return max(others, key=others.__getitem__)
