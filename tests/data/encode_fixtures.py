"""Small images and a small quantizer for the tests of `being-vl encode`."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from being_vl import BeingVLImageProcessor, BeingVLPatchVQConfig, BeingVLPatchVQModel

CODEBOOK_SIZE = 32


def make_quantizer() -> BeingVLPatchVQModel:
    """A codebook of random patches of 4×4 pixels."""
    torch.manual_seed(0)
    return BeingVLPatchVQModel(BeingVLPatchVQConfig(num_embeddings=CODEBOOK_SIZE)).eval()


def make_processor(*, crop: bool = True) -> BeingVLImageProcessor:
    """To 16×16, or, without a crop, to a shortest edge of 16 and multiples of 4."""
    size = {"height": 16, "width": 16}
    return BeingVLImageProcessor(
        size={"shortest_edge": 16}, crop_size=size, do_center_crop=crop, size_divisor=4
    )


def make_images(folder: Path, count: int = 10, *, seed: int = 0) -> list[str]:
    """PNG files of several sizes in two levels of folders; returns their ids, sorted."""
    rng = np.random.default_rng(seed)
    names = [f"{'abc'[i % 3]}/{i:03d}.png" for i in range(count)]
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 4 + i % 3, 3), np.uint8)
        Image.fromarray(coarse).resize((20 + 8 * (i % 3), 20)).save(path)
    return sorted(names)


def write_tar(file: Any, members: Mapping[str, bytes], mode: str = "w") -> None:
    """A tar of these members, at a path or into an open file."""
    where = {"name": file} if isinstance(file, Path) else {"fileobj": file}
    with tarfile.open(mode=mode, **where) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def shard_bytes(folder: Path) -> dict[str, str]:
    """Name → sha256 of every shard and of the lists beside them."""
    shards = [*folder.glob("*.parquet"), *folder.glob("*.tar")]
    files = [*shards, folder / "manifest.json", folder / "skipped.jsonl"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
