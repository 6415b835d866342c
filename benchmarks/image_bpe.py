"""How fast a vocabulary encodes and decodes: grids a second on one core, and what a second thread brings.

    PYTHONPATH=. python benchmarks/image_bpe.py            # photographs, 8,192 and 1,024 codes

Rates are grids over CPU seconds of the whole process, the best of --repeats; the threads' gain is a ratio of
wall times, so it needs an idle machine. Training grids come from other photographs than held-out ones.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from being_vl.bpe.image_bpe import ImageBPE


def best(work: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    """The result, and the least CPU and wall seconds of some repeats."""
    cpu, wall, result = [], [], None
    for _ in range(repeats):
        at_cpu, at_wall = time.process_time(), time.perf_counter()
        result = work()
        cpu.append(time.process_time() - at_cpu)
        wall.append(time.perf_counter() - at_wall)
    return result, min(cpu), min(wall)


def measure(bpe: ImageBPE, grids: np.ndarray, threads: list[int], repeats: int) -> dict[str, Any]:
    """Encode and decode grids (N, H, W), by merges and compactly."""
    count, height, width = grids.shape
    warm = bpe.encode_batch(grids[:2]) + bpe.encode_batch(grids[:2], segmentation="compact")
    bpe.decode_batch(warm, height, width)
    ids, encode_cpu, encode_wall = best(lambda: bpe.encode_batch(grids, 1), repeats)
    back, decode_cpu, _ = best(lambda: bpe.decode_batch(ids, height, width, 1), repeats)
    if not np.array_equal(np.stack(back), grids):
        sys.exit("the grids did not come back")
    few = grids[:500]
    compact, compact_cpu, _ = best(lambda: bpe.encode_batch(few, 1, segmentation="compact"), 1)
    tokens = np.mean([len(one) for one in ids[:500]])
    covered = np.zeros((height, width), dtype=bool)
    covered[: height // 2] = True
    bpe.legal_next(covered)
    _, legal, _ = best(lambda: [bpe.legal_next(covered) for _ in range(100)], repeats)
    result = {
        "tokens_per_grid": float(np.mean([len(one) for one in ids])),
        "encode_grids_per_cpu_second": round(count / encode_cpu),
        "decode_grids_per_cpu_second": round(count / decode_cpu),
        "compact_saves": float(1 - np.mean([len(one) for one in compact]) / tokens),
        "compact_grids_per_cpu_second": round(len(few) / compact_cpu),
        "legal_next_microseconds": legal * 1e4,
    }
    # A call of a third of a second, beside which the start of the threads is nothing.
    many = ids * max(1, 40_000 // count)
    _, _, many_wall = best(lambda: bpe.decode_batch(many, height, width, 1), repeats)
    for n in threads:
        _, _, wall = best(lambda n=n: bpe.encode_batch(grids, n), repeats)
        result[f"encode_gain_of_{n}_threads"] = encode_wall / wall
        _, _, wall = best(lambda n=n: bpe.decode_batch(many, height, width, n), repeats)
        result[f"decode_gain_of_{n}_threads"] = many_wall / wall
    return result


def load_seconds(bpe: ImageBPE, repeats: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        bpe.save_pretrained(folder)
        return best(lambda: ImageBPE.from_pretrained(folder), repeats)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codes", type=int, nargs="+", default=[8192, 1024])
    parser.add_argument("--merges", type=int, default=8192)
    parser.add_argument("--grids", type=int, default=8000, help="to train on")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from bpe_data import photographs

    for codes in args.codes:
        training, held_out = photographs(args.grids, codes)
        bpe = ImageBPE.train(training, num_merges=args.merges, codebook_size=codes)
        for name, grids in (("training", training), ("held out", np.concatenate([held_out] * 8))):
            result = {"codes": codes, "merges": bpe.num_merges, "grids": name}
            result |= measure(bpe, grids, args.threads, args.repeats)
            result["load_seconds"] = load_seconds(bpe, args.repeats)
            if args.json:
                print(json.dumps(result), flush=True)
            else:
                print(f"{codes} codes, {bpe.num_merges} merges, {name} photographs", flush=True)
                for key, value in list(result.items())[3:]:
                    print(f"    {key:30s} {value:12,.6g}", flush=True)


if __name__ == "__main__":
    main()
