"""a benchmark's files on disk → examples: question, image, what is right.

Source: the formats in which POPE, VQA v2, MME, LLaVA, COCO captions and MLLM-Bench are published. What is
malformed is an error that names the file, the example, the field, the rule and the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..files import parse_json, read_json, read_text, shown

# Questions and answers of a whole benchmark; those of VQA v2 are the largest.
_MAX_BYTES = 1 << 29
_MAX_VALUES = 1 << 25

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Example:
    """A question about an image, and what is right."""

    id: str  # tells the examples of a task apart
    image: str  # a path
    question: str
    target: Any  # what the scorer compares the answer with
    group: str = ""  # category that is scored by itself
    extra: dict[str, Any] = field(default_factory=dict)  # fields that an export repeats


def read_pope(data: Path, images: Path | None) -> list[Example]:
    """`*_pope_CATEGORY.json`, a line each: `question_id`, `image`, `text`, `label`."""
    files = [data] if data.is_file() else sorted(data.glob("*pope*.json*"))
    if not files:
        raise FileNotFoundError(f"{data}: no file *pope*.json, such as coco_pope_random.json")
    folder = images or (data if data.is_dir() else data.parent)
    examples = []
    for path in files:
        category = path.stem.rpartition("_")[2]
        for number, entry in enumerate(read_json_lines(path), 1):
            where = f"{path}: line {number}"
            label = _get(entry, "label", str, where)
            if label not in ("yes", "no"):
                raise ValueError(f"{where}: 'label' must be yes or no, got {label!r}")
            image = _image(folder, _get(entry, "image", str, where), where)
            name = f"{category}/{entry.get('question_id', number)}"
            examples.append(Example(name, image, _get(entry, "text", str, where), label, category))
    return examples


def read_vqav2(data: Path, images: Path | None) -> tuple[list[Example], str]:
    """`*questions.json` and `*annotations.json`; images `COCO_SUBTYPE_000000000000.jpg`.

    Returns: the examples, and the subtype, such as val2014.
    """
    paths = [_only(data, f"*{kind}.json") for kind in ("questions", "annotations")]
    questions, annotations = map(_json, paths)
    subtype = "val2014"
    if isinstance(questions, dict) and "data_subtype" in questions:
        subtype = _get(questions, "data_subtype", str, str(paths[0]))
    folder = images or (data / subtype if (data / subtype).is_dir() else data)
    by_id: dict[int, tuple[str, Any]] = {}
    for where, entry in _entries(annotations, "annotations", paths[1]):
        question_id = _get(entry, "question_id", int, where)
        if question_id in by_id:
            there = by_id[question_id][0].rpartition(" ")[2]
            raise ValueError(f"{where}: question_id {question_id} stands at {there} already")
        by_id[question_id] = where, entry
    examples = []
    for where, entry in _entries(questions, "questions", paths[0]):
        question_id = _get(entry, "question_id", int, where)
        if question_id not in by_id:
            raise ValueError(f"{where}: question_id {question_id} is not in {paths[1]}")
        there, annotation = by_id[question_id]
        answers = _get(annotation, "answers", list, there)
        truths = [_get(answer, "answer", str, there) for answer in answers]
        name = f"COCO_{subtype}_{_get(entry, 'image_id', int, where):012d}.jpg"
        image, question = _image(folder, name, where), _get(entry, "question", str, where)
        group = str(annotation.get("answer_type", ""))
        examples.append(Example(str(question_id), image, question, truths, group))
    return examples, subtype


def read_mme(data: Path, images: Path | None) -> list[Example]:
    """A folder for each category, with a text file for each image: two lines, question, tab, answer.

    Images and texts lie side by side, or in `images/` and `questions_answers_YN/`.
    """
    examples = []
    for folder in sorted(path for path in _listed(data) if path.is_dir()):
        inner = folder / "questions_answers_YN"
        for path in sorted((inner if inner.is_dir() else folder).glob("*.txt")):
            lines = [line for line in read_text(path, _MAX_BYTES).splitlines() if line.strip()]
            if len(lines) != 2:
                raise ValueError(f"{path}: must hold two questions, a line each, got {len(lines)}")
            around = images / folder.name if images else folder
            image = _beside(path.stem, (around / "images", around), path)
            for number, line in enumerate(lines, 1):
                question, tab, answer = line.rpartition("\t")
                if not tab or answer.strip().lower() not in ("yes", "no"):
                    raise ValueError(
                        f"{path}: line {number} must be a question, a tab, and Yes or No, got {line!r}"
                    )
                name = f"{folder.name}/{path.stem}/{number}"
                examples.append(Example(name, image, question.strip(), answer.strip(), folder.name))
    if not examples:
        raise FileNotFoundError(f"{data}: no folder of a category with *.txt in it")
    return examples


def read_llava(data: Path, images: Path | None) -> list[Example]:
    """A list of conversations, each with `image` and turns `from` human and gpt; every pair is an example.

    A field `type` groups the scores.
    """
    examples = []
    for number, (where, entry) in enumerate(_list(data)):
        image = _image(images or data.parent, _get(entry, "image", str, where), where)
        turns = _get(entry, "conversations", list, where)
        said = [(_get(turn, "from", str, where), _get(turn, "value", str, where)) for turn in turns]
        speakers = [speaker for speaker, _ in said]
        if not said or speakers != ["human", "gpt"] * (len(said) // 2):
            raise ValueError(
                f"{where}: 'conversations' must be human and gpt in turn, got {speakers}"
            )
        for turn in range(0, len(said), 2):
            question = said[turn][1].replace("<image>", "").strip()
            name = f"{entry.get('id', number)}/{turn}"
            group = str(entry.get("type", ""))
            examples.append(Example(name, image, question, said[turn + 1][1], group))
    return examples


def read_captions(data: Path, images: Path | None, prompt: str) -> list[Example]:
    """COCO's format: `images` with `id` and `file_name`, `annotations` with `image_id` and `caption`."""
    content = _json(data)
    captions: dict[Any, list[str]] = {}
    for where, entry in _entries(content, "annotations", data):
        image_id = _get(entry, "image_id", (int, str), where)
        captions.setdefault(image_id, []).append(_get(entry, "caption", str, where))
    examples = []
    for where, entry in _entries(content, "images", data):
        image_id = _get(entry, "id", (int, str), where)
        if image_id not in captions:
            raise ValueError(f"{where}: 'id' {image_id!r} has no caption in 'annotations'")
        image = _image(images or data.parent, _get(entry, "file_name", str, where), where)
        examples.append(Example(str(image_id), image, prompt, captions[image_id]))
    return examples


def read_mllm_bench(data: Path, images: Path | None) -> list[Example]:
    """The list of MLLM-Bench: `unique_idx`, `image`, `question`, `meta` with `level`."""
    examples = []
    for where, entry in _list(data):
        unique_idx = _get(entry, "unique_idx", (int, str), where)
        name = _get(entry, "image", str, where)
        if images:
            image = _image(images, Path(name).name, where)
        else:  # its paths begin at the folder above `data/`
            is_below = not (data.parent / name).is_file() and (data.parent.parent / name).is_file()
            image = _image(data.parent.parent if is_below else data.parent, name, where)
        meta = _get(entry, "meta", dict, where) if entry.get("meta") else {}
        extra = {"unique_idx": unique_idx, "meta": meta}
        question, level = _get(entry, "question", str, where), str(meta.get("level", ""))
        examples.append(Example(str(unique_idx), image, question, None, level, extra))
    return examples


def numbered(examples: Sequence[Example]) -> list[Example]:
    """The same examples, with `#2`, `#3`, … behind an id that stood before, so that no two are equal."""
    taken = {example.id for example in examples}
    seen: set[str] = set()
    apart = []
    for example in examples:
        name, number = example.id, 2
        while name in seen or (number > 2 and name in taken):
            name, number = f"{example.id}#{number}", number + 1
        seen.add(name)
        apart.append(example if name == example.id else replace(example, id=name))
    return apart


def _image(folder: Path, name: str, where: str) -> str:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no image {path} (--images names their folder)")
    return str(path)


def _beside(stem: str, folders: Iterable[Path], path: Path) -> str:
    for folder in folders:
        for suffix in _SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return str(folder / f"{stem}{suffix}")
    raise FileNotFoundError(f"{path}: no image {stem} beside it (--images names their folder)")


def _get(entry: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"{where}: the field {name!r} is missing")
    value = entry[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}: {name!r} must be {names}, got {shown(value)}")
    return value


def _entries(content: Any, name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of a list in a file, each with its name in errors."""
    for number, entry in enumerate(_get(content, name, list, str(path))):
        yield f"{path}: {name}[{number}]", entry


def _json(path: Path) -> Any:
    return read_json(path, _MAX_BYTES, max_values=_MAX_VALUES)


def _list(path: Path) -> list[tuple[str, Any]]:
    """The entries of a file that is a list, each with its name in errors."""
    content = _json(path)
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: must be a list with entries, got {type(content).__name__}")
    return [(f"{path}: [{number}]", entry) for number, entry in enumerate(content)]


def read_json_lines(path: Path) -> list[Any]:
    """A JSON value a line; blank lines are passed over."""
    return [
        parse_json(line.encode(), f"{path}: line {number}")
        for number, line in enumerate(read_text(path, _MAX_BYTES).splitlines(), 1)
        if line.strip()
    ]


def _listed(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    return list(folder.iterdir())


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(path for path in _listed(folder) if path.match(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{folder}: must hold one file {pattern}, got {names}")
    return found[0]
