"""moving drawings with questions about the motion → how well a small model learns from raw frames and from tokens.

    python -m being_vl.studies.motion --output docs/figures/motion.json

Not in the papers. In each clip one shape moves, slower or faster in its second half, and another shape comes or has
been there from the start. A small Llama sees the codes of the frames as they are (raw), each frame in tokens of the
image BPE (frames), or with repeat codes before the BPE (repeats; with a key frame every 4 or 2 frames). All arms see
the same clips in the same order, with the same step size; they are compared after the same number of steps, and
after the same CPU time, which is what the raw arm took for them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..bpe import ImageBPE, encode_frames, mark_repeats
from ..files import write_atomic
from ..models.configuration_being_vl import BeingVLConfig
from ..models.modeling_being_vl import BeingVLForCausalLM
from ..quantizers.modeling_being_vl_patch_vq import BeingVLPatchVQConfig, BeingVLPatchVQModel

FRAMES, SIDE, PATCH, CODES, MERGES = 5, 24, 4, 48, 256
SHAPES = ("circle", "square", "triangle")
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COLOURS = ((200, 30, 30), (30, 60, 200), (20, 130, 40))
QUESTIONS = ("way?", "speed?", "first?")
WORDS = ["<bos>", *QUESTIONS, *WAYS, "faster", "slower", *SHAPES]
SPECIAL = ("<boi>", "<eoi>", "<bov>", "<eov>", "<pad>")
# Merges, whether there are repeat codes, frames from one key frame to the next.
ARMS: dict[str, tuple[int, bool, int | None]] = {
    "raw": (0, False, None),
    "frames": (MERGES, False, None),
    "repeats": (MERGES, True, None),
    "repeats, key frame every 4": (MERGES, True, 4),
    "repeats, key frame every 2": (MERGES, True, 2),
}


class Clip(NamedTuple):
    """Frames uint8 (T, side, side, 3), and the answer to each question."""

    frames: np.ndarray
    answers: tuple[str, str, str]


def draw_clip(rng: np.random.Generator) -> Clip:
    """One shape that moves, and one that comes in the second half, or the other way about."""
    way = list(WAYS)[rng.integers(4)]
    is_faster = bool(rng.integers(2))
    speeds = [1] * (FRAMES // 2) + [int(rng.integers(3, 5))] * (FRAMES // 2)
    if not is_faster:
        speeds.reverse()
    moving, still = rng.permutation(len(SHAPES))[:2]
    colours = rng.permutation(len(COLOURS))[:2]
    size = int(rng.integers(3, 5))
    travelled = np.cumsum([0, *speeds])[:FRAMES]
    low, high = size, SIDE - 1 - size
    along = int(rng.integers(low, max(low + 1, high - int(travelled[-1]) + 1)))
    across, *other = (int(rng.integers(low, high + 1)) for _ in range(3))
    comes_first = bool(rng.integers(2))  # the moving one
    late = FRAMES // 4 + int(rng.integers(2))
    frames = []
    for t in range(FRAMES):
        image = Image.new("RGB", (SIDE, SIDE), (235, 235, 220))
        draw = ImageDraw.Draw(image)
        if t >= (late if comes_first else 0):
            _shape(draw, SHAPES[still], other, size, COLOURS[colours[1]])
        place = along + int(travelled[t])
        place = place if sum(WAYS[way]) > 0 else SIDE - 1 - place
        at = (place, across) if WAYS[way][0] else (across, place)
        if t >= (0 if comes_first else late):
            _shape(draw, SHAPES[moving], at, size, COLOURS[colours[0]])
        frames.append(np.asarray(image))
    first = SHAPES[moving if comes_first else still]
    return Clip(np.stack(frames), (way, "faster" if is_faster else "slower", first))


def _shape(draw: Any, kind: str, at: Sequence[int], size: int, colour: tuple) -> None:
    x, y = at
    box = (x - size, y - size, x + size, y + size)
    if kind == "circle":
        draw.ellipse(box, fill=colour)
    elif kind == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(x - size, y + size), (x + size, y + size), (x, y - size)], fill=colour)


def clips_as_codes(count: int, seed: int, model: BeingVLPatchVQModel | None) -> tuple:
    """Codes int (count, T, h, w), answers as ids (count, 3), and the quantizer, fitted where none is given."""
    rng = np.random.default_rng(seed)
    clips = [draw_clip(rng) for _ in range(count)]
    pixels = np.stack([clip.frames for clip in clips]).transpose(0, 1, 4, 2, 3)
    values = torch.from_numpy(pixels.reshape(-1, 3, SIDE, SIDE)).float() / 127.5 - 1
    if model is None:
        config = BeingVLPatchVQConfig(num_embeddings=CODES, patch_size=PATCH, resolution=SIDE)
        model = BeingVLPatchVQModel(config)
        model.fit(values[: 8 * 256], seed=0)
    codes = torch.cat([model.encode(part) for part in values.split(2048)]).numpy()
    answers = np.array([[WORDS.index(word) for word in clip.answers] for clip in clips])
    return codes.reshape(count, FRAMES, *codes.shape[1:]), answers, model


class Arm:
    """One way to write a clip down, and the model that learns from it."""

    def __init__(self, name: str, training: np.ndarray, seed: int):
        merges, repeats, self.interval = ARMS[name]
        clips = list(training[:1500])
        if repeats:
            clips = [mark_repeats(c, CODES, key_frame_interval=self.interval) for c in clips]
        repeat_code = CODES if repeats else None
        self.bpe = ImageBPE.train(
            np.concatenate(clips), merges, CODES + repeats, repeat_code=repeat_code
        )
        torch.manual_seed(seed)
        config = BeingVLConfig(
            text_vocab_size=len(WORDS), num_special_tokens=len(SPECIAL),
            codebook_size=self.bpe.codebook_size, num_merges=self.bpe.num_merges,
            boi_token_id=len(WORDS), eoi_token_id=len(WORDS) + 1, hidden_size=64, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048,
            bos_token_id=0, eos_token_id=None, pad_token_id=len(WORDS) + 4, tie_word_embeddings=True,
        )  # fmt: skip
        self.model = BeingVLForCausalLM(config)
        self.first_code = config.layout.first_code_id

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (T, h, w) → ids of the clip, without questions."""
        boi, eoi, bov, eov, _ = range(len(WORDS), len(WORDS) + len(SPECIAL))
        ids: list[Any] = [[0, bov]]
        for frame in encode_frames(self.bpe, codes, key_frame_interval=self.interval):
            ids += [[boi], frame + self.first_code, [eoi]]
        return np.concatenate([*ids, [eov]]).astype(np.int64)


def batch_of(ids: list[np.ndarray], answers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded ids (B, length) with the questions and answers at the end, and labels of the answers alone."""
    asked = np.broadcast_to(np.arange(1, 1 + len(QUESTIONS)), answers.shape)
    turns = np.stack([asked, answers], axis=-1).reshape(len(ids), -1)
    longest = max(map(len, ids)) + turns.shape[1]
    batch = np.full((len(ids), longest), len(WORDS) + 4)
    labels = np.full((len(ids), longest), -100)
    for row, (clip, turn) in enumerate(zip(ids, turns, strict=True)):
        batch[row, : len(clip) + len(turn)] = np.concatenate([clip, turn])
        at = len(clip) + np.arange(1, len(turn), 2)
        labels[row, at] = turn[1::2]
    return torch.from_numpy(batch), torch.from_numpy(labels)


def logits_at_answers(model: Any, batch: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits (answers, words) of the positions before the answers; the head is asked for no other."""
    hidden = model.model(input_ids=batch).last_hidden_state
    return model.lm_head(hidden[:, :-1][labels[:, 1:] != -100])[:, : len(WORDS)]


@torch.inference_mode()
def accuracy(arm: Arm, ids: list[np.ndarray], answers: np.ndarray) -> list[float]:
    """Share of right answers to each question."""
    arm.model.eval()
    right = []
    for start in range(0, len(ids), 100):
        batch, labels = batch_of(ids[start : start + 100], answers[start : start + 100])
        best = logits_at_answers(arm.model, batch, labels).argmax(-1)
        right.append((best == labels[labels != -100]).view(-1, len(QUESTIONS)))
    arm.model.train()
    return torch.cat(right).float().mean(0).tolist()


def run(name: str, seed: int, data: dict[str, Any], steps: int, seconds: float | None) -> dict:
    """Train one arm until it has had both the steps and the CPU seconds; figures at each."""
    arm = Arm(name, data["codes"], seed)
    ids = [arm.encode(codes) for codes in data["codes"]]
    test_ids = [arm.encode(codes) for codes in data["test_codes"]]
    optimizer = torch.optim.AdamW(arm.model.parameters(), lr=data["lr"], weight_decay=0.01)
    order = np.random.default_rng(seed)
    result: dict[str, Any] = {"arm": name, "seed": seed, "tokens": float(np.mean([*map(len, ids)]))}
    spent, step = 0.0, 0
    while step < steps or (seconds is not None and spent < seconds):
        chosen = order.integers(0, len(ids), data["batch"])
        started = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = data["lr"] * min(1.0, (step + 1) / 50)
        batch, labels = batch_of([ids[i] for i in chosen], data["answers"][chosen])
        logits = logits_at_answers(arm.model, batch, labels)
        loss = torch.nn.functional.cross_entropy(logits, labels[labels != -100])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(arm.model.parameters(), 1.0)
        optimizer.step()
        spent += time.process_time() - started
        step += 1
        if step == steps:
            result["at_steps"] = accuracy(arm, test_ids, data["test_answers"])
            result["seconds_of_steps"] = spent
        if step % 100 == 0:
            print(f"{name} {seed}: step {step}, {spent:.0f} s, loss {loss.item():.3f}", flush=True)
    result["at_time"] = accuracy(arm, test_ids, data["test_answers"])
    return {**result, "steps_of_time": step, "seconds": spent}


def study(
    seeds: int, steps: int, clips: int, tests: int, lr: float, batch: int
) -> Iterator[dict[str, Any]]:
    """All arms with each seed, which decides clips, order and weights."""
    for seed in range(seeds):
        codes, answers, model = clips_as_codes(clips, 100 + seed, None)
        test_codes, test_answers, _ = clips_as_codes(tests, 900 + seed, model)
        data = {
            "codes": codes, "answers": answers, "test_codes": test_codes,
            "test_answers": test_answers, "lr": lr, "batch": batch,
        }  # fmt: skip
        seconds = None
        for name in ARMS:
            row = run(name, seed, data, steps, seconds)
            seconds = seconds or row["seconds"]  # raw comes first
            yield row


def table(rows: list[dict]) -> list[str]:
    """Mean ± standard deviation over the seeds, as a Markdown table."""
    lines = [
        "| arm | tokens a clip | steps | " + " | ".join([*QUESTIONS] * 2) + " |",
        "|---" * (3 + 2 * len(QUESTIONS)) + "|",
    ]
    for name in ARMS:
        own = [row for row in rows if row["arm"] == name]
        cells = []
        for when in ("at_steps", "at_time"):
            for number in range(len(QUESTIONS)):
                values = [100 * row[when][number] for row in own]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        tokens = statistics.mean(row["tokens"] for row in own)
        steps = statistics.mean(row["steps_of_time"] for row in own)
        lines.append(f"| {name} | {tokens:.0f} | {steps:.0f} | " + " | ".join(cells) + " |")
    return lines


_DEFAULTS = {"seeds": 3, "steps": 500, "clips": 6000, "tests": 600, "lr": 1e-3, "batch": 16}


def main() -> int:
    """Run the study; the table goes to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in _DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--output", type=Path, help="JSON of all runs")
    options = vars(parser.parse_args())
    output = options.pop("output")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for row in study(**options):
        rows.append(row)
        if output is not None:
            write_atomic(output, json.dumps({"settings": options, "runs": rows}, indent=1) + "\n")
    print("\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
