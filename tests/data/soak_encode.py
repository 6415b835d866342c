"""Soaks of `being-vl encode`, too long for the tests: kills, a full disk, mutated images.

    python tests/data/soak_encode.py kills --count 50
    python tests/data/soak_encode.py full-disk --folder A_FOLDER_ON_A_SMALL_FILE_SYSTEM
    python tests/data/soak_encode.py mutations --count 10000

A small file system: mount -t tmpfs -o size=1m tmpfs A_FOLDER. Each prints one line of JSON, and fails with
an assertion.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from encode_fixtures import shard_bytes
from PIL import Image

from being_vl import BeingVLImageProcessor, BeingVLVQConfig, BeingVLVQModel
from being_vl.cli import main as being_vl_command
from being_vl.codes.shards import CodeShards


def make_inputs(folder: Path, count: int) -> tuple[Path, Path]:
    """A folder of pictures, and a small VQ-GAN with its image processor."""
    rng = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    for i in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((40 + i % 7, 40)).save(images / f"{i:05d}.png")
    torch.manual_seed(0)
    config = BeingVLVQConfig(
        resolution=32, base_channels=8, channel_multiplier=[1, 1, 2], num_res_blocks=1, latent_channels=8,
        embed_dim=4, num_embeddings=256, norm_num_groups=4, has_decoder=False,
    )  # fmt: skip
    BeingVLVQModel(config).save_pretrained(folder / "quantizer")
    size = {"height": 32, "width": 32}
    BeingVLImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(
        folder / "quantizer"
    )
    return images, folder / "quantizer"


def encode(images: Path, quantizer: Path, output: Path, *flags: str) -> tuple[int, str]:
    """Run the command in this process; its status and what it wrote on standard error."""
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        status = being_vl_command(
            ["encode", "--images", str(images), "--quantizer", str(quantizer), "--output", str(output),
             "--shard-size", "50", "--device", "cpu", "--json", *flags]
        )  # fmt: skip
    lines = [line for line in error.getvalue().splitlines() if "error:" in line]
    return status, lines[-1] if lines else ""


def kills(count: int) -> dict[str, float]:
    """Kill the command at random moments, until `count` kills hit it while it ran."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, quantizer = make_inputs(folder, 600)
        encode(images, quantizer, folder / "warm-up", "--workers", "2")
        started = time.perf_counter()
        assert encode(images, quantizer, folder / "wanted", "--workers", "2")[0] == 0
        seconds = time.perf_counter() - started
        wanted = shard_bytes(folder / "wanted")
        rng = np.random.default_rng(0)
        output, hits, completed, leftovers = folder / "out", 0, 0, 0
        while hits < count or output.exists():
            child = os.fork()
            if child == 0:
                status, error = encode(images, quantizer, output, "--workers", "2")
                print(error, end="" if not error else "\n", flush=True)
                os._exit(status)
            if hits < count:
                time.sleep(float(rng.uniform(0, seconds)))
                os.kill(child, signal.SIGKILL)
            killed = os.WIFSIGNALED(outcome := os.waitpid(child, 0)[1])
            hits += killed
            leftovers += len(list(output.glob("*.tmp")))
            if not killed:
                assert outcome == 0, outcome
                assert shard_bytes(output) == wanted
                completed += 1
                shutil.rmtree(output)
        return {"kills": hits, "completed_runs": completed, "half_written_files_seen": leftovers,
                "undisturbed_seconds": round(seconds, 2)}  # fmt: skip


def full_disk(small: Path) -> dict[str, object]:
    """Fill a small file system, then a limit of the file size; give room, and run again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, quantizer = make_inputs(folder, 600)
        assert encode(images, quantizer, folder / "wanted")[0] == 0
        output = small / "out"
        assert shutil.disk_usage(small).total < 1 << 30, f"{small} is not a small file system"
        (small / "ballast").write_bytes(b"x" * (shutil.disk_usage(small).free - (40 << 10)))
        status, disk_error = encode(images, quantizer, output)
        assert status == 2, "the disk did not fill"
        assert not list(output.glob("*.tmp"))
        finished = len(list(output.glob("*.parquet")))
        (small / "ballast").unlink()
        assert encode(images, quantizer, output)[0] == 0
        assert shard_bytes(output) == shard_bytes(folder / "wanted")
        shutil.rmtree(output)

        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        status, limit_error = encode(images, quantizer, folder / "out")
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert status == 2
        assert encode(images, quantizer, folder / "out")[0] == 0
        assert shard_bytes(folder / "out") == shard_bytes(folder / "wanted")
        return {
            "shards_before_the_disk_was_full": finished,
            "disk_error": disk_error,
            "file_size_error": limit_error,
        }


def mutated(rng: np.random.Generator, seeds: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """A file with some bytes changed, cut out, doubled or cut off."""
    suffix, data = seeds[rng.integers(len(seeds))]
    changed = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        kind, at = rng.integers(4), int(rng.integers(len(changed) or 1))
        if kind == 0:
            changed[at : at + 1] = bytes([rng.integers(256)])
        elif kind == 1:
            del changed[at : at + int(rng.integers(1, 40))]
        elif kind == 2:
            changed[at:at] = changed[at : at + int(rng.integers(1, 40))]
        else:
            del changed[at + 1 :]
    return suffix, bytes(changed)


def mutations(count: int) -> dict[str, int]:
    """Mutated files of many formats: each ends with codes or with a reason, and none is left out."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
    modes = {
        "png": ("RGB", "RGBA", "L", "LA", "P", "1"), "gif": ("P", "L"), "jpeg": ("RGB", "L", "CMYK"),
        "bmp": ("RGB", "L", "1"), "tiff": ("RGB", "L", "RGBA", "CMYK"), "webp": ("RGB", "RGBA"),
        "ppm": ("RGB", "L"), "tga": ("RGB",),
    }  # fmt: skip
    seeds = []
    for suffix, some in modes.items():
        for mode in some:
            data = io.BytesIO()
            picture.convert(mode).save(data, format=suffix)
            seeds.append((suffix, data.getvalue()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, quantizer = make_inputs(folder, 0)
        for i in range(count):
            suffix, data = mutated(rng, seeds)
            (images / f"{i:05d}.{suffix}").write_bytes(data)
        status, error = encode(images, quantizer, folder / "out", "--on-error", "skip")
        assert status == 0, error
        made = CodeShards(folder / "out").image_ids()
        skipped = [json.loads(line) for line in (folder / "out" / "skipped.jsonl").open()]
        names = {path.name for path in images.iterdir()}
        assert set(made) | {line["image_id"] for line in skipped} == names
        assert len(made) + len(skipped) == count
        assert all(line["reason"] and "\n" not in line["reason"] for line in skipped)
        return {"files": count, "codes": len(made), "skipped": len(skipped)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("soak", choices=("kills", "full-disk", "mutations"))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # OpenMP does not survive the forks
    if args.soak == "full-disk" and args.folder is None:
        parser.error("full-disk needs --folder")
    result = {
        "kills": lambda: kills(args.count),
        "full-disk": lambda: full_disk(args.folder),
        "mutations": lambda: mutations(args.count),
    }[args.soak]()
    print(json.dumps({args.soak: result}))


if __name__ == "__main__":
    main()
