"""Everything that wants a GPU, in one command: tests, quantizer, training, generation, one study.

    python experiments/gpu.py                               # all parts on a GPU, about 8 minutes on one H200
    python experiments/gpu.py --list                        # what would run, and about how long
    python experiments/gpu.py --device cpu --tiny           # a rehearsal: every line runs, no figure counts
    python experiments/gpu.py --page docs/benchmarks.md     # write the results found into the page

No network, no data: weights are random and pictures are drawn. Each part runs in a process of its own and
writes OUTPUT/PART.json after every figure, so that what stops a part costs what was not measured yet. A part
whose packages are missing says so; a part that fails does not stop the others and is named at the end (exit
status 1). Times are wall clock between synchronisations, medians after a warm-up; memory is the peak that the
allocator reports.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# name → (what runs, seconds on one H200, of the study a guess; the limit is twice that)
PARTS = {
    "tests": ("pytest of tests/gpu and of every test marked gpu", 60),
    "vq": ("VQ-GAN at 512 pixels: encode and decode beside Chameleon's and Janus's", 65),
    "training": ("a Llama of 1B: plain Trainer, VQ, VQ+BPE, shared images, frozen text rows", 100),
    "generation": ("tokens a second with and without the grid mask, text and images", 65),
    "study": ("LLM+VQ against LLM+VQ+BPE on drawn scenes, at equal steps and equal time", 160),
}
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense, from the data sheets
BEGIN, END = "<!-- gpu figures: begin -->", "<!-- gpu figures: end -->"


class Report:
    """The figures of a part, on disk after each of them."""

    def __init__(self, path: Path, device: str):
        self.path = path
        self.content: dict[str, Any] = {"machine": machine(device), "figures": []}

    def add(self, **figure: Any) -> None:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figure.items()}
        self.content["figures"].append(rounded)
        aside = self.path.with_suffix(".tmp")
        aside.write_text(json.dumps(self.content, indent=1) + "\n")
        aside.replace(self.path)
        print(json.dumps(rounded), flush=True)

    def attempt(self, measure: Callable[[], dict[str, Any]], **labels: Any) -> None:
        """Add what `measure` returns; where memory is short, that; another error is raised."""
        with self.short_of_memory(**labels):
            self.add(**labels, **measure())

    @contextlib.contextmanager
    def short_of_memory(self, **labels: Any) -> Iterator[None]:
        """Where the memory of the device does not do, add that in place of a figure, and go on."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            self.add(**labels, not_run=f"out of memory: {str(error).splitlines()[0][:120]}")
            torch.cuda.empty_cache()


def machine(device: str) -> dict[str, Any]:
    """The card and the versions that a figure belongs to."""
    import torch

    names = ("torch", "transformers", "numpy", "numba", "accelerate")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    card = torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"
    return {"device": card, "python": platform.python_version(), **versions}


class Clock:
    """Median seconds and peak memory of a call."""

    def __init__(self, device: str):
        self.device = device

    def synchronize(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def measure(self, call: Callable[[], Any], repeats: int) -> tuple[float, float | None]:
        """(seconds, peak MiB above what was allocated before; None on a CPU)."""
        (figures,) = self.measure_in_turns([call], repeats)
        return figures

    def measure_in_turns(
        self, calls: list[Callable[[], Any]], repeats: int
    ) -> list[tuple[float, float | None]]:
        """`measure` of several calls, one after the other in each repeat, so that none has the better place."""
        import torch

        for call in calls:
            call()
        self.synchronize()
        seconds: list[list[float]] = [[] for _ in calls]
        peaks: list[float | None] = [None for _ in calls]
        for _ in range(repeats):
            for number, call in enumerate(calls):
                before = 0
                if self.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                start = time.perf_counter()
                call()
                self.synchronize()
                seconds[number].append(time.perf_counter() - start)
                if self.device == "cuda":
                    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
                    peaks[number] = max(peak, peaks[number] or 0.0)
        return list(zip(map(statistics.median, seconds), peaks, strict=True))


# The parts


def run_tests(options: argparse.Namespace, report: Report) -> None:
    """tests/gpu on the device, and on a GPU every other test that is marked gpu."""
    places = ["tests/gpu"]
    if options.device != "cpu":  # the other files may need packages that are not there
        files = sorted((ROOT / "tests").rglob("test_*.py"))
        places = [str(path) for path in files if "mark.gpu" in path.read_text("utf-8")]
    # Not the options of setup.cfg: they name pytest-xdist, and hide the counts.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["-m", "gpu", "-q", "-rfE", *places]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "BEING_VL_GPU_TESTS_ON": options.device, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout[-20000:], done.stderr[-2000:], flush=True)
    counts = {
        name: int(n) for n, name in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    }
    report.add(what="pytest -m gpu", **counts, status=done.returncode)
    if done.returncode:
        raise SystemExit(f"pytest ended with {done.returncode}: {counts}")


def run_vq(options: argparse.Namespace, report: Report) -> None:
    """Ours in float32, bf16, fp16 and compiled; Chameleon's encoder and Janus's decoder with our sizes."""
    import torch
    from transformers import JanusVQVAEConfig
    from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
    from transformers.models.janus.modeling_janus import JanusVQVAE

    from being_vl import BeingVLVQConfig, BeingVLVQModel

    side = 64 if options.tiny else 512
    small = {"base_channels": 32, "num_embeddings": 64} if options.tiny else {}
    batches = (2,) if options.tiny else (1, 8, 32)
    repeats = 1 if options.tiny else 5
    clock, device = Clock(options.device), options.device
    torch.manual_seed(0)
    ours = BeingVLVQModel(BeingVLVQConfig(**small)).to(device).eval()
    coarse = torch.rand(max(batches), 3, side // 16, side // 16, device=device) * 2 - 1
    pixels = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(-1, 1)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = ours.encode(pixels)  # PyTorch's default on a GPU is TF32 in convolutions

    def measure(name: str, batch: int, call: Callable[..., Any], given: Any, **more: Any) -> None:
        def figures() -> dict[str, Any]:
            seconds, peak = clock.measure(lambda: call(given[:batch]), repeats)
            return {"pictures_per_second": batch / seconds, "peak_mib": peak}

        report.attempt(figures, what=name, batch=batch, pixels=side, **more)

    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            half = dtype != torch.float32

            def encode(x: torch.Tensor, dtype: Any = dtype, half: bool = half) -> torch.Tensor:
                with torch.autocast(device, dtype=dtype if half else None, enabled=half):
                    return ours.encode(x)

            def decode(x: torch.Tensor, dtype: Any = dtype, half: bool = half) -> torch.Tensor:
                with torch.autocast(device, dtype=dtype if half else None, enabled=half):
                    return ours.decode(x)

            name = str(dtype).removeprefix("torch.")
            changed = encode(pixels).ne(exact).float().mean().item()
            for batch in batches:
                measure("encode", batch, encode, pixels, dtype=name, codes_that_differ=changed)
                measure("decode", batch, decode, exact, dtype=name)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            measure("encode, no TF32", batches[-1], ours.encode, pixels, dtype="float32")
        chameleon_sizes = {"base_channels": 32, "num_embeddings": 64} if options.tiny else {}
        chameleon = ChameleonVQVAE(ChameleonVQVAEConfig(**chameleon_sizes)).to(device).eval()
        for batch in batches:
            measure("ChameleonVQVAE.encode", batch, chameleon.encode, pixels, dtype="float32")
        del chameleon
        patches = side // 16
        janus_sizes = dict(small) if options.tiny else {"num_embeddings": 8192}
        janus = JanusVQVAE(JanusVQVAEConfig(embed_dim=256, num_patches=patches, **janus_sizes))
        janus = janus.to(device).eval()
        for batch in batches:
            measure(
                "JanusVQVAE.decode",
                batch,
                lambda x: janus.decode(x.flatten(1)),
                exact,
                dtype="float32",
            )
        if not options.tiny:  # last, since to compile takes longer than all the rest
            compiled = torch.compile(ours.encode)
            measure("encode, compiled", batches[-1], compiled, pixels, dtype="float32")


def image_vocabulary(tiny: bool) -> tuple[Any, Any]:
    """Grids with the statistics of coarse pictures, int (N, side, side), and their vocabulary."""
    import numpy as np

    from being_vl import ImageBPE

    rng = np.random.default_rng(0)
    codes, merges, side, count = (64, 32, 8, 64) if tiny else (8192, 8192, 32, 2000)
    coarse = rng.integers(0, codes, (count, side // 2, side // 2))
    grids = np.kron(coarse, np.ones((2, 2), int))
    noise = rng.random(grids.shape) < 0.2
    grids[noise] = rng.integers(0, codes, int(noise.sum()))
    return grids, ImageBPE.train(grids, num_merges=merges, codebook_size=codes)


def language_model(
    tiny: bool, device: str, layout: Any, grid: tuple[int, int], merges: Any, seed: int = 0
) -> Any:
    """A Llama of 1B (Llama-3.2-1B's sizes) with random weights, extended by the layout, on the device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from being_vl import BeingVLForCausalLM

    sizes = (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}
        if tiny
        else {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
              "num_attention_heads": 32, "num_key_value_heads": 8}
    )  # fmt: skip
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=layout.text_size, max_position_embeddings=4096, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, **sizes,
    )  # fmt: skip
    first = layout.text_size
    with torch.device(device):
        text_model = LlamaForCausalLM(config)
    return BeingVLForCausalLM.from_text_model(
        text_model, layout, boi_token_id=first, eoi_token_id=first + 1,
        image_token_id=first + 2, pad_token_id=first + 3, image_grid_size=grid, merges=merges,
    )  # fmt: skip


def stock_llama(model: Any) -> Any:
    """transformers' own model with the weights of ours, not a copy of them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        stock = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "model_type": "llama"}))
    stock.load_state_dict(model.state_dict(), assign=True)
    stock.tie_weights()
    stock.model.rotary_emb = model.model.rotary_emb  # whose frequencies are in no state dict
    return stock.train(model.training)


# name, with merges, questions share their image, stage, transformers' own trainer
WAYS_TO_TRAIN = (
    ("plain Trainer, VQ", False, False, "sft", True),
    ("VQ", False, False, "sft", False),
    ("VQ+BPE", True, False, "sft", False),
    ("VQ, shared image", False, True, "sft", False),
    ("VQ+BPE, shared image", True, True, "sft", False),
    ("VQ+BPE, frozen text rows", True, False, "pretrain", False),
)


def run_training(options: argparse.Namespace, report: Report) -> None:
    """Samples a second, memory and MFU; a sample is a picture with one question and its answer."""
    import numpy as np
    import torch
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from being_vl import VocabularyLayout
    from being_vl.training.collators import PaddingCollator, SharedImageCollator
    from being_vl.training.packing import pack_shared_image
    from being_vl.training.stages import prepare_stage
    from being_vl.training.trainer import BeingVLTrainer

    grids, bpe = image_vocabulary(options.tiny)
    text_size, questions = (200, 4) if options.tiny else (128256, 8)
    pictures, warm_up = (4, 1) if options.tiny else (8, 3)  # pictures a step
    rng = np.random.default_rng(1)

    class Stopwatch(TrainerCallback):
        seconds = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if options.device == "cuda":
                torch.cuda.synchronize()
            if state.global_step == warm_up:
                self.start = time.perf_counter()
            elif state.global_step > warm_up:
                self.seconds = time.perf_counter() - self.start

    def one_way(name: str, merged: bool, shared: bool, stage: str, plain: bool) -> dict[str, Any]:
        # Of short steps there are more: lengths differ, and the first of each length is slow.
        steps = 2 if options.tiny else 24 if shared else 8
        used = bpe if merged else bpe.first(0)
        layout = VocabularyLayout(text_size, 4, bpe.codebook_size, used.num_merges)
        model = language_model(
            options.tiny, options.device, layout, grids.shape[1:], used.merges
        ).train()
        first = text_size
        rows: list[dict[str, Any]] = []
        for ids in used.encode_batch(list(grids[: pictures * 2])):
            image = [1, first, *(ids + layout.first_code_id).tolist(), first + 1]
            turns = []
            for _ in range(questions):
                turn = rng.integers(3, text_size, 40).tolist()
                turns.append((turn, [-100] * 32 + turn[32:]))
            if shared:
                rows.append(pack_shared_image(image, turns))
            else:
                rows += [
                    {"input_ids": image + turn, "labels": [-100] * len(image) + labels}
                    for turn, labels in turns
                ]
        # The same pictures and questions a step for every way: a row of shared images holds all of one's.
        batch = pictures if shared else pictures * questions
        micro = batch if shared or options.tiny else max(1, batch // 8)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, max_steps=warm_up + steps, per_device_train_batch_size=micro,
                gradient_accumulation_steps=batch // micro, bf16=options.device == "cuda", weight_decay=0.01,
                use_cpu=options.device == "cpu", save_strategy="no", logging_strategy="no",
                report_to="none", disable_tqdm=True, remove_unused_columns=False, optim="adamw_torch",
                learning_rate=1e-5,
            )  # fmt: skip
            collator = (SharedImageCollator if shared else PaddingCollator)(first + 3)
            watch = Stopwatch()
            common = {
                "args": args,
                "train_dataset": rows,
                "data_collator": collator,
                "callbacks": [watch],
            }
            if plain:
                trainer: Trainer = Trainer(model=stock_llama(model), **common)
            else:
                prepare_stage(model, stage)
                trainer = BeingVLTrainer(model=model, **common)
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            trainer.train()
        tokens = float(np.mean([len(row["input_ids"]) for row in rows])) * batch
        body = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
        per_step = watch.seconds / steps
        figures: dict[str, Any] = {
            "samples_per_second": pictures * questions / per_step,
            "tokens_a_step": round(tokens),
            "body_parameters": body,
        }
        if options.device == "cuda":
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            card = torch.cuda.get_device_name()
            peak = next((value for key, value in BF16_PEAK.items() if key in card), None)
            if peak and stage == "sft":
                # 6 FLOPs a parameter and token, of the decoder alone: attention and head are left out.
                figures["mfu"] = 6 * body * tokens / per_step / peak
        del trainer, model
        if options.device == "cuda":
            torch.cuda.empty_cache()
        return figures

    for name, merged, shared, stage, plain in WAYS_TO_TRAIN:
        report.attempt(
            lambda n=name, m=merged, h=shared, s=stage, p=plain: one_way(n, m, h, s, p), what=name
        )


def run_generation(options: argparse.Namespace, report: Report) -> None:
    """Tokens a second in bf16 with the key-value cache: the stock Llama, text alone, images under the grid mask."""
    import torch

    from being_vl import VocabularyLayout

    grids, bpe = image_vocabulary(options.tiny)
    text_size = 200 if options.tiny else 128256
    layout = VocabularyLayout(text_size, 4, bpe.codebook_size, bpe.num_merges)
    model = language_model(options.tiny, options.device, layout, grids.shape[1:], bpe.merges)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model = model.to(dtype).eval()
    stock = stock_llama(model)
    clock = Clock(options.device)
    new = 8 if options.tiny else 48
    for batch in (2,) if options.tiny else (1, 8, 64):
        prompt = torch.randint(3, text_size, (batch, 32), device=options.device)
        image_prompt = torch.cat([prompt, torch.full_like(prompt[:, :1], text_size)], dim=1)

        def free(prompt: Any = prompt) -> Any:
            return stock.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=True)

        def text(prompt: Any = prompt) -> Any:
            return model.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=True)

        def image(prompt: Any = image_prompt) -> Any:
            # Interleaved, so that the length is given: the image that the prompt begins goes on.
            return model.generate(
                prompt, generation_mode="interleaved", max_new_tokens=new, do_sample=True
            )

        # In turns, since the first to run is the fastest, whichever it is.
        calls = {"stock Llama": free, "text": text, "image, grid mask": image}
        labels = {"batch": batch, "new_tokens": new, "vocabulary": layout.size}
        with report.short_of_memory(what=", ".join(calls), **labels):
            turns = clock.measure_in_turns(list(calls.values()), 1 if options.tiny else 3)
            for name, (seconds, peak) in zip(calls, turns, strict=True):
                rate = batch * new / seconds
                report.add(what=name, **labels, tokens_per_second=rate, peak_mib=peak)


COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 50),
}
SHAPES = ("circle", "square", "triangle", "cross")
SCENE_SIDE = 64


def draw_scene(rng: Any) -> tuple[Any, list[tuple[list[str], str]]]:
    """A picture, uint8 (64, 64, 3), of two to four shapes on textured ground, and its questions."""
    import numpy as np

    y, x = np.mgrid[:SCENE_SIDE, :SCENE_SIDE]
    picture = np.full((SCENE_SIDE, SCENE_SIDE, 3), rng.integers(150, 250, 3), np.int16)
    picture += rng.integers(-12, 13, (8, 8, 1)).repeat(8, 0).repeat(8, 1).astype(np.int16)
    found: list[tuple[str, str]] = []
    places = rng.permutation(4)[: rng.integers(2, 5)]
    for place, shape in zip(places, rng.permutation(SHAPES), strict=False):
        colour = str(rng.choice(list(COLOURS)))
        r = int(rng.integers(8, 13))
        cy = int(16 + 32 * (place // 2) + rng.integers(-3, 4))
        cx = int(16 + 32 * (place % 2) + rng.integers(-3, 4))
        dy, dx = y - cy, x - cx
        inside = {
            "circle": dy**2 + dx**2 <= r**2,
            "square": (abs(dy) <= r) & (abs(dx) <= r),
            "triangle": (dy <= r) & (dy >= 2 * abs(dx) - r),
            "cross": ((abs(dy) <= r // 3) & (abs(dx) <= r))
            | ((abs(dx) <= r // 3) & (abs(dy) <= r)),
        }[str(shape)]
        picture[inside] = COLOURS[colour]
        found.append((str(shape), colour))
    asked = str(rng.choice(SHAPES))
    shape, colour = found[int(rng.integers(len(found)))]
    questions = [
        (["how", "many", "shapes"], str(len(found))),
        (["what", "colour", "is", "the", shape], colour),
        (["is", "there", "a", asked], "yes" if asked in dict(found) else "no"),
    ]
    return picture.clip(0, 255).astype(np.uint8), questions


WORDS = (
    *("<pad>", "<s>", "</s>", "how", "many", "shapes", "what", "colour", "is", "the", "there", "a"),
    *(*SHAPES, *COLOURS, "2", "3", "4", "yes", "no", "?"),
)


def run_study(options: argparse.Namespace, report: Report) -> None:
    """Accuracy on held-out scenes as training goes on, for 0, 1,024 and 4,096 merges of the same codes.

    Ten times what a CPU allows in the same time. Read a column of equal seconds or one of equal steps.
    """
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

    from being_vl import (
        BeingVLForCausalLM,
        BeingVLImageProcessor,
        BeingVLPatchVQConfig,
        BeingVLPatchVQModel,
        ImageBPE,
        VocabularyLayout,
    )
    from being_vl.training.collators import SharedImageCollator
    from being_vl.training.packing import pack_shared_image
    from being_vl.training.trainer import BeingVLTrainer

    count, held_out, codes, sizes = (
        (60, 20, 32, (0, 16)) if options.tiny else (30000, 2000, 512, (0, 1024, 4096))
    )
    seconds = 3 if options.tiny else options.seconds
    rng = np.random.default_rng(options.seed)
    scenes = [draw_scene(rng) for _ in range(count + held_out)]
    vq = BeingVLPatchVQModel(
        BeingVLPatchVQConfig(num_embeddings=codes, patch_size=4, resolution=SCENE_SIDE)
    )
    processor = BeingVLImageProcessor(
        size={"shortest_edge": SCENE_SIDE},
        crop_size={"height": SCENE_SIDE, "width": SCENE_SIDE},
        size_divisor=4,
    )
    pixels = torch.cat(
        [
            processor([picture for picture, _ in scenes[i : i + 500]], return_tensors="pt")[
                "pixel_values"
            ]
            for i in range(0, len(scenes), 500)
        ]
    )
    vq.fit(pixels[: min(count, 2000)], seed=options.seed)
    vq.to(options.device)
    with torch.inference_mode():
        grids = torch.cat([vq.encode(part.to(options.device)).cpu() for part in pixels.split(500)])
    grids = grids.numpy()
    whole = ImageBPE.train(grids[:count], num_merges=max(sizes), codebook_size=codes)
    word = {text: i for i, text in enumerate(WORDS)}

    def sample(index: int, ids: Any, layout: Any) -> dict[str, Any]:
        image = [1, len(WORDS), *(ids + layout.first_code_id).tolist(), len(WORDS) + 1]
        turns = []
        for question, answer in scenes[index][1]:
            turn = [*(word[w] for w in question), word["?"], word[answer], word["</s>"]]
            turns.append((turn, [-100] * (len(turn) - 2) + turn[-2:]))
        return pack_shared_image(image, turns)

    for merges in sizes:
        bpe = whole.first(merges)
        layout = VocabularyLayout(len(WORDS), 4, codes, bpe.num_merges)
        torch.manual_seed(options.seed)
        width, layers = (32, 2) if options.tiny else (256, 6)
        config = LlamaConfig(
            vocab_size=len(WORDS), hidden_size=width, intermediate_size=3 * width,
            num_hidden_layers=layers, num_attention_heads=width // 32, bos_token_id=1, eos_token_id=2,
            tie_word_embeddings=True, max_position_embeddings=512,
        )  # fmt: skip
        first = len(WORDS)
        model = BeingVLForCausalLM.from_text_model(
            LlamaForCausalLM(config), layout, boi_token_id=first, eoi_token_id=first + 1,
            image_token_id=first + 2, pad_token_id=0, image_init="normal", image_init_std=0.02,
            merges=bpe.merges,
        )  # fmt: skip
        encoded = bpe.encode_batch(list(grids))
        rows = [sample(i, ids, layout) for i, ids in enumerate(encoded)]
        collate = SharedImageCollator(0)
        length = float(np.mean([len(ids) for ids in encoded[count:]]))

        @torch.inference_mode()
        def accuracy(model: Any = model, rows: Any = rows, collate: Any = collate) -> float:
            model.eval()
            right = total = 0
            for start in range(count, len(rows), 250):
                batch = {
                    k: v.to(model.device) for k, v in collate(rows[start : start + 250]).items()
                }
                labels = batch.pop("labels")[:, 1:]
                # The answers are one word each, and stand before the end of a turn.
                is_answer = (labels != -100) & (labels != word["</s>"])
                chosen = model(**batch, use_cache=False).logits[:, :-1][is_answer].argmax(dim=-1)
                right += int((chosen == labels[is_answer]).sum())
                total += len(chosen)
            model.train()
            return right / total

        class Curve(TrainerCallback):
            """Accuracy every few seconds of training, evaluation left out; stops when time is up."""

            def __init__(self, merges: int, length: float, accuracy: Callable[[], float]):
                self.merges, self.length, self.accuracy = merges, length, accuracy
                self.spent, self.next = 0.0, seconds / 6

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.start = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if options.device == "cuda":
                    torch.cuda.synchronize()
                self.spent += time.perf_counter() - self.start
                if self.spent >= self.next or state.global_step == args.max_steps:
                    self.next += seconds / 6
                    report.add(
                        what="held-out accuracy", merges=self.merges, tokens_per_image=self.length,
                        steps=state.global_step, seconds=self.spent, accuracy=self.accuracy(),
                        seed=options.seed,
                    )  # fmt: skip
                control.should_training_stop |= self.spent >= seconds

        def train(
            model: Any, steps: int, *callbacks: Any, rows: Any = rows, collate: Any = collate
        ) -> None:
            with tempfile.TemporaryDirectory() as folder:
                args = TrainingArguments(
                    output_dir=folder, max_steps=steps, learning_rate=1e-3,
                    per_device_train_batch_size=8 if options.tiny else 64,
                    lr_scheduler_type="constant_with_warmup", warmup_steps=1 if options.tiny else 100,
                    bf16=options.device == "cuda", use_cpu=options.device == "cpu", save_strategy="no",
                    logging_strategy="no", report_to="none", disable_tqdm=True,
                    remove_unused_columns=False, optim="adamw_torch", seed=options.seed,
                )  # fmt: skip
                BeingVLTrainer(
                    model=model, args=args, train_dataset=rows[:count], data_collator=collate,
                    callbacks=list(callbacks),
                ).train()  # fmt: skip

        # A fresh machine loads kernels whenever a batch has a new length, for half a second and more each.
        train(copy.deepcopy(model), 1 if options.tiny else 80)
        train(model, 4 if options.tiny else 100000, Curve(merges, length, accuracy))


RUN = {
    "tests": run_tests,
    "vq": run_vq,
    "training": run_training,
    "generation": run_generation,
    "study": run_study,
}


# The page


def write_page(page: Path, folder: Path) -> None:
    """Put the tables of the results in a folder between the marks of a page; "not run" where there are none."""
    lines = [BEGIN, ""]
    for name, (text, _) in PARTS.items():
        lines += [f"### {name}: {text}", ""]
        path = folder / f"{name}.json"
        if not path.is_file():
            lines += ["not run", ""]
            continue
        content = json.loads(path.read_text("utf-8"))
        about = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
        columns = list(dict.fromkeys(key for figure in content["figures"] for key in figure))
        lines += [f"{about}.", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for figure in content["figures"]:
            cells = (shown(figure.get(column)) for column in columns)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    text = page.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{page}: needs one line {BEGIN!r} and one line {END!r}")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(before + "\n".join([*lines, END]) + after)


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


# The command


def missing(name: str) -> str:
    """What of the packages of a part is not installed; empty where all are."""
    needed = ["torch", "transformers", "numba", "numpy", "PIL"]
    needed += {"tests": ["pytest"], "training": ["accelerate"], "study": ["accelerate"]}.get(
        name, []
    )
    absent = [package for package in needed if not importlib.util.find_spec(package)]
    return ", ".join(absent)


def child(options: argparse.Namespace) -> int:
    report = Report(Path(options.output) / f"{options.child}.json", options.device)
    started = time.perf_counter()
    RUN[options.child](options, report)
    report.add(what="whole part", seconds=time.perf_counter() - started)
    return 0


def run_part(name: str, options: argparse.Namespace) -> str:
    """Run a part in a process of its own; returns why it failed, or nothing."""
    if absent := missing(name):
        return f"not run: {absent} not installed"
    (Path(options.output) / f"{name}.json").unlink(missing_ok=True)
    command = [sys.executable, __file__, "--child", name, "--device", options.device]
    command += ["--output", options.output, "--seed", str(options.seed)]
    command += ["--seconds", str(options.seconds)]
    command += ["--tiny"] if options.tiny else []
    try:
        done = subprocess.run(command, timeout=2 * PARTS[name][1], check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {2 * PARTS[name][1]} s; what it had measured is in {name}.json"
    return "" if done.returncode == 0 else f"ended with {done.returncode}"


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    print(f"== {name}: {PARTS[name][0]}", flush=True)
    start = time.perf_counter()
    yield
    print(f"== {name}: {time.perf_counter() - start:.0f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it runs")
    parser.add_argument("--seed", type=int, default=0, help="of the study")
    parser.add_argument(
        "--seconds", type=int, default=20, help="of training, for each vocabulary of the study"
    )
    parser.add_argument("--output", default="gpu-results", help="folder of PART.json")
    parser.add_argument("--list", action="store_true", help="say what would run, and how long")
    parser.add_argument(
        "--page", type=Path, help="write the results found in --output into this page"
    )
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    if options.page:
        write_page(options.page, Path(options.output))
        return 0
    if options.list:
        for name in options.parts:
            absent = missing(name)
            note = f"   NOT RUN: {absent} not installed" if absent else ""
            print(f"{name:<12} about {PARTS[name][1]:>3} s on one H200: {PARTS[name][0]}{note}")
        print(f"{'in all':<12} about {sum(PARTS[name][1] for name in options.parts):>3} s")
        return 0
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("no CUDA device here; --device cpu --tiny rehearses")
    Path(options.output).mkdir(parents=True, exist_ok=True)
    failed = {}
    for name in options.parts:
        with timed(name):
            if why := run_part(name, options):
                failed[name] = why
    for name, why in failed.items():
        print(f"FAILED {name}: {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
