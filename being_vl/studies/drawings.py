"""a folder of drawings that people made → a benchmark with a fixed split: images, questions and captions.

    apt-get download openclipart-png && dpkg-deb -x openclipart-png_*.deb clipart    # 8,121 drawings
    python -m being_vl.studies.drawings --images clipart/usr/share/openclipart/png --output drawings

Not in the papers. Openclipart's drawings are in the public domain; their folders say what they show, their names
what they are called. How questions and split are made: docs/drawings.md. Nothing is random: two runs write the
same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation.easyvqa_files import llava_row
from ..files import new_folder, write_atomic, write_json
from ..quantizers.image_loading import UnreadableImageError, load_image
from .drawing_kinds import kind_of, main_color, title_of

FEWEST_OF_A_KIND, MOST_OF_A_KIND = 20, 160  # stars and icons are a third of all drawings
TEST_SHARE = 0.15
NEAR = 0.12  # mean difference of two thumbnails, of the ink of the darker one
TYPES = ("kind", "yes_no", "which", "color")
KIND_QUESTION, COLOR_QUESTION = "what kind of thing is this?", "what is the main color?"
CAPTION_QUESTION = "what is this called?"


@dataclass(frozen=True)
class Drawing:
    """One drawing of the benchmark."""

    name: str  # its path in the source, without extension
    kind: str  # what its folder says that it is
    color: str  # most of its pixels'
    title: str  # its name, without numbers and who drew it
    pixels: np.ndarray  # uint8 (side, side, 3), on a white ground
    split: str = "train"  # or test

    @property
    def file(self) -> str:
        """Its image, below the folder of its split."""
        return f"images/{self.name.replace('/', '.')}.png"


def fraction(*parts: str) -> float:
    """A number in [0, 1) that the texts decide, the same on every machine."""
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def read_drawing(source: Path, path: Path, side: int) -> Drawing | None:
    """A drawing of a known kind; None where the kind is not known, or where nothing is drawn."""
    name = path.relative_to(source).with_suffix("").as_posix()
    kind = kind_of(name.rpartition("/")[0])
    if kind is None:
        return None
    picture = load_image(path)  # refuses what is broken or too large
    with Image.open(path) as image:
        alpha = image.convert("RGBA").getchannel("A")
    box = alpha.getbbox()  # some lie small in a corner of their page
    if box is None:
        return None
    picture, alpha = picture.crop(box), alpha.crop(box)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    color = main_color(np.asarray(picture), np.asarray(alpha.resize(picture.size)))
    ground = Image.new("RGB", (side, side), "white")
    ground.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return Drawing(name, kind, color, title_of(path.stem), np.asarray(ground))


def near_duplicates(pixels: Sequence[np.ndarray], near: float = NEAR) -> np.ndarray:
    """Group of each image: its thumbnail of 16×16 pixels differs from one of the group by less than `near`.

    Args:
        pixels: uint8 (side, side, 3) each.
        near: mean absolute difference, as a share of the mean ink (1 - value) of the darker image; images
            that are mostly ground would all be alike otherwise.

    Returns:
        int64 (images,): the number of the group's first image.
    """
    small = [np.asarray(Image.fromarray(p).resize((16, 16), Image.Resampling.BOX)) for p in pixels]
    thumbs = 1 - np.stack(small).reshape(len(small), -1).astype(np.float32) / 255  # ink
    ink = np.maximum(thumbs.mean(1), 0.02)
    group = np.arange(len(thumbs))
    for i in range(1, len(thumbs)):
        difference = np.abs(thumbs[:i] - thumbs[i]).mean(1)
        alike = np.flatnonzero(difference < near * np.maximum(ink[:i], ink[i]))
        if len(alike):
            joined = np.unique(group[alike])
            group[np.isin(group, joined)] = joined[0]
            group[i] = joined[0]
    return group


def make_drawings(source: Path, side: int) -> tuple[list[Drawing], Counter[str]]:
    """Drawings with their splits, in the order of their names, and how many were left out for what reason."""
    found, left_out = [], Counter[str]()
    same: set[bytes] = set()
    for path in sorted(source.rglob("*.png")):
        try:
            drawing = read_drawing(source, path, side)
        except UnreadableImageError:
            left_out["unreadable"] += 1
            continue
        if drawing is None:
            left_out["of no kind, or empty"] += 1
        elif (digest := hashlib.sha256(drawing.pixels.tobytes()).digest()) in same:
            left_out["the same pixels as another"] += 1
        else:
            same.add(digest)
            found.append(drawing)
    by_kind: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in found:
        by_kind[drawing.kind].append(drawing)
    kept = [
        drawing
        for drawings in by_kind.values()
        if len(drawings) >= FEWEST_OF_A_KIND
        for drawing in sorted(drawings, key=lambda d: fraction("kept", d.name))[:MOST_OF_A_KIND]
    ]
    left_out["too few or more than enough of the kind"] = len(found) - len(kept)
    kept.sort(key=lambda d: d.name)
    firsts = near_duplicates([d.pixels for d in kept]).tolist() if kept else []
    chances = [fraction("split", kept[first].name) for first in firsts]  # near ones on one side
    splits = ["test" if chance < TEST_SHARE else "train" for chance in chances]
    return [replace(d, split=split) for d, split in zip(kept, splits, strict=True)], left_out


def questions(drawing: Drawing, kinds: Sequence[str]) -> list[tuple[str, str, str]]:
    """Type, question and answer of each question about a drawing.

    `kinds` are those of all drawings: other kinds are named as often as they are answers.
    """

    def other(purpose: str) -> str:
        """A kind that is not the drawing's."""
        others = [kind for kind in kinds if kind != drawing.kind]
        return others[int(fraction(purpose, drawing.name) * len(others))]

    is_yes = fraction("yes", drawing.name) < 0.5
    asked = drawing.kind if is_yes else other("no")
    two = [drawing.kind, other("which")]
    if fraction("order", drawing.name) < 0.5:
        two.reverse()
    return [
        ("kind", KIND_QUESTION, drawing.kind),
        ("yes_no", f"is this of the kind {asked}?", "yes" if is_yes else "no"),
        ("which", f"is the kind {two[0]} or {two[1]}?", drawing.kind),
        ("color", COLOR_QUESTION, drawing.color),
    ]


def _row(drawing: Drawing, kind: str, question: str, answer: str) -> dict[str, Any]:
    """`type` groups the scores of `being-vl eval --tasks llava`."""
    row = llava_row(drawing.file, f"#{kind}", question, answer, type=kind)
    return {**row, "id": f"{drawing.name}#{kind}"}


def guessing(train: Iterable[dict], test: Iterable[dict]) -> dict[str, float]:
    """Accuracy in % without the image, by type: to each question its commonest training answer."""
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        question, answer = (turn["value"] for turn in row["conversations"])
        said[question][answer] += 1
        said[row["type"]][answer] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    for row in test:
        question, answer = (turn["value"] for turn in row["conversations"])
        if row["type"] == "which":  # the commoner of the two, by how often they are a kind
            two = re.findall(r"kind (.+) or (.+)\?", question)[0]
            guess = max(two, key=lambda kind: said["kind"][kind])
        else:
            guess = (said.get(question) or said[row["type"]]).most_common(1)[0][0]
        right[row["type"]].append(guess == answer)
    return {kind: 100 * float(np.mean(hits)) for kind, hits in right.items()}


def write_drawings(source: Path, output: Path, side: int = 64) -> dict[str, Any]:
    """Write `OUTPUT/SPLIT/images/NAME.png`, `…/questions.json`, `…/captions.json`, and `drawings.json`.

    Args:
        source: holds the folders of `KINDS`.
        output: must not be there yet; appears whole.
        side: pixels of a side.

    Returns:
        what `drawings.json` holds.

    Raises:
        ValueError: no drawing of a known kind, or all of them on one side of the split.
    """
    drawings, left_out = make_drawings(source, side)
    by_split = {split: [d for d in drawings if d.split == split] for split in ("train", "test")}
    if not all(by_split.values()):
        counts = {split: len(part) for split, part in by_split.items()}
        raise ValueError(
            f"--images {source}: both splits need drawings in folders such as animals/birds, got {counts}"
        )
    kinds = [drawing.kind for drawing in drawings]
    rows: dict[str, list[dict]] = {}
    with new_folder(output) as partial:
        for split, part in by_split.items():
            folder = partial / split
            (folder / "images").mkdir(parents=True)
            for drawing in part:
                Image.fromarray(drawing.pixels).save(folder / drawing.file)
            rows[split] = [_row(d, *asked) for d in part for asked in questions(d, kinds)]
            captions = [_row(d, "caption", CAPTION_QUESTION, d.title) for d in part if d.title]
            write_atomic(folder / "questions.json", json.dumps(rows[split], indent=0))
            write_atomic(folder / "captions.json", json.dumps(captions, indent=0))
        by_kind = Counter((d.kind, d.split) for d in drawings)
        facts = {
            "drawings": {split: len(part) for split, part in by_split.items()},
            "questions": {split: len(part) for split, part in rows.items()},
            "left_out": dict(sorted(left_out.items())),
            "kinds": {
                kind: [by_kind[kind, "train"], by_kind[kind, "test"]] for kind in sorted(set(kinds))
            },
            "without_looking": guessing(rows["train"], rows["test"]),
        }
        write_json(partial / "drawings.json", facts)
    return facts


def main() -> int:
    """Make the benchmark and print what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of drawings")
    parser.add_argument("--output", type=Path, required=True, help="folder of the benchmark")
    parser.add_argument("--side", type=int, default=64, help="pixels of a side")
    args = parser.parse_args()
    try:
        facts = write_drawings(args.images, args.output, args.side)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
