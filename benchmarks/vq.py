"""Throughput and peak memory of encode and decode, beside transformers' models of the same shape.

    python benchmarks/vq.py                       # 512 px, batch 1 and 8
    python benchmarks/vq.py --device cuda --dtype bfloat16 --batch-sizes 1 8 32
    python benchmarks/vq.py --precision           # share of codes that lower precision changes

Encode is compared with `ChameleonVQVAE.encode`, decode with `JanusVQVAE.decode`, on the same weights.
Each measurement runs in a process of its own, ours and theirs in turn, so that one's memory is not the
other's. CPU seconds are those of the process; memory is the peak above what the loaded model takes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

DECODE_SIDE = 16


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--operations", nargs="+", default=["encode", "decode"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile ours")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--precision", action="store_true", help="codes changed by bf16 and fp16")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # who, operation, batch size
    return parser.parse_args()


def build(who: str, operation: str, args: argparse.Namespace):
    """The function to time, of the same random weights for both sides."""
    import torch
    from transformers import JanusVQVAEConfig
    from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
    from transformers.models.janus.modeling_janus import JanusVQVAE

    from being_vl import BeingVLVQConfig, BeingVLVQModel

    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    cells = args.resolution // DECODE_SIDE
    if operation == "encode":
        theirs = ChameleonVQVAE(ChameleonVQVAEConfig())
        sizes, names = {"has_decoder": False}, {}
    else:
        theirs = JanusVQVAE(JanusVQVAEConfig(embed_dim=256, num_embeddings=8192, num_patches=cells))
        sizes = {"attn_resolutions": [32]}
        names = {f"decoder.up.{i}.": f"decoder.up.{4 - i}." for i in range(5)}
    if who == "theirs":
        model = theirs.to(args.device, dtype).eval()
        if operation == "encode":
            return lambda pixels: model.encode(pixels).image_tokens
        return lambda codes: model.decode(codes.flatten(1))
    ours = BeingVLVQModel(BeingVLVQConfig(**sizes))
    weights = {}
    for key, value in theirs.state_dict().items():
        start = next((name for name in names if key.startswith(name)), "")
        weights[names.get(start, "") + key[len(start) :]] = value
    if operation == "decode":  # Janus normalises its codebook in decode
        weights["quantize.embedding.weight"] = torch.nn.functional.normalize(
            weights["quantize.embedding.weight"], dim=-1
        )
    ours.load_state_dict(weights)
    del theirs
    ours = ours.to(args.device, dtype).eval()
    function = getattr(ours, operation)
    return torch.compile(function, fullgraph=True) if args.compile else function


def peak_memory(device: str) -> int:
    """Bytes; on a CPU the peak of the resident set since `reset_peak_memory` (Linux)."""
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def reset_peak_memory(device: str) -> int:
    import torch

    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()
    return peak_memory(device)


def child(args: argparse.Namespace) -> None:
    import torch

    who, operation, batch = args.child[0], args.child[1], int(args.child[2])
    torch.set_num_threads(args.threads)
    function = build(who, operation, args)
    generator = torch.Generator().manual_seed(1)
    side = args.resolution
    if operation == "encode":
        pixels = torch.rand(batch, 3, side, side, generator=generator) * 2 - 1
        given = pixels.to(args.device, getattr(torch, args.dtype))
    else:
        cells = side // DECODE_SIDE
        given = torch.randint(8192, (batch, cells, cells), generator=generator).to(args.device)

    def synchronize() -> None:
        if args.device != "cpu":
            torch.cuda.synchronize()

    wall, cpu = [], []
    # before the warm-up, since the allocator keeps some of what that takes
    before = reset_peak_memory(args.device)
    with torch.inference_mode():
        function(given if args.compile else given[:1])  # warm-up
        synchronize()
        for _ in range(args.repeats):
            start = time.perf_counter(), time.process_time()
            result = function(given)
            synchronize()
            wall.append(time.perf_counter() - start[0])
            cpu.append(time.process_time() - start[1])
    print(
        json.dumps(
            {
                "wall": wall,
                "cpu": cpu,
                "memory": peak_memory(args.device) - before,
                "result": result.flatten()[:4096].float().tolist(),
            }
        )
    )


def run_child(who: str, operation: str, batch: int) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--child", who, operation, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(operation: str, batch: int, device: str) -> dict:
    ours, theirs = (run_child(who, operation, batch) for who in ("ours", "theirs"))
    time_of = "cpu" if device == "cpu" else "wall"
    pairs = list(zip(ours["result"], theirs["result"], strict=True))
    return {
        "operation": operation,
        "batch": batch,
        "ours_s": statistics.median(ours[time_of]),
        "theirs_s": statistics.median(theirs[time_of]),
        "ours_wall_s": min(ours["wall"]),
        "theirs_wall_s": min(theirs["wall"]),
        "ours_mb": ours["memory"] / 2**20,
        "theirs_mb": theirs["memory"] / 2**20,
        "agreement": (
            sum(a == b for a, b in pairs) / len(pairs)
            if operation == "encode"
            else max(abs(a - b) for a, b in pairs)
        ),
    }


def precision(args: argparse.Namespace) -> dict[str, float]:
    """Share of codes that change where the encoder runs in less than float32."""
    import torch

    from being_vl import BeingVLVQModel

    args.dtype, side = "float32", args.resolution
    model: BeingVLVQModel = build("ours", "encode", args).__self__
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(4, 3, side // 16, side // 16, generator=generator) * 2 - 1
    pixels = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(-1, 1)
    pixels = pixels.to(args.device)
    codes = model.encode(pixels)
    changed = {}
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(args.device, dtype=dtype):
            changed[f"autocast {dtype}"] = model.encode(pixels).ne(codes).float().mean().item()
    half = model.to(torch.bfloat16)
    changed["weights torch.bfloat16"] = half.encode(pixels).ne(codes).float().mean().item()
    return changed


def main() -> None:
    args = parse()
    if args.child:
        child(args)
        return
    if args.precision:
        print(json.dumps(precision(args), indent=None if args.json else 2))
        return
    if not args.json:
        kind = "CPU s" if args.device == "cpu" else "s"
        print(f"{args.resolution} px, {args.dtype}, {args.device}, {args.threads} threads\n")
        print(f"| | batch | ours, {kind} | theirs | times faster | ours, MB | theirs | agreement |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
    for operation in args.operations:
        for batch in args.batch_sizes:
            row = compare(operation, batch, args.device)
            print(json.dumps(row) if args.json else table_row(row), flush=True)


def table_row(row: dict) -> str:
    return (
        f"| {row['operation']} | {row['batch']} | {row['ours_s']:.2f} | {row['theirs_s']:.2f} | "
        f"{row['theirs_s'] / row['ours_s']:.2f} | {row['ours_mb']:.0f} | {row['theirs_mb']:.0f} | "
        f"{row['agreement']:.6g} |"
    )


if __name__ == "__main__":
    main()
