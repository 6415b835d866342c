"""benchmarks → tasks: questions about images, and the rule that scores their answers.

Source: each benchmark's own files, as its authors publish them, and prompts as LLaVA and lmms-eval put them
("Answer the question using a single word or phrase."), so that results compare. See docs/evaluation.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import benchmark_files, easyvqa
from .benchmark_files import Example, numbered
from .scoring import captions
from .scoring.exact import exact_match_scores
from .scoring.vqa import vqa_scores
from .scoring.yes_no import exact_yes_no, mme_scores, pope_scores

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
_MME_SUFFIX = " Please answer yes or no."

Scorer = Callable[[Sequence[Example], Sequence[str]], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """What a model is asked, and how its answers are scored.

    Args:
        name: of the task and of its result file. Where a benchmark has several data sets or splits, the
            name says which (`llava-FILE`, `vqav2-SPLIT`), so that their results lie side by side.
        dataset: `name`, Hub `id` (or None), `split` and `digest` of the data, for the result file.
        rows: the questions; those about one image stand together.
        score: rows and an answer for each → the metrics of the result file. None: the answers are for an
            outside judge.
        max_new_tokens: after which an answer is cut.
        rows_scored_together: MME scores the two questions about an image as one.
    """

    name: str
    dataset: dict[str, str | None]
    rows: list[Example]
    score: Scorer | None
    max_new_tokens: int
    rows_scored_together: int = 1

    def limited(self, count: int | None) -> Task:
        """The first questions only; fewer where the last would be scored without its partner."""
        if count is None:
            return self
        kept = self.rows[: count - count % self.rows_scored_together]
        if not kept:
            raise ValueError(
                f"limit: task {self.name} scores {self.rows_scored_together} questions together, got {count}"
            )
        return replace(self, rows=kept)


def load_task(
    name: str,
    data: Path | None = None,
    images: Path | None = None,
    *,
    spice_jar: str | None = None,
) -> Task:
    """The task of a name of [`TASKS`].

    Args:
        name: of the task.
        data: folder or file of the benchmark; easyvqa alone needs none.
        images: folder of the images, where they are not with the data.
        spice_jar: for the SPICE of captions.

    Raises:
        ValueError: there is no such task, it needs data, or a file of it is malformed; the file is named.
        FileNotFoundError: a file or an image is missing.
        ImportError: easyvqa without the package easy-vqa.
    """
    if name not in TASKS:
        raise ValueError(f"tasks: no task {name!r}; there are: {', '.join(TASKS)}")
    if name == "easyvqa":
        return _easyvqa()
    if data is None:
        raise ValueError(f"task {name} needs its data: --data {name}=PATH")
    if name == "caption":
        task = _caption(data, images, spice_jar)
    else:
        task = TASKS[name](data, images)
    rows = numbered(task.rows)
    asked = json.dumps([[row.image, row.question, row.target] for row in rows]).encode()
    digest = hashlib.sha256(asked).hexdigest()[:16]  # tells data of one name apart
    return replace(task, rows=rows, dataset={**task.dataset, "digest": digest})


def _easyvqa() -> Task:
    split = easyvqa.load_easyvqa("test")
    rows = [
        Example(
            str(number), split.image_paths[q.image_id], q.text, q.answer, q.type.replace("/", "_")
        )
        for number, q in enumerate(split.questions)
    ]
    dataset = {"name": "easy-VQA", "id": None, "split": "test"}
    return Task("easyvqa", dataset, _by_image(rows), _score_exact, 8)


def _pope(data: Path, images: Path | None) -> Task:
    rows = benchmark_files.read_pope(data, images)
    dataset = {"name": "POPE", "id": None, "split": "test"}
    return Task("pope", dataset, _asked(rows, SHORT_ANSWER), _score_pope, 16)


def _vqav2(data: Path, images: Path | None) -> Task:
    rows, split = benchmark_files.read_vqav2(data, images)
    dataset = {"name": "VQAv2", "id": None, "split": split}
    return Task(named("vqav2", split), dataset, _asked(rows, SHORT_ANSWER), _score_vqa, 16)


def _mme(data: Path, images: Path | None) -> Task:
    rows = [
        replace(row, question=row.question.removesuffix(_MME_SUFFIX))
        for row in benchmark_files.read_mme(data, images)
    ]
    dataset = {"name": "MME", "id": None, "split": "test"}
    return Task("mme", dataset, _asked(rows, SHORT_ANSWER), _score_mme, 16, rows_scored_together=2)


def _llava(data: Path, images: Path | None) -> Task:
    rows = benchmark_files.read_llava(data, images)
    dataset = {"name": data.stem, "id": None, "split": None}
    return Task(named("llava", data.stem), dataset, _by_image(rows), _score_exact, 64)


def _caption(data: Path, images: Path | None, spice_jar: str | None) -> Task:
    captions.require(spice_jar)  # before the hours of answering, not after
    rows = benchmark_files.read_captions(data, images, CAPTION_PROMPT)
    dataset = {"name": data.stem, "id": None, "split": None}
    score = partial(_score_captions, spice_jar=spice_jar)
    return Task(named("caption", data.stem), dataset, _by_image(rows), score, 64)


def _mllm_bench(data: Path, images: Path | None) -> Task:
    rows = benchmark_files.read_mllm_bench(data, images)
    dataset = {"name": "MLLM-Bench", "id": None, "split": None}
    return Task("mllm_bench", dataset, _by_image(rows), None, 768)


TASKS: dict[str, Callable[..., Task]] = {
    "easyvqa": _easyvqa,
    "pope": _pope,
    "vqav2": _vqav2,
    "mme": _mme,
    "llava": _llava,
    "caption": _caption,
    "mllm_bench": _mllm_bench,
}


def named(task: str, data: str) -> str:
    """`TASK-DATA`, of the characters that a result's name may have."""
    return f"{task}-{re.sub(r'[^A-Za-z0-9._-]+', '_', data)}"


def _by_image(rows: Sequence[Example]) -> list[Example]:
    """Rows about one image together, images in the order in which they first come."""
    order = {image: place for place, image in enumerate(dict.fromkeys(row.image for row in rows))}
    return sorted(rows, key=lambda row: order[row.image])


def _asked(rows: Sequence[Example], suffix: str) -> list[Example]:
    return _by_image([replace(row, question=row.question.strip() + suffix) for row in rows])


def _score_exact(rows: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    groups = [row.group for row in rows]
    return exact_match_scores(
        answers, [row.target for row in rows], groups if any(groups) else None
    )


def _score_vqa(rows: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    """By the official script, and under `…/lmms_eval` by lmms-eval's rule."""
    truths = [row.target for row in rows]
    rule = vqa_scores(answers, truths, normalize_unanimous=True)
    return vqa_scores(answers, truths, [row.group for row in rows]) | _by_lmms_eval(rule)


def _score_pope(rows: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    """By POPE's script, and under `…/lmms_eval` by lmms-eval's rule."""
    truths = [row.target for row in rows]
    rule = pope_scores(list(map(strip_punctuation, answers)), truths, read=exact_yes_no)
    return pope_scores(answers, truths, [row.group for row in rows]) | _by_lmms_eval(rule)


def _by_lmms_eval(scores: dict[str, float]) -> dict[str, float]:
    return {f"{name}/lmms_eval": value for name, value in scores.items()}


def _score_mme(rows: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    return mme_scores(
        answers,
        [row.target for row in rows],
        [row.group for row in rows],
        [row.image for row in rows],
    )


def _score_captions(
    rows: Sequence[Example], answers: Sequence[str], *, spice_jar: str | None
) -> dict[str, float]:
    generated = dict(zip((row.id for row in rows), answers, strict=True))
    references = {row.id: row.target for row in rows}
    return captions.caption_scores(generated, references, spice_jar=spice_jar)


def strip_punctuation(answer: str) -> str:
    """An answer of one word without the punctuation around it; "Yes." would count as wrong in POPE."""
    bare = answer.strip()
    return bare.strip(".,;:!?\"'()[]") if len(bare.split()) == 1 else bare


def generation_record(
    row: Example, answer: str, *, model: str, options: dict[str, Any]
) -> dict[str, Any]:
    """A line for MLLM-Bench's judge: the fields of its `anchor.json`."""
    return {
        "unique_idx": row.extra["unique_idx"],
        "image": row.image,
        "question": row.question,
        "meta": row.extra["meta"],
        "level": row.group,
        "gen_model_id": model,
        "prompt": row.question,
        "answer": answer,
        "gen_kwargs": options,
    }
