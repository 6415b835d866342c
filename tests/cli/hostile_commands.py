"""Every command with every file that it reads, small, whole, and ready to be replaced by a mutant.

`make_world` makes the files once; `TARGETS` say which file goes with which command; `Runner` runs one command
on one mutant in this process and says how it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import io
import pickle
import random
import re
import shutil
import sys
import tarfile
import time
import traceback
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import torch
import yaml
from checkpoint_fixtures import image_bpe, llama_3_tokenizer, patch_vq, text_model, tiny_checkpoint
from data_fixtures import make_codes, make_rows, write_rows
from evaluation_fixtures import draw, write_json, write_pope, write_vqav2
from mutators import mutate, remove
from PIL import Image
from publish_fixtures import write_result

from being_vl import cli
from being_vl.hub.checkpoint import default_image_processor, save_checkpoint


@dataclass(frozen=True)
class Target:
    """A file that a command reads.

    Args:
        command: its name.
        file: the file below the world, or below the command's output where it begins with "out/".
        kind: of the mutator.
        argv: of the command; {w} is the world, {o} the output.
        prefill: a folder of the world that the output begins as a copy of.
    """

    command: str
    file: str
    kind: str
    argv: str
    prefill: str = ""
    stdin: str = ""

    @property
    def name(self) -> str:
        return f"{self.command} {self.file}"


_ENCODE = "--quantizer {w}/quantizer --images {w}/images --output {o} --workers 0 --device cpu --on-error skip"
_TRAIN_BPE = "--codes {w}/%s --output {o} --num-merges 4 --codebook-size 16 --num-threads 1"
_STATS = "{w}/bpe --codes {w}/%s --num-threads 1 --limit 4"
_INIT = "--base {w}/base --bpe {w}/bpe --quantizer {w}/quantizer --output {o}"
_TOKENIZE = "--checkpoint {w}/checkpoint --data {w}/%s --codes {w}/codes --output {o} --workers 1"
_TRAIN = (
    "--checkpoint {w}/checkpoint --data {w}/%s --output_dir {o} --max_steps 1 --per_device_train_batch_size 2 "
    "--use_cpu true --report_to none --save_strategy no --logging_strategy no --disable_tqdm true"
)
_EVAL = "{w}/checkpoint --tasks %s --data {w}/%s --output {o} --limit 2 --batch-size 2 --max-new-tokens 2 --device cpu"
_CHAT = "{w}/checkpoint --max-new-tokens 1 --device cpu"
_INSPECT = "{w}/bpe --image {w}/images/a.png --quantizer {w}/quantizer --output {o}/x.png"
_TRAIN_VQ = (
    "--images {w}/images --output {o} --kind patch --resolution 64 --eval-images {w}/images --workers 0 --device cpu "
    "--ssim false"
)
_ABLATE = (
    "--base {w}/base --quantizer {w}/quantizer --codes {w}/codes --bpe {w}/bpe --sft-data {w}/rows.json "
    "--test-data {w}/test.json --merges 4 --seeds 0 --regimes sft --output {o}"
)
_CHECKPOINT = {
    "config.json": "json", "generation_config.json": "json", "model.safetensors": "safetensors",
    "tokenizer.json": "json", "tokenizer_config.json": "json", "image_bpe.json": "json",
    "processor_config.json": "json", "chat_template.jinja": "text", "vq_model/config.json": "json",
    "vq_model/model.safetensors": "safetensors",
}  # fmt: skip
_QUANTIZER = {
    "config.json": "json",
    "preprocessor_config.json": "json",
    "model.safetensors": "safetensors",
}
_CODES = {"codes/codes-0.parquet": "parquet", "codes/manifest.json": "json"}
_ARRAYS = {
    "array.npy": "npy", "array.pt": "zip", "nested.parquet": "parquet", "array.tar": "tar",
}  # fmt: skip


# A file that is sound by itself, but is another one than the rest was made with, is named by its part.
_BLAMED = {
    "checkpoint/vq_model/": ("another quantizer", "the quantizer's latents", "no VQ model"),
    "checkpoint/processor_config": ("another quantizer", "max_image_pixels"),
    "checkpoint/tokenizer": ("another tokenizer", "the special token"),
    "checkpoint/image_bpe": ("another tokenizer",),
    "checkpoint/chat_template": ("chat template",),
    "mme/color/": ("no folder of a category",),
    "codes/codes-0.parquet": ("no codes for this image",),
}


def _targets() -> list[Target]:
    found: list[Target] = []

    def add(command: str, argv: str, files: dict[str, str], **more: str) -> None:
        found.extend(Target(command, file, kind, argv, **more) for file, kind in files.items())

    def below(folder: str, files: dict[str, str]) -> dict[str, str]:
        return {f"{folder}/{name}": kind for name, kind in files.items()}

    checkpoint, quantizer = below("checkpoint", _CHECKPOINT), below("quantizer", _QUANTIZER)
    add("convert", "{w}/legacy.pkl --output {o}/c", {"legacy.pkl": "pickle"})
    add("convert-vq", "{w}/vq.ckpt --output {o}/c", {"vq.ckpt": "zip"})
    add(
        "convert-vq",
        "{w}/vqgan --output {o}/c",
        below(
            "vqgan",
            {
                "config.json": "json",
                "model.safetensors.index.json": "json",
                "model-1.safetensors": "safetensors",
            },
        ),
    )
    add("encode", _ENCODE, {**quantizer, "images/a.png": "picture"})
    source = "--quantizer {w}/quantizer --output {o} --workers 0 --device cpu --on-error skip"
    saved = below(
        "dataset",
        {
            "state.json": "json",
            "dataset_info.json": "json",
            "data-00000-of-00001.arrow": "arrow",
        },
    )
    add("encode", f"{source} --data {{w}}/dataset", saved)
    add("encode", f"{source} --webdataset {{w}}/web.tar", {"web.tar": "tar"})
    add(
        "encode",
        _ENCODE,
        below(
            "out",
            {
                "encode.json": "json",
                "codes-00000-00000.parquet": "parquet",
                "encode.yaml": "yaml",
                "manifest.json": "json",
            },
        ),
        prefill="encoded",
    )
    for file, kind in _ARRAYS.items():
        add("train-bpe", _TRAIN_BPE % file, {file: kind})
    add("train-bpe", _TRAIN_BPE % "codes", _CODES)
    add(
        "train-bpe",
        _TRAIN_BPE % "array.npy",
        {"out/checkpoint.json": "json", "out/image_bpe.json": "json"},
        prefill="trained_bpe",
    )
    add("inspect", "{w}/bpe --output {o}/x.png --dump {o}/x.txt", {"bpe/image_bpe.json": "json"})
    add("inspect", _INSPECT, {"images/a.png": "picture", **quantizer})
    add("stats", _STATS % "codes", {"bpe/image_bpe.json": "json", **_CODES})
    add("stats", _STATS % "array.npy", {"array.npy": "npy"})
    base = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")  # fmt: skip
    add(
        "init",
        _INIT,
        {
            **below("base", {name: _CHECKPOINT[name] for name in base}),
            "bpe/image_bpe.json": "json",
            **quantizer,
        },
    )
    add("init", f"{_INIT} --chat-template {{w}}/template.jinja", {"template.jinja": "text"})
    for file, kind in (("rows.json", "json"), ("rows.jsonl", "jsonl"), ("rows.json.gz", "gz")):
        add("tokenize", _TOKENIZE % file, {file: kind})
    add("tokenize", f"{_TOKENIZE % 'conversations'} --on-missing text", below("conversations", {
        "state.json": "json", "dataset_info.json": "json", "data-00000-of-00001.arrow": "arrow"}))  # fmt: skip
    add("tokenize", _TOKENIZE % "rows.json", {**checkpoint, **_CODES})
    add("tokenize", _TOKENIZE % "rows.json", below("out", {"tokenize.yaml": "yaml", "tokenized.json": "json", "data-00000-of-00001.arrow": "arrow", "tokenize.json": "json"}),
        prefill="tokenized")  # fmt: skip
    add("train", _TRAIN % "tokenized", {**checkpoint, "tokenized/tokenized.json": "json", "tokenized/data-00000-of-00001.arrow": "arrow"})  # fmt: skip
    add("train", f"{_TRAIN % 'mixture.yaml'} --mixture_stage s", {"mixture.yaml": "yaml"})
    finished = {"train.yaml": "yaml", "finished.json": "json", "metrics.json": "json"}
    add("train", _TRAIN % "tokenized", below("out", finished), prefill="run")
    records = {
        "checkpoint-1/checkpoint_manifest.json": "json",
        "checkpoint-1/trainer_state.json": "json",
        "checkpoint-1/optimizer.pt": "zip",
    }
    add("train", _TRAIN % "tokenized", below("out", records), prefill="stopped_run")
    add("ablate", _ABLATE, {"rows.json": "json", "test.json": "json", "bpe/image_bpe.json": "json", "codes/codes-0.parquet": "parquet"})  # fmt: skip
    records = {"out/ablate.json": "json", "out/rows/m4-sft-s0.json": "json"}
    add("ablate", _ABLATE, records, prefill="ablated")
    for task, files in (
        ("pope", {"pope/coco_pope_random.json": "jsonl"}),
        ("vqav2", {
            "vqav2/v2_OpenEnded_mscoco_val2014_questions.json": "json",
            "vqav2/v2_mscoco_val2014_annotations.json": "json"}),
        ("mme", {"mme/color/red.txt": "text", "mme/color/red.png": "picture"}),
        ("llava", {"llava/llava.json": "json"}),
        ("caption", {"caption/captions.json": "json"}),
        ("mllm_bench", {"mllm/mllm.json": "json"}),
        ("reconstruction", {"images/a.png": "picture"}),
    ):  # fmt: skip
        data = next(iter(files)) if task in ("llava", "caption", "mllm_bench") else next(iter(files)).split("/")[0]  # fmt: skip
        add("eval", _EVAL % (task, data), files)
    add("eval", _EVAL % ("pope", "pope"), checkpoint)
    add("eval", _EVAL % ("pope", "pope"), {"out/evaluation/pope.json": "json", "out/evaluation/pope.answers.jsonl": "jsonl"}, prefill="evaluated")  # fmt: skip
    add("results", "{w}/checkpoint", {"checkpoint/evaluation/easyvqa.json": "json"})
    add("results", "--paper {w}/checkpoint", {"checkpoint/evaluation/easyvqa.json": "json"})
    add("results", "--verdicts {w}/verdicts.jsonl", {"verdicts.jsonl": "jsonl"})
    add("results", "--lmms-eval {w}/lmms_results.json --output {o} --hardware CPU", {"lmms_results.json": "json"})  # fmt: skip
    add("chat", _CHAT, checkpoint, stdin="Hello\n")
    add(
        "chat",
        f"{_CHAT} --image {{w}}/images/a.png",
        {"images/a.png": "picture"},
        stdin="What is it?\n",
    )
    add("demo", "{w}/checkpoint --device cpu", checkpoint)
    add("serve", "{w}/checkpoint --device cpu", checkpoint)
    described = {
        **checkpoint,
        "checkpoint/card.yaml": "yaml",
        "checkpoint/train.yaml": "yaml",
        "checkpoint/metrics.json": "json",
        "checkpoint/evaluation/easyvqa.json": "json",
    }
    add("card", "{w}/checkpoint", described)
    add("card", "{w}/codes", _CODES)
    add("card", "{w}/quantizer", quantizer)
    add("card", "{w}/bpe", {"bpe/image_bpe.json": "json"})
    add("push", "{w}/checkpoint user/name --dry-run", described)
    add("push", "{w}/codes user/name --dry-run", _CODES)
    add("export", "{w}/checkpoint --output {o}/e", checkpoint)
    add("train-vq", _TRAIN_VQ, {"images/a.png": "picture"})
    add("train-vq", _TRAIN_VQ, {"out/train-vq.yaml": "yaml"}, prefill="trained_vq")
    for name in cli.COMMANDS:
        add(name, f"--config {{w}}/options/{name}.yaml", {f"options/{name}.yaml": "yaml"})
    return found


TARGETS = _targets()


def make_world(folder: Path) -> Path:
    """The files, each read by its command without a complaint."""
    w = folder
    model, processor = tiny_checkpoint()
    save_checkpoint(model, processor, w / "checkpoint")
    write_result(w / "checkpoint")
    (w / "checkpoint/card.yaml").write_text("title: A title\nlicense: mit\nlanguage: [en]\nsections: {A: b}\n")  # fmt: skip
    (w / "checkpoint/train.yaml").write_text("stage: sft\nlearning_rate: 1.0e-3\nmax_steps: 3\n")
    (w / "checkpoint/metrics.json").write_text('{"train_loss": 1.5, "steps": 3}')
    text_model(llama_3_tokenizer()).save_pretrained(w / "base")
    llama_3_tokenizer().save_pretrained(w / "base")
    image_bpe().save_pretrained(w / "bpe")
    patch_vq().save_pretrained(w / "quantizer")
    default_image_processor(patch_vq().config).save_pretrained(w / "quantizer")
    (w / "images").mkdir()
    for name in "abc":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).resize((144, 120)).save(w / "images" / f"{name}.png")
    grids = make_codes(w / "codes")
    files = sorted((w / "codes").glob("*.parquet"))
    from being_vl.files import file_entry

    shards = [file_entry(path) | {"images": 3, "skipped": 0} for path in files]
    write_json(w / "codes/manifest.json", {"version": 1, "images": 6, "skipped": 0, "cells": sum(g.size for g in grids.values()), "shards": shards})  # fmt: skip
    rows = make_rows(list(grids), 5)
    write_rows(w / "rows.json", rows)
    write_rows(w / "rows.jsonl", rows)
    write_rows(w / "test.json", rows[:1])
    (w / "rows.json.gz").write_bytes(gzip.compress((w / "rows.json").read_bytes()))
    flat = [{**row, "image": row.get("image") if isinstance(row.get("image"), str) else None} for row in rows]  # fmt: skip
    datasets.Dataset.from_list([row for row in flat if row["image"]]).save_to_disk(w / "conversations")  # fmt: skip
    pictures = [{"image": str(path)} for path in sorted((w / "images").iterdir())]
    images = datasets.Dataset.from_list(pictures).cast_column("image", datasets.Image())
    images.map(lambda row: row, batched=True).save_to_disk(w / "dataset")
    _arrays(w)
    (w / "template.jinja").write_text(processor.chat_template or "{{ messages[0].content }}")
    legacy = [((1, 2), 16), ((16, 3), 17), ((4, 4), 18)]
    (w / "legacy.pkl").write_bytes(pickle.dumps(legacy))
    _benchmarks(w)
    (w / "verdicts.jsonl").write_text('{"verdict": "win", "level": "a"}\n{"verdict": "tie", "level": "b"}\n')  # fmt: skip
    (w / "mixture.yaml").write_text(yaml.safe_dump({"sources": {"a": "tokenized"}, "stages": {"s": {"shares": {"a": 1.0}, "samples": 3}}}))  # fmt: skip
    _vqgan(w)
    return w


def _arrays(w: Path) -> None:
    array = np.random.default_rng(0).integers(0, 4, (6, 4, 4)).astype(np.int32)
    np.save(w / "array.npy", array)
    np.savez(w / "array.npz", array)
    torch.save(torch.from_numpy(array), w / "array.pt")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image_id": [str(i) for i in range(6)], "codes": array.tolist()}), w / "nested.parquet")  # fmt: skip
    with (
        tarfile.open(w / "array.tar", "w") as codes,
        tarfile.open(w / "web.tar", "w") as web,
    ):
        for number, grid in enumerate(array):
            out = io.BytesIO()
            np.save(out, grid)
            _add(codes, f"{number}.npy", out.getvalue())
        for path in sorted((w / "images").iterdir()):
            _add(web, path.name, path.read_bytes())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _benchmarks(w: Path) -> None:
    write_pope(w / "pope")
    write_vqav2(w / "vqav2")
    draw(w / "mme/color/red.png", "red")
    (w / "mme/color/red.txt").write_text("Is it red?\tYes\nIs it blue?\tNo\n")
    for folder in ("llava", "caption", "mllm"):
        draw(w / folder / "red.png", "red")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    write_json(w / "llava/llava.json", [{"id": "1", "image": "red.png", "conversations": turns, "type": "conv"}])  # fmt: skip
    write_json(w / "caption/captions.json", {
        "images": [{"id": 1, "file_name": "red.png"}],
        "annotations": [{"image_id": 1, "caption": "a red thing"}, {"image_id": 1, "caption": "red"}]})  # fmt: skip
    write_json(w / "mllm/mllm.json", [{"unique_idx": 1, "image": "red.png", "question": "What?", "meta": {"level": "a"}}])  # fmt: skip
    write_json(w / "lmms_results.json", {
        "results": {"pope": {"alias": "pope", "pope_accuracy,none": 0.5}}, "configs": {"pope": {"task": "pope", "dataset_path": "lmms-lab/POPE", "test_split": "test", "generation_kwargs": {}}},
        "n-samples": {"pope": {"original": 10, "effective": 10}}, "config": {"model": "being_vl"}, "versions": {}, "total_evaluation_time_seconds": "3.5",
        "lmms_eval_version": "0.7"})  # fmt: skip


def _vqgan(w: Path) -> None:
    from safetensors.torch import save_file

    from being_vl import BeingVLVQConfig, BeingVLVQModel

    torch.manual_seed(0)
    model = BeingVLVQModel(BeingVLVQConfig(**TINY_VQ))
    state = dict(model.state_dict())
    torch.save({"state_dict": state}, w / "vq.ckpt")
    (w / "vqgan").mkdir()
    names = sorted(state)
    half = {name: state[name].contiguous() for name in names[: len(names) // 2]}
    rest = {name: state[name].contiguous() for name in names[len(names) // 2 :]}
    save_file(half, w / "vqgan/model-1.safetensors")
    save_file(rest, w / "vqgan/model-2.safetensors")
    weight_map = dict.fromkeys(half, "model-1.safetensors") | dict.fromkeys(rest, "model-2.safetensors")  # fmt: skip
    write_json(w / "vqgan/model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    write_json(w / "vqgan/config.json", {"model_type": "vqgan", "resolution": 16})


TINY_VQ: dict[str, Any] = {
    "base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "num_embeddings": 64, "embed_dim": 16,
    "latent_channels": 24, "resolution": 32, "attn_resolutions": [16],
}  # fmt: skip


@dataclass
class Outcome:
    """How a command ended on a mutant: status, its last line on standard error, what is wrong with it."""

    status: int
    line: str
    problem: str
    seconds: float
    done: str = ""


class Runner:
    """Runs commands on mutants, in this process.

    Args:
        world: made by `make_world`; files are replaced in it, and put back.
        scratch: a folder for outputs.
    """

    def __init__(self, world: Path, scratch: Path):
        self.world, self.scratch = world, scratch
        self._parsed: dict[Target, Any] = {}
        self._parsers: dict[str, Any] = {}
        self._original: dict[str, bytes] = {}
        sys.modules["being_vl.demo.page"] = types.SimpleNamespace(  # gradio need not be there
            build_page=lambda speaker, title: None, launch_page=lambda page, **options: None
        )  # type: ignore[assignment]

    def prepare(self) -> None:
        """Make the outputs that commands go on from, by those commands."""
        for name, argv in {
            "ablated": f"ablate {_ABLATE}", "encoded": f"encode {_ENCODE}", "trained_bpe": f"train-bpe {_TRAIN_BPE % 'array.npy'}",
            "tokenized": f"tokenize {_TOKENIZE % 'rows.json'}", "evaluated": f"eval {_EVAL % ('pope', 'pope')}",
            "trained_vq": f"train-vq {_TRAIN_VQ}", "run": f"train {_TRAIN % 'tokenized'} --save_strategy steps --save_steps 1",
        }.items():  # fmt: skip
            words = argv.format(w=self.world, o=self.world / name).split()
            light = _light_ablate if name == "ablated" else contextlib.nullcontext
            with light(), contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):  # fmt: skip
                assert cli.main(words) == 0, (words, errors.getvalue())
        for name in cli.COMMANDS:
            words = next(
                (t.argv for t in TARGETS if t.command == name and "--config" not in t.argv), ""
            )
            argv = words.format(w=self.world, o=self.world / "options").split()
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
                cli.main([name, *argv, "--print-config"])
            (self.world / "options").mkdir(exist_ok=True)
            (self.world / f"options/{name}.yaml").write_text(out.getvalue())
        shutil.copytree(self.world / "run", self.world / "stopped_run")
        (self.world / "stopped_run/finished.json").unlink()

    def run(self, target: Target, mutation: random.Random | None) -> Outcome:
        """One mutant, or, without a generator, the file as it is."""
        output = self.scratch / "out"
        shutil.rmtree(output, ignore_errors=True)
        if target.prefill:
            shutil.copytree(self.world / target.prefill, output)
            for path in output.rglob("*"):
                if path.suffix in (".json", ".yaml", ".jsonl") and path.stat().st_size < 1 << 20:
                    text = path.read_text().replace(str(self.world / target.prefill), str(output))
                    path.write_text(text)
        else:
            output.mkdir()
        inside = target.file.startswith("out/")
        path = self.scratch / target.file if inside else self.world / target.file
        original = None
        done = ""
        if mutation is not None:
            if not inside:
                original = path.read_bytes()
            done = mutate(path, target.kind, mutation)
        try:
            outcome = self._run(target, output)
        finally:
            if original is not None:
                remove(path)
                path.write_bytes(original)
            elif mutation is not None:
                remove(path)
        outcome.done = done
        return outcome

    def _run(self, target: Target, output: Path) -> Outcome:
        argv = [word.format(w=self.world, o=output) for word in target.argv.split()]
        out, err = io.StringIO(), io.StringIO()
        started = time.process_time()
        problem = ""
        status = -1
        run = cli.run_command if target.file.startswith("options/") else self._parsed_once(target)
        only_parse = mock.patch(f"being_vl.cli.{target.command.replace('-', '_')}.main", lambda args: 0)  # fmt: skip
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(cli, "run_command", run))
            if target.file.startswith("options/"):
                stack.enter_context(only_parse)
            stack.enter_context(mock.patch("sys.stdin", io.StringIO(target.stdin)))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            try:
                status = cli.main([target.command, *argv])
            except SystemExit as stop:
                status = int(stop.code or 0)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                problem = f"{type(error).__name__} {_place(error)}: {str(error)[:200]}"
        seconds = time.process_time() - started
        lines = [line for line in err.getvalue().splitlines() if "error:" in line and line.startswith("being-vl")]  # fmt: skip
        line = lines[-1] if lines else ""
        problem = problem or self._problem(target, status, line, lines, err.getvalue())
        return Outcome(status, line, problem, seconds)

    def _problem(self, target: Target, status: int, line: str, lines: list[str], text: str) -> str:
        if "Traceback" in text:
            return "traceback: " + text[text.index("Traceback") :][-300:]
        if status == 0:
            return ""
        if status == 1 and target.command == "chat":
            return "" if not re.search(r"unexpected \w+(Error|Exception)", text) else text[-300:]
        if status != 2:
            return f"status {status}: {text[-300:]}"
        if not lines:
            return f"no line: {text[-300:]}"
        if "error: unexpected " in line:
            return line
        if "options are required" in line and target.file.startswith("options/"):
            return ""  # neither the file nor the command line has it
        file = Path(target.file)
        names = (file.name, file.stem, f"/{file.parts[-2]}" if len(file.parts) > 1 else file.name, f"{self.scratch / 'out'}")  # fmt: skip
        blamed = next(
            (words for part, words in _BLAMED.items() if target.file.startswith(part)), ()
        )
        return "" if any(name in line for name in (*names, *blamed)) else f"unnamed: {line}"

    def _parsed_once(self, target: Target) -> Callable[[str, list[str]], int]:
        """`run_command` without the parser, which is tested by itself and takes most of the time."""

        def run(name: str, argv: list[str]) -> int:
            module = sys.modules.get(f"being_vl.cli.{name.replace('-', '_')}")
            if module is None:
                import importlib

                module = importlib.import_module(f"being_vl.cli.{name.replace('-', '_')}")
            if target not in self._parsed:
                self._parsed[target] = module.make_parser().parse_args(argv)
            # commands make their parser again to write down what it has read
            make_parser = self._parsers.setdefault(name, functools.cache(module.make_parser))
            with (
                _LIGHT.get(name, contextlib.nullcontext)(),
                mock.patch.object(module, "make_parser", make_parser),
            ):
                return module.main(self._parsed[target].clone()) or 0

        return run


@contextlib.contextmanager
def _light_train():
    """`train` without its steps and without its last save: all that it reads is read."""
    from being_vl.training import run
    from being_vl.training.trainer import BeingVLTrainer

    def no_steps(self, **kwargs):
        self.state.global_step = self.state.max_steps

    with (
        mock.patch.object(BeingVLTrainer, "_run_epoch", no_steps),
        mock.patch.object(run, "_finish", lambda *args, **kwargs: None),
    ):
        yield


@contextlib.contextmanager
def _light_ablate():
    """`ablate` without its commands, which are tried by themselves."""
    from being_vl.studies.ablation import running

    def no_run(command, cell, *args):
        fields = {
            "metrics": {"accuracy": 50.0},
            "questions": 1,
            "tokens_per_image": 3.0,
            "vocabulary": 2,
        }
        more = {
            "steps": {"sft": 1},
            "train_loss": {"sft": 1.0},
            "seconds": 1.0,
            "weights": [0.0, 1.0],
        }
        return running.CellResult(**dataclasses.asdict(cell), **fields, **more)

    with mock.patch.object(running, "run_cell", no_run):
        yield


@contextlib.contextmanager
def _light_eval():
    """`eval` without the metrics of captions, which need Java."""
    from being_vl.evaluation.scoring import captions

    with (
        mock.patch.object(captions, "require", lambda jar: None),
        mock.patch.object(captions, "caption_scores", lambda *args, **kwargs: {"CIDEr": 1.0}),
    ):
        yield


def _light_serve():
    """`serve` up to the port."""
    return mock.patch("uvicorn.run", lambda app, **options: None)


_LIGHT: dict[str, Any] = {
    "train": _light_train, "ablate": _light_ablate, "eval": _light_eval, "serve": _light_serve,
}  # fmt: skip


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "being_vl" in frame.filename and "tests" not in frame.filename]  # fmt: skip
    return f"at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
