"""Drawing on request: LLM+VQ against LLM+VQ+BPE, a small Llama from scratch on drawings that people made.

    python -m being_vl.studies.drawings --images clipart/usr/share/openclipart/png --output drawings
    python experiments/drawings_images.py --drawings drawings

Both learn "draw a KIND" and "draw a KIND called NAME" → the drawing; LLM+VQ+BPE for as many steps as LLM+VQ, and anew
for as many as fit in the CPU time that LLM+VQ took with the same seed. Then one drawing is sampled for each drawing held
out, of its kind, from all that the grid allows and without truncation. Judged are the kind, by a classifier that
learned it from training drawings, and the distance of all to the drawings held out; `drawings_judge.py` has both.
The first samples of some kinds are put on a sheet, whatever they look like. What is done is kept in --work, so that
a stopped command goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawings_judge import Judge, RandomFeatures, kernel_distance
from drawings_parts import Parts, make_base, own_words, spread
from experiment_tools import make_parser, once, seeds, write_results
from PIL import Image, ImageDraw

from being_vl.files import write_atomic
from being_vl.studies.commands import make_part

BATCH = 150  # drawings sampled at once
REFERENCES = {
    "held out": "drawings held out",
    "training": "training drawings of the same kinds",
    "shuffled": "drawings held out, their cells in random order",
}


def kinds_of(drawings: Path, split: str) -> list[tuple[str, str]]:
    """Image and kind of each drawing of a split."""
    rows = json.loads((drawings / split / "questions.json").read_text())
    return [(r["image"], r["conversations"][1]["value"]) for r in rows if r["type"] == "kind"]


def rows_of(drawings: Path, split: str, *, named: bool) -> list[dict[str, Any]]:
    """Requests and drawings as conversations: of each its kind and, with `named`, once more its kind and name."""
    kinds = dict(kinds_of(drawings, split))
    requests = [(image, f"draw a {kind}") for image, kind in kinds.items()]
    if named:
        titles = json.loads((drawings / split / "captions.json").read_text())
        requests += [
            (r["image"], f"draw a {kinds[r['image']]} called {r['conversations'][1]['value']}")
            for r in titles
        ]
    return [
        {
            "id": str(number),
            "image": image,
            "conversations": [
                {"from": "human", "value": text},
                {"from": "gpt", "value": "<image>"},
            ],
        }
        for number, (image, text) in enumerate(requests)
    ]


def request(row: dict[str, Any]) -> str:
    return row["conversations"][0]["value"]


@torch.inference_mode()
def draw(checkpoint: Path, requests: Sequence[str], seed: int) -> np.ndarray:
    """One sample for each request, uint8 (n, side, side, 3)."""
    from being_vl.models.loading import load_language_model
    from being_vl.processing.processing_being_vl import BeingVLProcessor

    model = load_language_model(checkpoint, dtype=torch.float32).eval()
    processor = BeingVLProcessor.from_pretrained(checkpoint)
    height, width = model.config.image_grid_size
    torch.manual_seed(seed)
    found = []
    for start in range(0, len(requests), BATCH):
        chats = [
            [{"role": "user", "content": [{"type": "text", "text": text}]}]
            for text in requests[start : start + BATCH]
        ]
        prompts = processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        inputs = processor(
            text=prompts, add_special_tokens=False, padding=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, generation_mode="image", do_sample=True, top_k=0)
        images = processor.post_process_multimodal_output(
            ids, generation_mode="image", height=height, width=width
        )
        found += [np.asarray(image.convert("RGB")) for image in images]
    return np.stack(found)


class Study:
    """Requests, the drawings of both splits as the quantizer gives them back, and who judges them."""

    def __init__(self, parts: Parts, args: Any):
        self.parts, self.args = parts, args
        self.files = {}
        for split, named in (("train", True), ("test", False)):
            self.files[split] = parts.work / f"requests-{split}.json"
            write_atomic(self.files[split], json.dumps(rows_of(parts.drawings, split, named=named)))
        self.requests = [request(row) for row in json.loads(self.files["test"].read_text())]
        self.kinds = [kind for _, kind in kinds_of(parts.drawings, "test")]

    def run(self, merges: int, seed: int, steps: int, name: str) -> dict[str, Any]:
        """Train one model, draw with it, and keep the drawings."""
        parts, texts = self.parts, [request(r) for r in json.loads(self.files["train"].read_text())]
        base = make_part(parts.work / f"base-{seed}", lambda target: make_base(texts, target, seed))
        with parts.started(base, parts.bpe(merges), seed, **own_words(base)) as (begin, end):
            ids = {
                split: parts.rows(begin, f"ids-{merges}", split, file)
                for split, file in self.files.items()
            }
            metrics = parts.train(
                checkpoint=begin, data=ids["train"], eval_data=ids["test"], output_dir=end, stage="sft",
                packing="none", train_sampling_strategy="group_by_length", max_steps=steps,
                per_device_train_batch_size=self.args.batch, per_device_eval_batch_size=50,
                learning_rate=2e-3, warmup_steps=0.05, adam_beta2=0.98, weight_decay=0.01, seed=seed,
                logging_steps=100,
            )  # fmt: skip
            started = time.process_time()
            drawn = draw(end, self.requests, seed)
            seconds = time.process_time() - started
        Image.fromarray(np.concatenate(drawn)).save(parts.work / f"{name}.png")
        counts = json.loads((ids["test"] / "tokenized.json").read_text())["counts"]
        return {
            "merges": merges, "seed": seed, "steps": steps, "cpu_seconds": metrics["cpu_seconds"],
            "tokens": counts["image_tokens"] / counts["images"],
            "nats": metrics["eval_loss"] * counts["assistant_tokens"] / counts["samples"],
            "draw_seconds": round(seconds / len(drawn), 4), "train_losses": metrics["train_losses"],
        }  # fmt: skip

    def drawn(self, name: str) -> np.ndarray:
        """What a run drew, in the order of the requests."""
        strip = np.asarray(Image.open(self.parts.work / f"{name}.png"))
        side = strip.shape[1]
        return strip.reshape(-1, side, side, 3)

    def real(self, split: str) -> np.ndarray:
        """The drawings of a split through the quantizer and back, as all that was drawn came out of it."""
        from being_vl.codes.shards import CodeShards
        from being_vl.quantizers.quantizer import image_processor_for, load_quantizer

        shards = CodeShards(self.parts.codes[split])
        codes = dict(zip(shards.image_ids(), shards, strict=True))
        images = [image for image, _ in kinds_of(self.parts.drawings, split)]
        vq = load_quantizer(self.parts.vq)
        with torch.inference_mode():
            pixels = vq.decode(torch.from_numpy(np.stack([codes[i] for i in images])).long())
        found = image_processor_for(self.parts.vq, vq.config).postprocess(pixels)
        return np.stack([np.asarray(image.convert("RGB")) for image in found])

    @cached_property
    def scores(self) -> Scores:
        kinds = [kind for _, kind in kinds_of(self.parts.drawings, "train")]
        epochs = 1 if self.args.quick else 15
        return Scores(self.real("train"), kinds, self.real("test"), self.kinds, epochs)


class Scores:
    """Kind and distance of drawings, one for each drawing held out.

    Args:
        train, train_kinds: drawings to learn from.
        test, kinds: drawings held out.
        epochs: of the judge's training.
    """

    def __init__(
        self, train: np.ndarray, train_kinds: Sequence[str], test: np.ndarray, kinds: Sequence[str], epochs: int
    ):  # fmt: skip
        self.train, self.train_kinds, self.test, self.kinds = train, train_kinds, test, kinds
        self.judge, self.features = Judge(train, train_kinds, epochs), RandomFeatures(train)

    def __call__(self, drawings: np.ndarray) -> dict[str, float]:
        return {
            "kind": self.judge.accuracy(drawings, self.kinds),
            "distance": kernel_distance(self.features(drawings), self.features(self.test)),
        }

    def references(self, cell: int) -> dict[str, dict[str, float]]:
        """Drawings held out; training drawings of the same kinds, for a floor; those held out, cells shuffled."""
        rng = np.random.default_rng(0)
        of_kind = {kind: np.flatnonzero(np.array(self.train_kinds) == kind) for kind in self.kinds}
        others = self.train[[rng.choice(of_kind[kind]) for kind in self.kinds]]
        count, side = self.test.shape[:2]
        cells = self.test.reshape(count, side // cell, cell, side // cell, cell, 3).swapaxes(2, 3)
        flat = np.stack([rng.permutation(one) for one in cells.reshape(count, -1, cell * cell * 3)])
        shuffled = flat.reshape(cells.shape).swapaxes(2, 3).reshape(self.test.shape)
        kind = self.judge.accuracy(self.test, self.kinds)
        return {
            "held out": {"kind": kind, "distance": 0.0},
            "training": self(others),
            "shuffled": self(shuffled),
        }


def sheet(groups: dict[str, np.ndarray], kinds: Sequence[str], path: Path, rows: int, columns: int) -> None:  # fmt: skip
    """The first drawings of the most frequent kinds, a kind a row, the groups beside each other."""
    chosen = [kind for kind, _ in Counter(kinds).most_common(rows)]
    margin, gap, side = 90, 10, next(iter(groups.values())).shape[1]
    width = margin + len(groups) * (columns * (side + 2) + gap)
    page = Image.new("RGB", (width, 20 + len(chosen) * (side + 2)), "white")
    pen = ImageDraw.Draw(page)
    for number, (title, drawings) in enumerate(groups.items()):
        left = margin + number * (columns * (side + 2) + gap)
        pen.text((left, 4), title, fill="black")
        for row, kind in enumerate(chosen):
            top = 20 + row * (side + 2)
            pen.text((2, top + side // 2 - 6), kind, fill="black")
            for place, index in enumerate(np.flatnonzero(np.array(kinds) == kind)[:columns]):
                page.paste(Image.fromarray(drawings[index]), (left + place * (side + 2), top))
    page.quantize(256).save(path, optimize=True)


def table(found: dict[str, Any]) -> list[str]:
    """Mean ± standard deviation over the seeds, as a Markdown table."""
    lines = [
        "| merges | compared at | tokens an image | steps | CPU seconds | nats a drawing | kind found, % | distance | CPU ms to draw one |",
        "|---" * 9 + "|",
    ]
    for name, scores in found["references"].items():
        distance = "0" if name == "held out" else f"{scores['distance']:.2f}"
        lines.append(f"| {REFERENCES[name]} | – | – | – | – | – | {scores['kind']:.1f} | {distance} | – |")  # fmt: skip
    kinds = {(row["merges"], row["equal"]): None for row in found["runs"]}
    for merges, equal in kinds:
        own = [r for r in found["runs"] if (r["merges"], r["equal"]) == (merges, equal)]
        numbers = [f"{sum(r[name] for r in own) / len(own):,.0f}" for name in ("tokens", "steps", "cpu_seconds")]  # fmt: skip
        cells = [
            spread([row["nats"] for row in own], 0), spread([row["kind"] for row in own], 1),
            spread([row["distance"] for row in own], 2), spread([1000 * row["draw_seconds"] for row in own], 0),
        ]  # fmt: skip
        lines.append(f"| {merges:,} ({len(own)}) | equal {equal} | " + " | ".join([*numbers, *cells]) + " |")  # fmt: skip
    return lines


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("drawings-images"))
    parser.add_argument("--merges", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=400, help="of LLM+VQ")
    parser.add_argument("--batch", type=int, default=8, help="drawings a step")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(Parts(args.drawings, args.work), args)
    output, runs = Path(args.output), args.work / "runs"
    rows: list[dict[str, Any]] = []

    def measured(merges: int, seed: int, steps: int, equal: str) -> dict[str, Any]:
        name = f"{merges}-{seed}-{args.steps}-{args.batch}-{equal}"
        row = once(runs, name, lambda: study.run(merges, seed, steps, name))
        scores = once(runs, f"{name}-scores", lambda: study.scores(study.drawn(name)))
        rows.append({"equal": equal, **row, **scores})
        return row

    for seed in seeds(args):
        plain = measured(0, seed, args.steps, "steps")
        merged = measured(args.merges, seed, args.steps, "steps")
        more = round(args.steps * plain["cpu_seconds"] / merged["cpu_seconds"])
        measured(args.merges, seed, more, "time")
        if seed == 0:
            groups = {
                "held out": study.real("test"),
                "LLM+VQ": study.drawn(f"0-0-{args.steps}-{args.batch}-steps"),
                "LLM+VQ+BPE": study.drawn(f"{args.merges}-0-{args.steps}-{args.batch}-time"),
            }
            sheet(groups, study.kinds, output / "drawings-images.png", rows=8, columns=4)
        references = once(runs, "references", lambda: study.scores.references(4))
        found = {
            "settings": {"batch": args.batch},
            "references": references,
            "runs": rows,
        }
        write_results(found, output / "drawings-images.json")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
