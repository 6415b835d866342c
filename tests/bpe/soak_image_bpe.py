"""Long checks of the image BPE, run by hand; each prints one line and stops at the first failure.

PYTHONPATH=. python tests/bpe/soak_image_bpe.py --grids 1000000 --law 5000 --mutations 10000 --clips 10000
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from image_bpe_fixtures import mutated_files, odd_grids, random_rules

from being_vl.bpe import ImageBPE, mark_repeats, naive, restore_repeats


def structured(rng, count, height, width, num_codes):
    """Smooth fields cut into codes: regions, edges and runs, as in quantized pictures."""
    coarse = rng.random((count, height // 4 + 2, width // 4 + 2))
    rows, cols = (
        np.linspace(0, coarse.shape[1] - 1.01, height),
        np.linspace(0, coarse.shape[2] - 1.01, width),
    )
    r, c = rows.astype(int), cols.astype(int)
    fr, fc = (rows - r)[:, None], (cols - c)[None]
    field = sum(
        coarse[:, r + dr][:, :, c + dc] * abs(1 - dr - fr) * abs(1 - dc - fc)
        for dr in (0, 1)
        for dc in (0, 1)
    )
    noise = rng.random(field.shape) < 0.05
    codes = (field * num_codes).astype(np.int32)
    codes[noise] = rng.integers(0, num_codes, noise.sum())
    return codes


def round_trips(count):
    """decode(encode(g)) == g on random and structured grids, learned and drawn vocabularies."""
    rng = np.random.default_rng(0)
    done = 0
    while done < count:
        num_codes = int(rng.choice([1, 2, 7, 64, 1024, 16384]))
        height, width = (int(side) for side in rng.integers(1, 41, 2))
        many = min(20_000, count - done)
        grids = structured(rng, many, height, width, num_codes)
        grids[::2] = rng.integers(0, num_codes, grids[::2].shape)
        sample = grids[rng.choice(many, min(many, 200), replace=False)]
        learned = ImageBPE.train(sample, num_merges=2000, codebook_size=num_codes)
        drawn = ImageBPE(random_rules(rng, num_codes, 2000), num_codes)
        for bpe, part in ((learned, grids[: many // 2]), (drawn, grids[many // 2 :])):
            ids = bpe.encode_batch(part)
            decoded = bpe.decode_batch(ids, height, width)
            if len(part) and not np.array_equal(np.stack(decoded), part):
                sys.exit(f"a {height}x{width} grid of {num_codes} codes did not come back")
            few = part[:100]
            compact = bpe.encode_batch(few, segmentation="compact")
            decoded = bpe.decode_batch(compact, height, width)
            if any(len(one) > len(other) for one, other in zip(compact, ids, strict=False)) or (
                len(few) and not np.array_equal(np.stack(decoded), few)
            ):
                sys.exit(f"compact: a {height}x{width} grid of {num_codes} codes")
        done += many
        print(f"\r{done} grids", end="", file=sys.stderr)
    print(f"round trips: {done} grids came back")


def same_as_the_law(count):
    """Kernels and plain Python, 1, 2 and 8 threads, against naive.encode; naive.decode against both."""
    rng = np.random.default_rng(1)
    done = 0
    while done < count:
        num_codes = int(rng.choice([1, 2, 3, 5, 30, 1000, 16384]))
        few = [grid.tolist() for grid in odd_grids(rng, 12, num_codes)]
        for merges in (
            naive.train(few, 60, num_codes, min_count=1),
            random_rules(rng, num_codes, 60),
        ):
            grids = odd_grids(rng, 60, num_codes, side=12)
            expected = [naive.encode(grid.tolist(), merges, num_codes) for grid in grids]
            bpe = ImageBPE(merges, num_codes)
            plain = copy.copy(bpe)
            plain.__dict__["_by_merges"] = plain.__dict__["_decoder"] = bpe._plain
            for encoder in (bpe, plain):
                for threads in (1, 2, 8):
                    assert [
                        ids.tolist() for ids in encoder.encode_batch(grids, threads)
                    ] == expected
                heights, widths = zip(*(grid.shape for grid in grids), strict=True)
                decoded = encoder.decode_batch(expected, heights, widths)
                assert all(np.array_equal(a, b) for a, b in zip(decoded, grids, strict=True))
            done += len(grids)
        print(f"\r{done} grids", end="", file=sys.stderr)
    print(f"same as the law: {done} grids, with and without numba, 1, 2 and 8 threads")


def mutations(count):
    """Every damaged file loads or raises ValueError naming the file, within a second and 256 MB."""
    slowest, loaded = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image_bpe.json"
        for text in mutated_files(np.random.default_rng(2), count):
            path.write_bytes(text)
            begin = time.process_time()
            try:
                ImageBPE.from_pretrained(path)
                loaded += 1
            except ValueError as error:
                assert str(error).startswith(f"{path}: "), error
            slowest = max(slowest, time.process_time() - begin)
    status = Path(
        "/proc/self/status"
    ).read_text()  # getrusage would count the process that started us
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    assert slowest < 1, slowest
    print(
        f"mutations: {count} files, {loaded} loaded, the rest refused by name; slowest {slowest:.3f} CPU s, "
        f"peak memory of the process {peak:.0f} MB"
    )


def clips(count):
    """restore(decode(encode(mark(clip)))) == clip, for clips of every size and learned and drawn vocabularies."""
    rng = np.random.default_rng(0)
    for done in range(count):
        num_codes = int(rng.choice([1, 2, 7, 64, 1024]))
        frames, height, width = (int(n) for n in rng.integers(1, [9, 65, 65]))
        clip = structured(rng, frames, height, width, num_codes)
        keep = rng.random(clip.shape) < rng.random()
        for t in range(1, frames):
            clip[t][keep[t]] = clip[t - 1][keep[t]]
        interval = int(rng.integers(1, 6)) if rng.random() < 0.5 else None
        marked = mark_repeats(clip, num_codes, key_frame_interval=interval)
        if done % 20 == 0:
            bpe = {}
        if num_codes not in bpe:
            learned = ImageBPE.train(marked, 200, num_codes + 1, repeat_code=num_codes)
            drawn = ImageBPE(random_rules(rng, num_codes + 1, 200), num_codes + 1)
            bpe[num_codes] = learned if done % 40 < 20 else drawn
        one = bpe[num_codes]
        ids = one.encode_batch(marked, num_threads=1 + done % 2)
        back = restore_repeats(np.stack(one.decode_batch(ids, height, width)), num_codes)
        if not np.array_equal(back, clip):
            sys.exit(f"clip {done} of {clip.shape}, {num_codes} codes, did not come back")
    print(f"clips: {count} came back")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grids", type=int, default=0)
    parser.add_argument("--law", type=int, default=0)
    parser.add_argument("--mutations", type=int, default=0)
    parser.add_argument("--clips", type=int, default=0)
    args = parser.parse_args()
    if args.mutations:  # first: its peak memory is the process's
        mutations(args.mutations)
    if args.law:
        same_as_the_law(args.law)
    if args.grids:
        round_trips(args.grids)
    if args.clips:
        clips(args.clips)


if __name__ == "__main__":
    main()
