"""What a sample costs, and the figures that docs/plan.md starts from.

    python benchmarks/bpe_sample.py --sizes 1000 10000 100000

For each size, in a process of its own: rules learned from so many grids of 32×32 (`bpe_data.synthetic`, 8,192 codes,
8,192 merges), tokens of 500 held-out grids, CPU seconds, the increase of the peak memory. Then the bytes of codes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from bpe_data import photographs, synthetic

from being_vl.bpe import ImageBPE
from being_vl.codes.shards import CodeShards, ShardInfo, write_shard

CODES = 8192


def learn(size: int) -> tuple[int, float, float, float]:
    """Size → size, tokens of a held-out grid, CPU seconds, gigabytes."""
    warm, held_out = np.empty((64, 32, 32), np.int16), np.empty((500, 32, 32), np.int16)
    synthetic(warm)
    ImageBPE.train(warm, num_merges=64, codebook_size=CODES)  # compiles
    synthetic(held_out, seed=1)
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        grids = np.lib.format.open_memmap(file.name, "w+", np.int16, (size, 32, 32))
        synthetic(grids)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        bpe = ImageBPE.train(grids, num_merges=8192, codebook_size=CODES, num_threads=1)
        seconds = time.process_time() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    return size, float(np.mean([len(ids) for ids in bpe.encode_batch(held_out)])), seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for size in args.sizes:
        with context.Pool(1) as pool:
            _, tokens, seconds, memory = pool.apply(learn, (size,))
        print(
            f"{size:,} grids: {tokens:.1f} tokens, {seconds:.1f} CPU s, {memory:.2f} GB", flush=True
        )
    drawn = np.empty((4096, 32, 32), np.int16)
    synthetic(drawn)
    for name, grids in (("synthetic", drawn), ("photographs", photographs(4096, CODES)[0])):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "codes.parquet")
            ids = [f"part-{i // 100:05d}/{i:09d}" for i in range(len(grids))]
            start = time.process_time()
            write_shard(path, ids, list(grids), ShardInfo(CODES))
            wrote = time.process_time()
            assert sum(1 for _ in CodeShards(path)) == len(grids)
            rates = len(grids) / (wrote - start), len(grids) / (time.process_time() - wrote)
            print(
                f"{name}: {path.stat().st_size / len(grids):.0f} bytes a grid in parquet; "
                f"{rates[0]:,.0f} written and {rates[1]:,.0f} read a CPU second"
            )


if __name__ == "__main__":
    main()
