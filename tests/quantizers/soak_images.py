"""Mutated picture files through the image processor and a small VQ-GAN: codes, or an error with the path.

    python tests/quantizers/soak_images.py --files 10000

Every file starts as a good one of some format and mode, and gets bytes overwritten, removed, inserted or
cut off. Anything but codes of the right shape or an `UnreadableImageError` that names the path ends the
run with the offending file kept.
"""

import argparse
import collections
import io
import resource
import tempfile
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from tqdm import tqdm

from being_vl import BeingVLImageProcessor, BeingVLVQConfig, BeingVLVQModel
from being_vl.quantizers.image_loading import UnreadableImageError

KINDS = [
    ("PNG", "RGB"),
    ("PNG", "RGBA"),
    ("PNG", "P"),
    ("PNG", "LA"),
    ("PNG", "1"),
    ("PNG", "I;16"),
    ("JPEG", "RGB"),
    ("JPEG", "L"),
    ("JPEG", "CMYK"),
    ("GIF", "P"),
    ("WEBP", "RGBA"),
    ("TIFF", "RGB"),
    ("TIFF", "F"),
    ("BMP", "RGB"),
    ("PPM", "RGB"),
    ("TGA", "RGBA"),
    ("JPEG2000", "RGB"),
    ("ICO", "RGBA"),
]


def good_file(kind: tuple[str, str], rng: np.random.Generator) -> bytes:
    image = PIL.Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    if kind[1] == "I;16":
        image = PIL.Image.fromarray(rng.integers(0, 2**16, (24, 32), dtype=np.uint16))
    elif kind[1] != "RGB":
        image = image.convert(kind[1])
    buffer = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    options = {"exif": exif} if kind[0] in ("PNG", "JPEG", "WEBP") else {}
    image.save(buffer, format=kind[0], **options)
    return buffer.getvalue()


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 12))):
        # headers matter most, so half of the mutations go there
        reach = min(len(data), 64) if rng.random() < 0.5 else len(data)
        at = int(rng.integers(reach)) if reach else 0
        match int(rng.integers(4)):
            case 0:
                data[at : at + 1] = bytes([int(rng.integers(256))])
            case 1:
                del data[at : at + int(rng.integers(1, 9))]
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 3 if rng.random() < 0.2:
                del data[at:]
    return bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BeingVLVQConfig(
        base_channels=8,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=1,
        num_embeddings=64,
        embed_dim=8,
        latent_channels=8,
        resolution=32,
        norm_num_groups=4,
        has_decoder=False,
    )
    model = BeingVLVQModel(config).eval()
    processor = BeingVLImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    rng = np.random.default_rng(args.seed)
    counts: collections.Counter[str] = collections.Counter()
    path = Path(tempfile.mkdtemp()) / "mutated.bin"
    for index in tqdm(range(args.files), mininterval=10):
        kind = KINDS[index % len(KINDS)]
        path.write_bytes(mutate(good_file(kind, rng), rng))
        try:
            codes = model.encode(processor(path, return_tensors="pt")["pixel_values"])
            assert codes.shape == (1, 8, 8), codes.shape
            counts["codes"] += 1
        except UnreadableImageError as error:
            assert str(path) in str(error) and "\n" not in str(error), f"{path}: {error}"
            counts["error with the path"] += 1
    path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{dict(counts)}, peak {peak:.0f} MB")


if __name__ == "__main__":
    main()
