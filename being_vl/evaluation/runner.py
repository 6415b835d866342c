"""checkpoint and task → answers and a result: on one device or, under `accelerate launch`, on many.

Each process answers a share of the questions and writes every batch down, so that a run that
was stopped goes on where it was; the first process puts the shares together and scores them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import cached_file

from .. import __version__
from ..files import RESULTS_FOLDER, Result, reading, result_path, write_atomic
from ..hub.part import pinned
from ..models.modeling_being_vl import BeingVLLanguageModel
from ..processing.processing_being_vl import BeingVLProcessor
from .answering import check_new_tokens, iter_answers, render_prompts
from .benchmark_files import Example
from .code_cache import CodeCache
from .journal import Journal
from .results import hardware
from .tasks import Task


def load_checkpoint(
    checkpoint: str, *, device: str | None = None, dtype: str = "auto"
) -> tuple[BeingVLLanguageModel, BeingVLProcessor]:
    """A checkpoint's model, in evaluation mode, and its processor, whose quantizer is on the same device."""
    state = PartialState(cpu=device == "cpu")
    shared = state.num_processes > 1  # accelerate gives each process a device of its own
    place = state.device if device is None or shared else torch.device(device)
    commit = pinned(checkpoint)
    with reading(checkpoint):
        processor = AutoProcessor.from_pretrained(checkpoint, vq_device=place, **commit)
        model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype, **commit)
    if not isinstance(processor, BeingVLProcessor):
        raise ValueError(
            f"{checkpoint}: its processor is a {type(processor).__name__}, not Being-VL's"
        )
    processor.tokenizer.check_rows(model.config.vocab_size)
    return model.to(place).eval(), processor  # type: ignore[arg-type]


class Evaluator:
    """A checkpoint, ready to answer.

    Args:
        checkpoint: folder, or repository on the Hub.
        output: results go into `evaluation/` below it.
        cache: folder of the codes; see [`CodeCache`].
        batch_size: questions at a time.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        output: str | os.PathLike,
        device: str | None = None,
        dtype: str = "auto",
        cache: str | None = None,
        batch_size: int = 64,
    ):
        self.model, self.processor = load_checkpoint(checkpoint, device=device, dtype=dtype)
        self.name = Path(checkpoint).resolve().name if os.path.isdir(checkpoint) else checkpoint
        self.identity = _identity(checkpoint)
        self.output, self.cache, self.batch_size = Path(output), cache, batch_size
        self.state = PartialState()

    def run(self, task: Task, *, max_new_tokens: int | None = None) -> Result | None:
        """Answer and score a task; files are written by the first process, which alone gets the result.

        `max_new_tokens` takes the place of the task's own. The metrics are empty where the answers are for
        an outside judge.
        """
        started = time.perf_counter()
        # Results of other data are not replaced: said now, not after hours of work.
        result_path(self.output, task.name, task.dataset, "being_vl")
        decoding = {"do_sample": False, "max_new_tokens": max_new_tokens or task.max_new_tokens}
        if max_new_tokens is not None:
            check_new_tokens(self.model, max_new_tokens)
        prompts = render_prompts(self.processor, [e.question for e in task.examples], image=True)
        mine = _share(task.examples, self.state.process_index, self.state.num_processes)
        paths = list(dict.fromkeys(example.image for example in task.examples[mine]))
        with self._bar(len(paths), f"{task.name}: quantizing", "image") as bar:
            grids = CodeCache(self.processor, self.cache).codes(paths, progress=bar.update)
        codes = dict(zip(paths, grids, strict=True))
        folder = self.output / RESULTS_FOLDER / f".{task.name}.partial"
        settings = self._settings(task.examples, prompts, decoding)
        journal = Journal(folder, settings, self.state)
        answers = self._answer(task, mine, prompts, codes, journal, decoding)
        # Path → cells and tokens of its image.
        tokens = self.processor.tokenizer.encode_codes(grids) if grids else []
        lengths = [(p, (g.size, len(ids))) for p, g, ids in zip(paths, grids, tokens, strict=True)]
        answers, lengths = self._gather(answers), self._gather(lengths)
        if not self.state.is_main_process:
            return None
        cells_and_tokens = list(dict(lengths).values())
        codes_per_image, tokens_per_image = np.mean(cells_and_tokens, axis=0).tolist()
        result = Result(
            task=task.name,
            dataset=task.dataset,
            metrics={} if task.score is None else task.score(task.examples, answers),
            num_examples=len(task.examples),
            decoding=decoding,
            harness={"name": "being_vl", "version": __version__},
            seconds=round(time.perf_counter() - started, 3),
            hardware=hardware(self.model.device, self.state.num_processes),
            images={"codes_per_image": codes_per_image, "tokens_per_image": tokens_per_image},
        )
        self._write(task, answers, decoding)
        result.save(self.output)
        journal.remove()
        return result

    def _answer(
        self, task: Task, mine: slice, prompts: Sequence[str], codes: dict[str, np.ndarray],
        journal: Journal, decoding: dict[str, Any],
    ) -> list[str]:  # fmt: skip
        """The answers to this process's questions, whose places in the task are the journal's keys."""
        answers, places = journal.found, range(mine.start, mine.stop)
        left = [place for place in places if str(place) not in answers]
        batches = iter_answers(
            self.model,
            self.processor,
            [prompts[place] for place in left],
            [task.examples[place].image for place in left],
            codes,
            batch_size=self.batch_size,
            **decoding,
        )
        to_do = iter(left)
        with self._bar(len(places), f"{task.name}: answering", "question") as bar, journal:
            bar.update(len(places) - len(left))
            for batch in batches:
                journal.add({str(next(to_do)): text for text in batch})
                bar.update(len(batch))
        return [answers[str(place)] for place in places]

    def _settings(
        self, examples: Sequence[Example], prompts: Sequence[str], decoding: dict[str, Any]
    ) -> dict[str, Any]:
        """What must be the same for answers of an earlier run to count."""
        asked = hashlib.sha256()
        for example, prompt in zip(examples, prompts, strict=True):
            asked.update(json.dumps([example.id, example.image, prompt]).encode())
        return {
            "checkpoint": self.identity,
            "dtype": str(self.model.dtype),
            "questions": asked.hexdigest(),
            "decoding": decoding,
            "versions": [__version__, torch.__version__, transformers.__version__],
        }

    def _write(self, task: Task, answers: Sequence[str], decoding: dict[str, Any]) -> None:
        """The answers, a line each; for an outside judge in the judge's form."""
        name = f"{task.name}.{'generations' if task.score is None else 'answers'}.jsonl"
        lines = []
        for e, answer in zip(task.examples, answers, strict=True):
            if task.score is None:  # the fields of MLLM-Bench's `anchor.json`
                record = {
                    "unique_idx": e.extra["unique_idx"], "image": e.image, "question": e.question,
                    "meta": e.extra["meta"], "level": e.group, "gen_model_id": self.name,
                    "prompt": e.question, "answer": answer, "gen_kwargs": decoding,
                }  # fmt: skip
            else:
                record = {"id": e.id, "question": e.question, "answer": answer, "target": e.target}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        write_atomic(self.output / RESULTS_FOLDER / name, "".join(lines))

    def _gather(self, values: list[Any]) -> list[Any]:
        """The values of all processes, in the order of the processes."""
        return gather_object(values) if self.state.num_processes > 1 else values

    def _bar(self, total: int, description: str, unit: str) -> tqdm:
        hidden = not self.state.is_main_process
        return tqdm(total=total, desc=description, unit=unit, disable=hidden)


def _share(examples: Sequence[Example], index: int, count: int) -> slice:
    """A process's part of the examples: contiguous, and never parting those about one image."""

    def bound(number: int) -> int:
        place = len(examples) * number // count
        while 0 < place < len(examples) and examples[place].image == examples[place - 1].image:
            place += 1
        return place

    return slice(bound(index), bound(index + 1))


def _identity(checkpoint: str) -> str:
    """Names the weights without reading them: where the files lie, of which commit, and what they look like."""
    folder = Path(str(cached_file(checkpoint, "config.json"))).parent
    files = sorted(folder.rglob("*.safetensors"))
    looks = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(looks).encode()).hexdigest()
