"""Tokens and samples a second of training: VQ and VQ+BPE, padded and packed, frozen head and full.

    python benchmarks/training.py [--images 400] [--steps 12] [--repeats 3] [--hidden-size 64 --layers 2]

Questions about easy-VQA's images (from its package), the quickstart's quantizer and vocabulary, and a Llama
that has not learned anything: only the time matters. A plain `Trainer` on a stock LlamaForCausalLM of the
same size, with the same samples, is the measure. All ways of training take turns, `repeats` times; the
medians are over the repeats, each of which is the mean over its steps after the first three. A sample is a
question with its answer and its image. Tokens are those that the model sees, without padding: the image
that several questions share counts once. Runs on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback

from being_vl import BeingVLPatchVQConfig, BeingVLPatchVQModel, BeingVLProcessor, ImageBPE
from being_vl.evaluation.easyvqa import Question, load_easyvqa
from being_vl.hub.checkpoint import default_image_processor, init_checkpoint
from being_vl.quantizers.image_loading import load_image
from being_vl.studies.easyvqa_parts import CODEBOOK_SIZE
from being_vl.studies.quickstart.pipeline import NUM_MERGES
from being_vl.studies.quickstart.text_model import text_model_config, train_text_tokenizer
from being_vl.training.arguments import BeingVLTrainingArguments, DataArguments, StageArguments
from being_vl.training.collators import PaddingCollator
from being_vl.training.packing import IGNORE_INDEX
from being_vl.training.samples import TokenizedSamples
from being_vl.training.stage_trainer import make_trainer
from being_vl.training.stages import prepare_stage

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Way:
    """One way of training.

    Args:
        name: in the report.
        tokens: `"VQ"` or `"VQ+BPE"`.
        packing: see `DataArguments`.
        stage: `"sft"` or `"pretrain"`, where the text rows of the head and the decoder are frozen.
        rows_share: rows a step, as a share of the samples a step when each row has one.
        plain: `Trainer` on LlamaForCausalLM.
    """

    name: str
    tokens: str
    packing: str = "none"
    stage: str = "sft"
    plain: bool = False


WAYS = [
    Way(f"{name} {tokens}", tokens, packing, stage, plain)
    for tokens in ("VQ", "VQ+BPE")
    for name, packing, stage, plain in (
        ("plain Trainer, padded", "none", "sft", True),
        ("padded", "none", "sft", False),
        ("padded, frozen", "none", "pretrain", False),
        ("packed samples", "samples", "sft", False),
        ("shared image", "shared_image", "sft", False),
        ("shared image, frozen", "shared_image", "pretrain", False),
    )
]


@dataclass
class Timing:
    """Of one way, a value a repeat."""

    samples: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    rows: int = 0


class Stopwatch(TrainerCallback):
    """Seconds of the steps after the warm-up, wall clock and CPU."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        if state.global_step == WARM_UP_STEPS:
            self.start = now
        self.seconds, self.cpu_seconds = (
            (now[0] - self.start[0], now[1] - self.start[1])
            if state.global_step > WARM_UP_STEPS
            else (0.0, 0.0)
        )


class CountingCollate:
    """A collator that keeps count of rows, samples and tokens, batch by batch."""

    def __init__(self, collate: Callable[[list[dict]], dict]):
        self.collate = collate
        self.batches: list[tuple[int, int]] = []

    def __call__(self, rows: list[dict]) -> dict:
        samples = sum(_answers(row["labels"]) for row in rows)
        self.batches.append((samples, sum(len(row["input_ids"]) for row in rows)))
        return self.collate(rows)


def _answers(labels: np.ndarray) -> int:
    """Runs of labels: each sample has one answer."""
    labelled = np.concatenate([[False], np.asarray(labels) != IGNORE_INDEX])
    return int((labelled[1:] & ~labelled[:-1]).sum())


def prepare(num_images: int) -> tuple[Any, BeingVLPatchVQModel, ImageBPE, list, dict]:
    """Text tokenizer, quantizer, vocabulary, questions and codes of the first images of easy-VQA."""
    split = load_easyvqa("train")
    chosen = dict(list(split.image_paths.items())[:num_images])
    questions = [question for question in split.questions if question.image_id in chosen]
    images = np.stack([np.asarray(load_image(path).convert("RGB")) for path in chosen.values()])
    vq = BeingVLPatchVQModel(
        BeingVLPatchVQConfig(num_embeddings=CODEBOOK_SIZE, patch_size=4, resolution=64)
    )
    processor = default_image_processor(vq.config)
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    vq.fit(pixels, seed=0)
    codes = dict(zip(chosen, vq.encode(pixels).numpy(), strict=True))
    bpe = ImageBPE.train(
        np.stack(list(codes.values())), num_merges=NUM_MERGES, codebook_size=CODEBOOK_SIZE
    )
    texts = [question.text for question in questions] + [q.answer for q in questions]
    return train_text_tokenizer(texts), vq, bpe, questions, codes


def tokenize(processor: BeingVLProcessor, questions: list[Question], codes: dict) -> Any:
    """Samples in the columns of `being-vl tokenize`."""
    boi, eoi = processor.tokenizer.boi_token_id, processor.tokenizer.eoi_token_id
    encoded = processor.tokenizer.encode_codes(codes.values())
    images = {i: [boi, *ids.tolist(), eoi] for i, ids in zip(codes, encoded, strict=True)}
    columns: dict[str, list] = {"id": [], "input_ids": [], "assistant_masks": [], "length": []}
    turns: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for number, question in enumerate(questions):
        key = question.text, question.answer
        if key not in turns:
            said = zip(("user", "assistant"), key, strict=True)
            turn = processor.tokenizer.apply_chat_template(
                [{"role": role, "content": text} for role, text in said],
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            turns[key] = turn["input_ids"][1:], turn["assistant_masks"][1:]
        ids, mask = turns[key]
        before = [processor.tokenizer.bos_token_id, *images[question.image_id]]
        columns["id"].append(str(number))
        columns["input_ids"].append(before + ids)
        columns["assistant_masks"].append([0] * len(before) + mask)
        columns["length"].append(len(before) + len(ids))
    return datasets.Dataset.from_dict(columns)


def run(way: Way, made: tuple, dataset: Any, options: argparse.Namespace, folder: str) -> Timing:
    """One repeat of one way."""
    make_models, processor = made
    model, text_config = make_models()
    longest = options.max_length if way.packing != "none" else None
    # About as many samples a step for every way.
    mean_length = float(np.mean(dataset["length"]))
    a_row = {"none": 1.0, "samples": options.max_length / mean_length}.get(
        way.packing, len(dataset) / options.images
    )
    arguments = BeingVLTrainingArguments(
        output_dir=folder,
        max_steps=WARM_UP_STEPS + options.steps,
        per_device_train_batch_size=max(1, round(options.samples / a_row)),
        train_sampling_strategy="group_by_length" if not way.plain else "random",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=options.bf16,
    )
    stopwatch = Stopwatch()
    if way.plain:
        llama = LlamaForCausalLM(text_config)
        trainer = Trainer(
            model=llama,
            args=arguments,
            train_dataset=TokenizedSamples(dataset, model.config.layout),
            data_collator=PaddingCollator(model.config.pad_token_id),
            callbacks=[stopwatch],
        )
    else:
        prepare_stage(model, way.stage)
        data = DataArguments(data="", packing=way.packing, max_length=longest)
        trainer = make_trainer(
            model, processor, dataset, None, data, StageArguments(way.stage), arguments, [stopwatch]
        )
    trainer.remove_callback(PrinterCallback)  # standard output is for the report
    trainer.data_collator = counting = CountingCollate(trainer.data_collator)
    trainer.train()
    samples, tokens = np.mean(counting.batches, axis=0) * options.steps
    return Timing(
        [samples / stopwatch.seconds],
        [tokens / stopwatch.seconds],
        [samples / stopwatch.cpu_seconds],
        arguments.per_device_train_batch_size,
    )


def make_models(tokens: str, options: argparse.Namespace, parts: tuple) -> tuple[Callable, Any]:
    """A maker of (model, configuration of a stock Llama with as many rows), and the processor."""
    text_tokenizer, vq, bpe, _, _ = parts
    if tokens == "VQ":
        bpe = bpe.first(0)
    config = text_model_config(text_tokenizer)
    config.update(
        {
            "hidden_size": options.hidden_size,
            "intermediate_size": 4 * options.hidden_size,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "num_key_value_heads": options.heads,
            "head_dim": options.hidden_size // options.heads,
        }
    )

    def make() -> tuple[Any, LlamaConfig]:
        torch.manual_seed(0)
        model, _ = init_checkpoint(LlamaForCausalLM(config), text_tokenizer, vq, bpe)
        stock = LlamaConfig(**{**config.to_dict(), "vocab_size": model.config.vocab_size})
        return model, stock

    _, processor = init_checkpoint(LlamaForCausalLM(config), text_tokenizer, vq, bpe)
    return make, processor


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=int, default=400, help="images, with about ten questions each")
    add("--samples", type=int, default=40, help="samples a step, about")
    add("--steps", type=int, default=12, help="timed steps of a repeat")
    add("--repeats", type=int, default=3)
    add("--max-length", type=int, default=512, help="tokens of a packed row")
    add("--hidden-size", type=int, default=64)
    add("--layers", type=int, default=2)
    add("--heads", type=int, default=4)
    add("--bf16", action="store_true")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    parts = prepare(options.images)
    made = {tokens: make_models(tokens, options, parts) for tokens in ("VQ", "VQ+BPE")}
    data = {tokens: tokenize(made[tokens][1], *parts[3:]) for tokens in made}
    timings = {way.name: Timing() for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for way in WAYS:
                result = run(way, made[way.tokens], data[way.tokens], options, folder)
                timing = timings[way.name]
                timing.rows = result.rows
                for name in ("samples", "tokens", "cpu"):
                    getattr(timing, name).extend(getattr(result, name))
    report(timings, data)


def report(timings: dict[str, Timing], data: dict[str, Any]) -> None:
    """A line of JSON for each way; ratios to the plain `Trainer` on VQ tokens."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    threads = {"device": device, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    lengths = {
        f"tokens a sample, {name}": round(np.mean(d["length"]), 1) for name, d in data.items()
    }
    print(json.dumps({**threads, **lengths}))
    base = timings[WAYS[0].name]
    for name, timing in timings.items():
        line = {
            "way": name,
            "rows_a_step": timing.rows,
            "samples_per_second": round(statistics.median(timing.samples), 1),
            "tokens_per_second": round(statistics.median(timing.tokens)),
            "samples_ratio": _ratio(timing.samples, base.samples),
            "samples_ratio_cpu_seconds": _ratio(timing.cpu, base.cpu),
        }
        print(json.dumps(line))


def _ratio(values: list[float], base: list[float]) -> float:
    """The median of the ratios within each repeat."""
    return round(statistics.median(v / b for v, b in zip(values, base, strict=True)), 2)


if __name__ == "__main__":
    main()
