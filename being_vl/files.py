"""Files: written whole or not at all, read within limits, folders locked and claimed.

Every room writes and reads through here: `write_atomic`, `new_file` and `new_folder` for what may be
interrupted, `read_json` for what somebody else may have written, `locked` and `claim` for a folder that one
run owns, and `Result`, the one record that evaluation writes and model cards read.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from glob import escape
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 1 << 26  # tokenizer.json of 300,000 ids fits; bounds what parsing may allocate


# Writing


def write_atomic(path: str | os.PathLike, data: bytes | memoryview | str) -> None:
    """Write a file so that readers, and a restart after a crash, see all of it or nothing.

    Args:
        path: the file; folders above it are made.
        data: bytes, or text that is written as UTF-8.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind, and the file
            that was there before is untouched.
    """
    with new_file(path) as aside, open(aside, "wb") as file:
        file.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` for the body to write; it takes the name when the body succeeds.

    Raises:
        OSError: as the body does, with `path` as its file name; nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    # The suffix stays last: writers such as Pillow choose the format by it.
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    aside = path.with_name(f".{path.stem}.{unique}.tmp{path.suffix}")
    try:
        yield aside
        _flush(aside)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _flush(path.parent)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` left beside it."""
    for aside in path.parent.glob(f".{escape(path.stem)}.*.tmp{escape(path.suffix)}"):
        writer = aside.name.removeprefix(f".{path.stem}.").partition("-")[0]
        if writer.isdecimal() and not _is_running(int(writer)):
            aside.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # no way to ask without a dependency; leftovers stay
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `path` for the body to fill; it takes the name when the body succeeds.

    Raises:
        ValueError: `path` exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield aside
        aside.chmod(0o755)  # mkdtemp's folders are closed to others
        os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


# Reading


def read_json(
    path: str | os.PathLike, max_bytes: int = MAX_JSON_BYTES, *, optional: bool = False
) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN, bounded size and depth.

    Args:
        path: the file.
        max_bytes: a larger file is refused before it is parsed.
        optional: return None where there is no file.

    Raises:
        ValueError: naming the file and what is wrong.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if optional and not path.exists():
        return None
    with open(path, "rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise ValueError(f"{path}: larger than {max_bytes} bytes")
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_distinct_keys, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except (
        ValueError
    ) as error:  # also UnicodeDecodeError, JSONDecodeError, integers of thousands of digits
        raise ValueError(f"{path}: not valid JSON: {error}") from None


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"field {shown(twice)} appears twice")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def shown(value: Any) -> str:
    """A value for an error message, never long."""
    text = repr(value) if not isinstance(value, (list, dict)) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def write_json(path: str | os.PathLike, fields: Mapping[str, Any]) -> None:
    """Write a configuration as transformers writes its own: sorted keys, two spaces."""
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomic(path, text + "\n")


# Folders that one run owns


@contextmanager
def locked(folder: Path, busy: str, *, name: str = ".lock") -> Iterator[None]:
    """Make the folder and hold it.

    Args:
        folder: the folder.
        busy: what the error says of it.
        name: of the lock's file; runs that share a folder, as processes of one job do, have their own.

    Raises:
        OSError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"{folder}: {busy}") from None
    try:
        yield
    finally:
        lock.release()


def claim(path: Path, wanted: Mapping[str, Any], rule: str, *, made: str | None = None) -> None:
    """Write down what a folder is made from; refuse a folder that was made from something else.

    Args:
        path: the file, in the folder.
        wanted: what this run is made from, as JSON.
        rule: why the two do not go together, for the error.
        made: pattern of the files that a run leaves; none may lie in a folder without `path`.

    Raises:
        ValueError: the folder holds, or is to hold, something else.
    """
    wanted = json.loads(json.dumps(wanted))  # as it will be read back: lists for tuples
    if path.exists():
        refuse_others(path, read_json(path), wanted, wanted, rule)
    elif made is not None and any(path.parent.glob(made)):
        raise ValueError(
            f"{path.parent}: holds shards but no {path.name}; choose another output folder"
        )
    else:
        write_atomic(path, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")


def refuse_others(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str], rule: str
) -> None:
    """Raises ValueError if a setting that `path` holds is not this run's; both values are named."""
    for name in names:
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path}: {name} is {found.get(name)}, but this run's is {wanted.get(name)}: {rule}"
            )


# Results

RESULT_VERSION = 1
RESULTS_FOLDER = "evaluation"
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_RESULT_TYPES: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "dataset": (dict,),
    "metrics": (dict,),
    "num_examples": (int,),
    "decoding": (dict,),
    "harness": (dict,),
    "seconds": (int, float),
    "hardware": (str,),
}


@dataclass(frozen=True)
class Result:
    """What a run measured.

    Args:
        task: name of the task, and of the file.
        dataset: `name`, Hub `id` (or None), `split`, and perhaps `digest`, of the questions.
        metrics: name → number; percentages are 0 to 100.
        num_examples: questions or pictures.
        decoding: options of `generate`; empty where nothing is generated.
        harness: `name` ("being_vl" or "lmms-eval") and `version`.
        seconds: wall clock.
        hardware: in words.
        images: `codes_per_image` and `tokens_per_image`, means over the pictures.
    """

    task: str
    dataset: dict[str, str | None]
    metrics: dict[str, float]
    num_examples: int
    decoding: dict[str, Any]
    harness: dict[str, str]
    seconds: float
    hardware: str
    images: dict[str, float] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """Data set and split in words."""
        split = self.dataset.get("split")
        return f"{self.dataset['name']}, {split}" if split else str(self.dataset["name"])

    @property
    def decoding_text(self) -> str:
        """The decoding settings in words; "–" where nothing was generated."""
        settings = dict(self.decoding)
        if not settings:
            return "–"
        words = ["sampled" if settings.pop("do_sample", False) else "greedy"]
        return ", ".join([*words, *(f"{name}={value}" for name, value in settings.items())])

    @property
    def harness_text(self) -> str:
        return f"{self.harness['name']} {self.harness['version']}"

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `evaluation/TASK.json` below a folder; its path is returned.

        Raises:
            ValueError: as of `result_path`.
        """
        path = result_path(folder, self.task, self.dataset, self.harness["name"])
        text = json.dumps({"version": RESULT_VERSION, **asdict(self)}, indent=2, ensure_ascii=False)
        write_atomic(path, text + "\n")
        return path


def result_path(
    folder: str | os.PathLike, task: str, dataset: Mapping[str, str | None], harness: str
) -> Path:
    """`evaluation/TASK.json` below a folder, for a result of this data by this harness.

    Raises:
        ValueError: the task's name is not fit for a file's, or the file holds what another harness or other
            data gave under the same name.
    """
    if not _TASK.fullmatch(task):
        raise ValueError(
            "task must begin with a letter or digit, and hold letters, digits, '.', '_' and '-' alone, "
            f"since it names a file, got {shown(task)}"
        )
    path = Path(folder) / RESULTS_FOLDER / f"{task}.json"
    if path.exists():
        found = _load_result(path)
        theirs = {**found.dataset, "harness": found.harness["name"]}
        ours = {**dataset, "harness": harness}
        for name in ("name", "id", "split", "digest", "harness"):
            if theirs.get(name) != ours.get(name) and (name != "digest" or name in theirs):
                raise ValueError(
                    f"{path}: holds a result with {name} {theirs.get(name)}, but this one's is "
                    f"{ours.get(name)}: choose another output folder"
                )
    return path


def load_results(folder: str | os.PathLike) -> list[Result]:
    """The results below a folder, by name of task.

    Raises:
        ValueError: a file is not JSON, of another version, or a field of it is missing, unknown or of
            another type; file, field and value are named.
    """
    return [_load_result(path) for path in sorted((Path(folder) / RESULTS_FOLDER).glob("*.json"))]


def _load_result(path: Path) -> Result:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("version") != RESULT_VERSION:
        raise ValueError(
            f"{path}: must be a result of version {RESULT_VERSION}, a mapping with version: {RESULT_VERSION}, got "
            f"{str(content)[:80]!r}"
        )
    del content["version"]
    content["images"] = content.get("images") or {}
    if unknown := content.keys() - {entry.name for entry in fields(Result)}:
        raise ValueError(f"{path}: unknown field {min(unknown)!r}")
    for name, types in _RESULT_TYPES.items():
        if name not in content:
            raise ValueError(f"{path}: {name} is missing")
        if not isinstance(content[name], types) or isinstance(content[name], bool):
            raise ValueError(f"{path}: {name} must be {types[-1].__name__}, got {content[name]!r}")
    if content["task"] != path.stem:
        raise ValueError(
            f"{path}: task must be {path.stem}, as the file's name says, got {shown(content['task'])}"
        )
    for part, names in (("dataset", ("name",)), ("harness", ("name", "version"))):
        for name in names:
            if not isinstance(content[part].get(name), str):
                raise ValueError(
                    f"{path}: {part}.{name} must be str, got {content[part].get(name)!r}"
                )
    for part in ("metrics", "images"):
        for name, value in content[part].items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{path}: {part}.{name} must be a number, got {value!r}")
    return Result(**content)
