"""benchmarks → tasks: questions about images, and the rule that scores their answers.

Source: each benchmark's own files, as its authors publish them, and prompts as LLaVA and lmms-eval put them
("Answer the question using a single word or phrase."), so that results compare. See docs/evaluation.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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
    """What a model is asked, and how its answers are scored."""

    # Where a benchmark has several data sets or splits, the name says which (`llava-FILE`, `vqav2-SPLIT`), so
    # that their results lie side by side.
    name: str
    dataset: dict[str, str | None]  # `name`, Hub `id` (or None), `split` and `digest`
    examples: list[Example]  # those about one image stand together
    score: Scorer | None  # examples and answers → metrics; None: for an outside judge
    max_new_tokens: int
    scored_together: int = 1  # MME scores the two questions about an image as one

    def limited(self, count: int | None) -> Task:
        """The first questions only; fewer where the last would be scored without its partner."""
        if count is None:
            return self
        kept = self.examples[: count - count % self.scored_together]
        if not kept:
            raise ValueError(
                f"limit: task {self.name} scores {self.scored_together} questions together, got {count}"
            )
        # A result of some rows is never taken for, nor written over, one of all of them.
        return replace(self, examples=kept, dataset=limited_dataset(self.dataset, len(kept)))


def load_task(
    name: str, data: Path | None = None, images: Path | None = None, *, spice_jar: str | None = None
) -> Task:
    """The task of a name of [`TASKS`].

    Args:
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
    examples = numbered(task.examples)
    root = images or data  # below which an image has one name wherever the data lie
    asked = [
        [os.path.relpath(e.image, root).replace(os.sep, "/"), e.question, e.target]
        for e in examples
    ]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    return replace(task, examples=examples, dataset={**task.dataset, "digest": digest})


def _data(name: str, split: str | None) -> dict[str, str | None]:
    return {"name": name, "id": None, "split": split}


def _easyvqa() -> Task:
    split = easyvqa.load_easyvqa("test")
    examples = [
        Example(str(number), split.image_paths[q.image_id], q.text, q.answer, q.group)
        for number, q in enumerate(split.questions)
    ]
    return Task("easyvqa", _data("easy-VQA", "test"), _by_image(examples), _score_exact, 8)


def _pope(data: Path, images: Path | None) -> Task:
    examples = _asked(benchmark_files.read_pope(data, images))
    return Task("pope", _data("POPE", "test"), examples, _score_pope, 16)


def _vqav2(data: Path, images: Path | None) -> Task:
    examples, split = benchmark_files.read_vqav2(data, images)
    return Task(named("vqav2", split), _data("VQAv2", split), _asked(examples), _score_vqa, 16)


def _mme(data: Path, images: Path | None) -> Task:
    examples = [
        replace(example, question=example.question.removesuffix(_MME_SUFFIX))
        for example in benchmark_files.read_mme(data, images)
    ]
    return Task("mme", _data("MME", "test"), _asked(examples), _score_mme, 16, scored_together=2)


def _llava(data: Path, images: Path | None) -> Task:
    examples = _by_image(benchmark_files.read_llava(data, images))
    return Task(named("llava", data.stem), _data(data.stem, None), examples, _score_exact, 64)


def _caption(data: Path, images: Path | None, spice_jar: str | None) -> Task:
    captions.require(spice_jar)  # before the hours of answering, not after
    examples = _by_image(benchmark_files.read_captions(data, images, CAPTION_PROMPT))
    score = partial(_score_captions, spice_jar=spice_jar)
    return Task(named("caption", data.stem), _data(data.stem, None), examples, score, 64)


def _mllm_bench(data: Path, images: Path | None) -> Task:
    examples = _by_image(benchmark_files.read_mllm_bench(data, images))
    return Task("mllm_bench", _data("MLLM-Bench", "test"), examples, None, 768)


TASKS: dict[str, Callable[..., Task]] = {
    "easyvqa": _easyvqa,
    "pope": _pope,
    "vqav2": _vqav2,
    "mme": _mme,
    "llava": _llava,
    "caption": _caption,
    "mllm_bench": _mllm_bench,
}


def limited_dataset(dataset: dict[str, str | None], count: int) -> dict[str, str | None]:
    """The data of a result of the first rows alone, in the notation of `datasets`: `test[:10]`."""
    return {**dataset, "split": f"{dataset['split'] or 'all'}[:{count}]"}


def named(task: str, data: str) -> str:
    """`TASK-DATA`, of the characters that a result's name may have."""
    return f"{task}-{re.sub(r'[^A-Za-z0-9._-]+', '_', data)}"


def _by_image(examples: Sequence[Example]) -> list[Example]:
    """Examples about one image together, images in the order in which they first come."""
    order = {image: place for place, image in enumerate(dict.fromkeys(e.image for e in examples))}
    return sorted(examples, key=lambda example: order[example.image])


def _asked(examples: Sequence[Example]) -> list[Example]:
    return _by_image([replace(e, question=e.question.strip() + SHORT_ANSWER) for e in examples])


def _score_exact(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    groups = [example.group for example in examples]
    return exact_match_scores(
        answers, [example.target for example in examples], groups if any(groups) else None
    )


# By the official script, and under `…/lmms_eval` by lmms-eval's rule.


def _score_vqa(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    truths, groups = [e.target for e in examples], [e.group for e in examples]
    theirs = vqa_scores(answers, truths, normalize_unanimous=True)
    return vqa_scores(answers, truths, groups) | _by_lmms_eval(theirs)


def _score_pope(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    truths, groups = [e.target for e in examples], [e.group for e in examples]
    theirs = pope_scores(list(map(strip_punctuation, answers)), truths, read=exact_yes_no)
    return pope_scores(answers, truths, groups) | _by_lmms_eval(theirs)


def _by_lmms_eval(scores: dict[str, float]) -> dict[str, float]:
    return {f"{name}/lmms_eval": value for name, value in scores.items()}


def _score_mme(examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    of = [(example.target, example.group, example.image) for example in examples]
    return mme_scores(answers, *zip(*of, strict=True))


def _score_captions(
    examples: Sequence[Example], answers: Sequence[str], *, spice_jar: str | None
) -> dict[str, float]:
    generated = dict(zip((example.id for example in examples), answers, strict=True))
    references = {example.id: example.target for example in examples}
    return captions.caption_scores(generated, references, spice_jar=spice_jar)


def strip_punctuation(answer: str) -> str:
    """An answer of one word without the punctuation around it; "Yes." would count as wrong in POPE."""
    bare = answer.strip()
    return bare.strip(".,;:!?\"'()[]") if len(bare.split()) == 1 else bare
