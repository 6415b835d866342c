"""A folder of files as people have them, and what `being-vl encode` must say of it.

    PYTHONPATH=.:tests/data:… python tests/data/odd_folder.py --count 2000

`make_folder` writes every mode and format that Pillow writes, broken halves, what macOS and Windows leave, formats
that need a plugin, drawings, links, names in five scripts, and returns what it made: for each name "read", or why it
must be missing. The script encodes the folder with the command and prints the counts as one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image, features

MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "F",
    "RGBa",
)
FORMATS = {  # Pillow's name → extension
    "AVIF": ".avif", "BLP": ".blp", "BMP": ".bmp", "DDS": ".dds", "DIB": ".dib", "GIF": ".gif", "ICNS": ".icns",
    "ICO": ".ico", "IM": ".im", "JPEG": ".jpg", "JPEG2000": ".jp2", "MPO": ".mpo", "MSP": ".msp", "PCX": ".pcx",
    "PNG": ".png", "PPM": ".ppm", "QOI": ".qoi", "SGI": ".sgi", "TGA": ".tga", "TIFF": ".tiff", "WEBP": ".webp",
    "XBM": ".xbm",
}  # fmt: skip
NO_PICTURES = {  # Pillow writes them, but they are programs, pages or e-ink formats that it cannot read
    "EPS": ".eps", "PALM": ".palm", "PDF": ".pdf",
}  # fmt: skip
NAMES = (
    "Ελληνικά {}", "Фото {}", "写真 {}", "صورة {}", "चित्र {}", "a::b {}", "#{}", "50% {}", "a b+c {}", "x;y {}", "%20{}",
    "https:__{}", "{}.tar", "~{}", "-{}", "'{}'", "é{}", "e\u0301{}", "😀{}", "IMG_{} (1)", "back\\slash{}", "[{}]", "*{}",
    "$HOME{}", "line\nbreak{}",
)  # fmt: skip
READ, BROKEN = "read", "broken"


def make_folder(folder: Path, count: int, seed: int = 0) -> dict[str, str]:
    """Write about `count` files; name → "read", "broken", or the reason why it is left out."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    made: dict[str, str] = {}
    kinds = (
        [_picture] * 12
        + [_half] * 3
        + [_hidden, _macos, _plugin, _drawing, _other, _link, _not_what_it_says]
    )
    number = 0
    while len(made) < count:
        kinds[number % len(kinds)](folder, made, number, rng)
        number += 1
    _links_to_folders(folder, made)
    return made


def _place(
    folder: Path, number: int, rng: random.Random, extension: str, *, stem: str = ""
) -> tuple[Path, str]:
    below = rng.choice(["", "a/", "b c/", "ф/文/", "deep/er/and/deeper/"])
    name = below + (stem or NAMES[number % len(NAMES)].format(number)) + extension
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, name


def _saved(number: int, rng: random.Random) -> tuple[bytes, str]:
    """A picture of the next mode and format that go together, and its extension."""
    names = list(FORMATS)
    for step in range(10_000):
        at = number + step
        kind, mode = names[at % len(names)], MODES[(at // len(names)) % len(MODES)]
        if kind == "AVIF" and not features.check("avif"):
            continue
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
        out = io.BytesIO()
        try:
            picture = _in_mode(Image.fromarray(pixels), mode)
            picture.save(out, kind, **({"save_all": True} if kind == "MPO" else {}))
        except (OSError, ValueError, KeyError):
            continue  # the format has no such mode
        return out.getvalue(), FORMATS[kind]
    raise AssertionError("no mode and format go together")


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode in ("I", "F"):  # of a range that pictures have
        return picture.convert("L").convert(mode)
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    if mode == "LAB":
        from PIL import ImageCms

        return ImageCms.profileToProfile(
            picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    if mode in ("PA", "RGBa", "LA"):
        picture = picture.convert({"PA": "P", "RGBa": "RGBA", "LA": "RGBA"}[mode])
    return picture.convert(mode)


def _picture(folder: Path, made: dict[str, str], number: int, rng: random.Random) -> None:
    content, extension = _saved(number, rng)
    path, name = _place(folder, number, rng, rng.choice([extension, extension.upper()]))
    path.write_bytes(content)
    made[name] = READ


def _half(folder: Path, made: dict[str, str], number: int, rng: random.Random) -> None:
    """A download that stopped, or nothing at all."""
    content = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
    kind = rng.choice(["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
    Image.fromarray(noise).save(content, kind)
    path, name = _place(folder, number, rng, FORMATS[kind])
    path.write_bytes(
        content.getvalue()[: len(content.getvalue()) // 2 if rng.random() < 0.7 else 0]
    )
    made[name] = BROKEN


def _hidden(folder: Path, made: dict[str, str], number: int, rng: random.Random) -> None:
    content, extension = _saved(number, rng)
    stem = rng.choice([f".copy {number}", f".thumbnails/{number}", f".{number}"])
    path, name = _place(folder, number, rng, extension, stem=stem)
    path.write_bytes(content)
    made[name] = "hidden"


def _macos(folder: Path, made: dict[str, str], number: int, rng: random.Random) -> None:
    stem = rng.choice([f"._IMG {number}", f"__MACOSX/{number}", f"__MACOSX/._{number}"])
    path, name = _place(folder, number, rng, ".jpg", stem=stem)
    path.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    made[name] = "made by macOS beside a file"


def _plugin(folder: Path, made: dict[str, str], number: int, rng: random.Random) -> None:
    extension = rng.choice([".heic", ".HEIC", ".heif", ".jxl"])
    path, name = _place(folder, number, rng, extension)
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(40))
    package, module = (
        ("pillow-jxl-plugin", "pillow_jxl")
        if extension == ".jxl"
        else ("pillow-heif", "pillow_heif")
    )
    needs = f"{extension.lower()} needs pip install {package}"
    made[name] = BROKEN if importlib.util.find_spec(module) else needs


def _drawing(folder: Path, made: dict[str, str], number: int, rng: random.Random) -> None:
    kind = rng.choice(["SVG", *NO_PICTURES])
    extension = NO_PICTURES.get(kind, ".svg")
    path, name = _place(folder, number, rng, extension)
    if kind == "SVG":
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    else:
        Image.new("P" if kind == "PALM" else "RGB", (8, 8)).save(path, kind)
    made[name] = f"no image: {extension}"


def _other(folder: Path, made: dict[str, str], number: int, rng: random.Random) -> None:
    extension = rng.choice([".txt", ".mp4", ".db", ".zip", ".json", ".crdownload", ""])
    stem = f"file {number}" if extension != ".db" else f"Thumbs{number}"
    path, name = _place(folder, number, rng, extension, stem=stem)
    path.write_bytes(b"not a picture")
    made[name] = f"no image: {extension}" if extension else "no image: no extension"


def _link(folder: Path, made: dict[str, str], number: int, rng: random.Random) -> None:
    path, name = _place(folder, number, rng, ".png")
    way = rng.choice(["picture", "nothing", "itself", "zero", "pipe"])
    if way == "picture":
        target = folder.parent / f"{folder.name}-targets" / f"{number}.png"
        target.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (number % 256, 0, 0)).save(target)
        path.symlink_to(target)
    elif way == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(
            {"nothing": "/nonexistent.png", "itself": path.name, "zero": "/dev/zero"}[way]
        )
    made[name] = READ if way == "picture" else BROKEN


def _not_what_it_says(folder: Path, made: dict[str, str], number: int, rng: random.Random) -> None:
    """A JPEG that is a WebP, a page of an error, a picture of a billion pixels."""
    extension = rng.choice([".jpg", ".png"])
    path, name = _place(folder, number, rng, extension)
    way = rng.choice(["webp", "page", "huge"])
    if way == "webp":
        Image.new("RGB", (20, 20)).save(path, "WEBP")
    elif way == "page":
        path.write_text("<html>404</html>")
    else:
        Image.new("1", (30_000, 30_000)).save(path, "PNG")
    made[name] = READ if way == "webp" else BROKEN


def _links_to_folders(folder: Path, made: dict[str, str]) -> None:
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    made["loop"] = "a link to a folder"


def check_encoded(made: dict[str, str], output: Path) -> dict[str, int]:
    """Compare what `encode` wrote with what was made, name by name; returns the counts."""
    from being_vl.codes.shards import CodeShards

    read = CodeShards(output).image_ids()
    lines = [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]
    found = dict.fromkeys(read, READ)
    for line in lines:
        reason = line["reason"]
        found[line["image_id"]] = (
            reason.removeprefix("left out: ") if line["shard"] is None else BROKEN
        )
    assert len(read) + len(lines) == len(found) == len(made)
    wrong = {
        name: (made.get(name), found.get(name)) for name in made if made[name] != found.get(name)
    }
    assert not wrong, list(wrong.items())[:5]
    manifest = json.loads((output / "manifest.json").read_text())
    counts = Counter(made.values())
    assert (manifest["images"], manifest["skipped"]) == (counts[READ], counts[BROKEN])
    left_out = {reason: count for reason, count in counts.items() if reason not in (READ, BROKEN)}
    assert manifest["left_out"] == left_out
    assert all("0x" not in line["reason"] for line in lines)  # no address of an object
    return dict(counts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    from encode_fixtures import make_processor, make_quantizer

    from being_vl.cli import main as command

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = make_folder(folder / "files", args.count, args.seed)
        make_quantizer().save_pretrained(folder / "vq")
        make_processor().save_pretrained(folder / "vq")
        words = f"encode --images {folder}/files --quantizer {folder}/vq --output {folder}/out --on-error skip --workers 0"
        started = time.process_time()
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            assert command(words.split()) == 0, said.getvalue()
        seconds = round(time.process_time() - started, 1)
        print(said.getvalue(), file=sys.stderr)
        print(
            json.dumps(
                {"files": len(made), "CPU seconds": seconds, **check_encoded(made, folder / "out")}
            )
        )


if __name__ == "__main__":
    main()
