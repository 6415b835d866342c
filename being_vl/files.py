"""Files: written whole or not at all, read within limits, folders locked and claimed.

Every room writes and reads through here: `write_atomic`, `new_file` and `new_folder` for what may be
interrupted, `read_json` and `read_yaml` for what somebody else may have written, `locked` and `claim` for a
folder that one run owns, and `Result`, the one record that evaluation writes and model cards read.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import math
import os
import re
import reprlib
import secrets
import shutil
import stat
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from glob import escape
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

MAX_JSON_BYTES = 1 << 26  # tokenizer.json of 300,000 ids fits
MAX_JSON_VALUES = 1 << 20  # bounds what parsing may allocate, to some 150 MB
MAX_YAML_BYTES = 1 << 20
_MAX_YAML_DEPTH = 64
_MAX_YAML_VALUES = 100_000
_HUGE = re.compile(rb"[0-9]{200}|[0-9][eE]\+?[0-9]{3}")  # whatever may be beyond floats
# an escape of half a character, or of a half of a pair
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_T = TypeVar("_T")

# Places: files here, and objects in a store


def place(name: str | os.PathLike) -> Any:
    """What a name stands for: a `Path`, or for a URL (s3://, gs://, hf://, https:// …) universal_pathlib's likeness of one.

    A name that is there as a file is that file, whatever it looks like.

    Raises:
        ImportError: a URL, and the package that reads it is not installed.
        ValueError: fsspec would take the URL for a chain of places.
    """
    if (
        not isinstance(name, str)
        or not re.match(r"[a-z][a-z0-9]+://", name)
        or os.path.exists(name)
    ):
        return name if is_remote(name) else Path(name)
    if "::" in name:
        raise ValueError(f"{shown(name)}: a URL must not hold '::'")
    try:
        from upath import UPath

        return UPath(name, use_listings_cache=False)  # others write there, too
    except ImportError as error:
        raise ImportError(f'{name}: needs pip install "being-vl[s3]" ({error})') from error


def is_remote(path: Any) -> bool:
    """Whether a path of `place` is an object in a store."""
    return not isinstance(path, (str, bytes, os.PathLike)) and hasattr(path, "storage_options")


# Writing


_STEM = 40  # characters of a name that its temporary name begins with; all of it may be too long
_WRITER = re.compile(r"([0-9]+)-[0-9a-f]{8}\.tmp")


def write_atomic(path: str | os.PathLike, data: bytes | memoryview | str) -> None:
    """Write a file so that readers, and a restart after a crash, see all of it or nothing.

    Args:
        path: the file; folders above it are made.
        data: bytes, or text that is written as UTF-8.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind, and the file
            that was there before is untouched.
    """
    raw = data.encode("utf-8") if isinstance(data, str) else data
    if is_remote(path):  # a store shows an object when the whole of it has come
        path.fs.pipe_file(path.path, bytes(raw))  # type: ignore[union-attr]
        return
    with new_file(path) as aside, open(aside, "wb") as file:
        file.write(raw)


@contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` for the body to write; it takes the name when the body succeeds.

    Raises:
        OSError: as the body does, with `path` as its file name; nothing is left behind.
    """
    path = Path(path)
    aside = _aside(path)
    try:
        yield aside
        # The content must be on the disk before the name is: after a power cut, a file of the name would be empty.
        flush(aside)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush(path.parent)  # the name itself


def _aside(path: Path) -> Path:
    """A temporary name beside `path`; what processes that were killed while they wrote it have left is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.stem[:_STEM]}."
    for left in path.parent.glob(f"{escape(start)}*.tmp{escape(path.suffix)}"):
        writer = _WRITER.match(left.name.removeprefix(start))  # None: of a longer name
        if writer is None or _is_running(int(writer[1])):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    # The suffix stays last: writers such as Pillow choose the format by it.
    # The process says whether a leftover is one; the random part keeps its threads apart.
    return path.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")


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


def flush(path: Path) -> None:
    """fsync of a file, or of a folder's entries where the system knows such a thing."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
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
    aside = _aside(path)
    aside.mkdir()
    try:
        with writing(aside, name=path):
            yield aside
        os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


_FAILED_WRITES = re.compile(r"iostream error|inline_container|PytorchStreamWriter|I/O error")


@contextmanager
def writing(folder: str | os.PathLike, *, name: str | os.PathLike = "") -> Iterator[None]:
    """Around libraries that write below a folder: a write that failed is an OSError that names the file.

    Where a disk is full, safetensors and torch raise errors of their own, and Python's names no file.

    Args:
        folder: where they write.
        name: what the error calls it, where it is not there to stay.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if str(folder) in text or not (isinstance(error, OSError) or _FAILED_WRITES.search(text)):
            raise
        folder = Path(folder)
        file = _file_in_hand(error, folder, lambda path: path.suffix != "" and path.parent.is_dir())
        shown_file = Path(name or folder, file.relative_to(folder))
        places = (folder, *folder.absolute().parents)
        free = shutil.disk_usage(next(path for path in places if path.exists())).free
        raise OSError(f"{shown_file}: cannot be written, {free} bytes are free: {text}") from error


# Reading


def check_regular(path: str | os.PathLike) -> None:
    """Refuse what is no regular file, links followed: a pipe would block its reader, a device never ends.

    Raises:
        ValueError: a pipe, a device or a socket.
        OSError: a folder, or nothing that can be looked at.
    """
    if not is_remote(path):
        _check_mode(os.stat(path).st_mode, path)


def _check_mode(mode: int, path: str | os.PathLike) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: not a regular file")


def read_bytes(path: str | os.PathLike, max_bytes: int) -> bytes:
    """The content of a file of bounded size.

    Raises:
        ValueError: the file is larger, or no regular file (a pipe would block, a device never ends).
        OSError: the file cannot be read.
    """
    if is_remote(path):
        with path.open("rb") as file:  # type: ignore[union-attr]
            raw = file.read(max_bytes + 1)
    else:
        raw = _read_local(path, max_bytes)
    if len(raw) > max_bytes:
        raise ValueError(f"{path}: larger than {max_bytes} bytes")
    return raw


def _read_local(path: str | os.PathLike, max_bytes: int) -> bytes:
    # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_mode(os.fstat(handle).st_mode, path)
        with open(handle, "rb", closefd=False) as file:
            return file.read(max_bytes + 1)
    finally:
        os.close(handle)


_MAX_MEMBER = 1 << 28  # bytes of a file in an archive
_DAMAGED_TAR = "damaged tar file"
_MOST_COMPRESSED = 200  # images and codes hardly shrink; a bomb shrinks a thousandfold


def no_member() -> bytes:
    """Stands for the content of a link or a device in a tar file."""
    raise ValueError("a link or a device in a tar file, which is not read")


def tar_members(path: Path, *, others: bool = False) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The files of a tar file, plain or compressed, in order: name, and a function that reads the content.

    With `others`, links and devices too, with `no_member` for that function.

    Raises:
        ValueError: a damaged file; a member that is too large, or stands for far more than the file has, is
            refused before it is read.
    """
    check_regular(path)

    def content(member: tarfile.TarInfo) -> bytes:
        with reading(path, _DAMAGED_TAR):
            return archive.extractfile(member).read()  # type: ignore[union-attr]

    with reading(path, _DAMAGED_TAR), ExitStack() as stack:
        size = path.stat().st_size
        if is_remote(path):
            file = stack.enter_context(path.open("rb"))
            archive = stack.enter_context(tarfile.open(fileobj=file, mode="r|*"))
        else:
            archive = stack.enter_context(tarfile.open(path))
        for member in archive:
            _check_member(path, member, size)
            if member.isfile():
                yield member.name, partial(content, member)
            elif others and not member.isdir():
                yield member.name, no_member


def _check_member(path: Path, member: tarfile.TarInfo, size: int) -> None:
    if member.size > _MAX_MEMBER and member.isfile():
        raise ValueError(
            f"{path}: {shown(member.name)} has {member.size} bytes, more than {_MAX_MEMBER}"
        )
    if member.offset_data + member.size > _MOST_COMPRESSED * (size + (1 << 16)):
        raise ValueError(
            f"{path}: {shown(member.name)} ends at byte {member.offset_data + member.size} of a file of {size}: cut, "
            f"or compressed more than {_MOST_COMPRESSED}-fold"
        )


def read_text(path: str | os.PathLike, max_bytes: int = MAX_YAML_BYTES) -> str:
    """A text in UTF-8 of bounded size.

    Raises:
        ValueError: naming the file and what is wrong.
        OSError: the file cannot be read.
    """
    try:
        return read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8: {error}") from None


def read_json(
    path: str | os.PathLike,
    max_bytes: int = MAX_JSON_BYTES,
    *,
    max_values: int = MAX_JSON_VALUES,
    optional: bool = False,
) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, only finite numbers, bounded size, depth and number of values.

    Args:
        path: the file.
        max_bytes, max_values: a larger file, and one that may hold more values, is refused before it is
            parsed.
        optional: return None where there is no file.

    Raises:
        ValueError: naming the file and what is wrong.
        OSError: the file cannot be read.
    """
    if optional and not place(path).exists():
        return None
    return parse_json(read_bytes(place(path), max_bytes), str(path), max_values)


def parse_json(raw: bytes, name: str, max_values: int = MAX_JSON_VALUES) -> Any:
    """JSON as `read_json` reads it.

    Raises:
        ValueError: naming what `name` names, and what is wrong.
    """
    # A bound of the number of values: each has a mark before or after it. 64 MB of "[]," would take 1.5 GB.
    if sum(map(raw.count, (b",", b":", b"[", b"{"))) > max_values:
        raise ValueError(f"{name}: more than {max_values} values")
    try:
        value = load_json(
            raw.decode("utf-8"),
            object_pairs_hook=_distinct_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite if _HUGE.search(raw) else None,
        )
        if _SURROGATE.search(raw):  # text with half a pair can be written into no file
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError(f"{name}: nested too deeply") from None
    except ValueError as error:  # of Unicode, of JSON, integers of thousands of digits
        raise ValueError(f"{name}: not valid JSON: {error}") from None
    return value


def load_json(text: str | bytes, **options: Any) -> Any:
    """`json.loads` without collections of garbage, which a million new lists would set off again and again.

    With torch and transformers in memory, each walks over a million objects; a file of 3 MB took seconds.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text, **options)
    finally:
        if was_enabled:
            gc.enable()


def read_weight_map(path: Path) -> dict[str, str]:
    """Name of a tensor → name of its file, from an index such as `model.safetensors.index.json`.

    Raises:
        ValueError: it is no such index, or a file in it would not lie beside it.
    """
    content = read_json(path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: weight_map must map names of tensors to files")
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path}: weight_map[{key!r}] must be a file beside it, got {name!r}")
    return weight_map


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {shown(twice)} appears twice")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{shown(text)} is too large for a number")
    return number


def read_yaml(path: str | os.PathLike, *, optional: bool = False) -> Any:
    """YAML of plain values: bounded size, depth and number of values, those of aliases counted each time.

    Args:
        path: the file.
        optional: return None where there is no file.

    Raises:
        ValueError: naming the file and what is wrong.
        OSError: the file cannot be read.
    """
    import yaml

    path = Path(path)
    if optional and not path.exists():
        return None
    raw = read_bytes(path, MAX_YAML_BYTES)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = raw.decode("utf-8")
        if _SURROGATE.search(raw):
            raise ValueError("text with half of a surrogate pair")
        _check_yaml_size(yaml.parse(text, loader))
        check_yaml_keys(yaml.compose(text, loader))
        return yaml.load(text, loader)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from None


def _check_yaml_size(events: Iterable[Any]) -> None:
    """Count values before any is built: a few lines of aliases of aliases stand for billions."""
    sizes: dict[str, int] = {}  # of what an anchor names
    open_anchors: list[str | None] = []
    starts: list[int] = []
    count = 0
    for event in events:
        kind = type(event).__name__
        if kind == "AliasEvent":
            if event.anchor not in sizes:
                raise ValueError(f"alias {shown(event.anchor)} of something that is not there yet")
            count += sizes[event.anchor]
        elif kind == "ScalarEvent":
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            open_anchors.append(event.anchor)
            starts.append(count)
            count += 1
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            anchor, start = open_anchors.pop(), starts.pop()
            if anchor is not None:
                sizes[anchor] = count - start
        if len(starts) > _MAX_YAML_DEPTH or count > _MAX_YAML_VALUES:
            raise ValueError(
                f"more than {_MAX_YAML_DEPTH} levels or {_MAX_YAML_VALUES} values, those of aliases counted"
            )


def check_yaml_keys(root: Any) -> None:
    """Raises ValueError for a key that stands twice in a mapping: yaml keeps the last without a word.

    Args:
        root: the node that `yaml.compose` returns; None for an empty file.
    """
    waiting, known = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in known or isinstance(node.value, str):
            continue
        known.add(id(node))
        if node.id == "sequence":
            waiting += node.value
            continue
        seen = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise ValueError(f"line {line}: the key {shown(key.value)} stands there twice")
            seen.add((key.tag, str(key.value)))
        waiting += [part for pair in node.value for part in pair]


# Configurations that libraries read without limits; each holds an object.
_CONFIGURATIONS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "processor_config.json", "preprocessor_config.json", "chat_template.json",
)  # fmt: skip
# Fields of theirs that other libraries read without a look at the type.
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "model_type": (str,),
    "model_max_length": (int, float),
    "output_attentions": (bool,),
    "output_hidden_states": (bool,),
}
_MAX_LAYERS = 10_000  # each is built before a weight is looked for
_MAX_HEADER_BYTES = 100_000_000  # of safetensors, as its own readers have it


def check_model_folder(folder: str | os.PathLike) -> None:
    """Look at a folder of a model before other libraries read it, which have no limits of their own.

    Configurations must be JSON objects within limits, weights as long as their header says, indices must name
    files that are there, and nothing may be a pipe or a device.

    Raises:
        ValueError, OSError: naming the file and what is wrong.
    """
    for path in sorted(Path(folder).iterdir()):
        if path.suffix not in (".json", ".jinja", ".safetensors", ".model", ".txt"):
            continue
        check_regular(path)
        if path.name in _CONFIGURATIONS:
            content = read_json(path)
            if not isinstance(content, dict):
                raise ValueError(f"{path}: must hold an object, got {shown(content)}")
            if path.name == "generation_config.json":
                _check_token_ids(path, content)
            for name, kinds in _FIELD_TYPES.items():
                value = content.get(name)
                if value is not None and type(value) not in kinds:
                    must = " or ".join(kind.__name__ for kind in kinds)
                    raise ValueError(f"{path}: {name} must be {must}, got {shown(value)}")
            layers = content.get("num_hidden_layers")
            if isinstance(layers, int) and layers > _MAX_LAYERS:
                raise ValueError(
                    f"{path}: num_hidden_layers must be at most {_MAX_LAYERS}, got {shown(layers)}"
                )
        elif path.name.endswith(".safetensors.index.json"):
            if path.with_name(path.name.removesuffix(".index.json")).exists():
                continue  # an older save with more files left it, and nobody reads it
            for name in read_weight_map(path).values():
                if not (path.parent / name).is_file():
                    raise ValueError(f"{path.parent}: {name} is missing; {path.name} names it")
        elif path.match("model*.safetensors"):
            _check_weights(path)
        elif path.suffix != ".model" and path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path}: larger than {MAX_JSON_BYTES} bytes")


def _check_token_ids(path: Path, content: dict[str, Any]) -> None:
    """Raises ValueError for ids that are none: generation would fail at its first step."""
    for name, value in content.items():
        if not name.endswith("_token_id") or value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(one) is int and one < 1 << 31 for one in ids):
            raise ValueError(f"{path}: {name} must be an id or a list of ids, got {shown(value)}")


def _check_weights(path: Path) -> None:
    """Raises ValueError if a file of safetensors is cut, or longer than its header says."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"{path}: damaged or cut: {size} bytes, and a header of {length}")
        header = parse_json(file.read(length), f"{path}: its header", 1 << 22)
    ends = [0]
    for name, entry in header.items() if isinstance(header, dict) else ():
        if name != "__metadata__":
            try:
                _, end = map(int, entry["data_offsets"])
                math.prod(map(int, entry["shape"]))
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path}: its header: malformed entry {shown(name)}") from None
            ends.append(end)
    if not isinstance(header, dict) or 8 + length + max(ends) != size:
        raise ValueError(
            f"{path}: damaged or cut: {size} bytes, and its header tells of {8 + length + max(ends)}"
        )


@contextmanager
def reading(path: str | os.PathLike, problem: str = "cannot be read") -> Iterator[None]:
    """For other libraries' readers: whatever they raise becomes one ValueError that names the file.

    The file is `path`, or where that is a folder, the one in it that was being read. Errors that name it already
    pass.
    """
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of a library in Rust; no Exception
        if not isinstance(error, Exception) and not is_panic:
            raise
        text = " ".join(str(error).split())
        if isinstance(error, (ValueError, OSError, ImportError)) and str(path) in text:
            raise
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        named = path if is_remote(path) else _file_read(error, Path(path))
        raise ValueError(f"{named}: {problem}: {kind}{text or type(error).__name__}") from error


def _file_read(error: BaseException, path: Path) -> Path:
    """The file that was being read: `path`, or where that is a folder, the one in it."""
    return _file_in_hand(error, path, os.path.isfile) if path.is_dir() else path


def _file_in_hand(error: BaseException, path: Path, is_file: Callable[[Path], bool]) -> Path:
    """The file below a folder that the innermost function to hold one had, or the folder."""
    found, traceback = path, error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        # pathlib's own frames hold paths that are not made yet, which have no text.
        own = "pathlib" in frame.f_globals.get("__name__", "")
        for value in () if own else frame.f_locals.values():
            if isinstance(value, (str, os.PathLike)) and len(str(value)) < 4096:
                candidate = Path(value)
                if path in candidate.parents and is_file(candidate):
                    found = candidate
        traceback = traceback.tb_next
    return found


def shown(value: Any) -> str:
    """A value for an error message, never long; of a list or dictionary its first entries."""
    if isinstance(value, (list, dict)):
        text = f"a {type(value).__name__} {reprlib.repr(value)}"
    else:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def record(kind: type[_T], content: Any) -> _T:
    """A dataclass of numbers, texts, and dictionaries and lists of them, from JSON.

    Raises:
        ValueError: a field is missing, unknown, or of another type than the class says.
    """
    hints = get_type_hints(kind)
    if not isinstance(content, dict) or content.keys() != hints.keys():
        raise ValueError(f"must have the fields {', '.join(hints)}, got {shown(content)}")
    for name, hint in hints.items():
        if not is_of(content[name], hint):
            raise ValueError(f"{name} must be {hint}, got {shown(content[name])}")
    return kind(**content)


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value of JSON or YAML is of a type; integers are floats, booleans are no numbers."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        return any(is_of(value, part) for part in inner)
    if kind is float:
        kind = (int, float)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return False
    if hint is float and abs(value) > sys.float_info.max:  # an integer that no float holds
        return False
    if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
        return False
    parts = (value.values() if isinstance(value, dict) else value) if inner else ()
    return all(is_of(part, inner[-1]) for part in parts)


def write_json(path: str | os.PathLike, fields: Mapping[str, Any]) -> None:
    """Write a configuration as transformers writes its own: sorted keys, two spaces."""
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomic(path, text + "\n")


# Folders that one run owns


@contextmanager
def locked(folder: Path, busy: str, *, name: str = ".lock") -> Iterator[None]:
    """Make the folder and hold it; in a store, where nothing can be held, whoever writes last stays.

    Args:
        folder: the folder.
        busy: what the error says of it.
        name: of the lock's file; runs that share a folder, as processes of one job do, have their own.

    Raises:
        OSError: another process holds it.
    """
    from filelock import FileLock, Timeout

    if is_remote(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Held by the system, not by the file: a process that is killed lets go of it, and the file may stay.
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
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold an object, got {shown(found)}")
    for name in names:
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path}: {name} is {found.get(name)}, but this run's is {wanted.get(name)}: {rule}"
            )


# Manifests: what a finished folder holds


def file_entry(path: Any) -> dict[str, Any]:
    """What a manifest says of a file: its name (`file`), `bytes` and `sha256`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def check_entries(manifest: Any, entries: Any, **more: type) -> None:
    """Look at the `shards` of a manifest, entries as of `file_entry` with `more` fields, before any is opened.

    Raises:
        ValueError: naming manifest, entry, field and value; a file must lie beside the manifest.
    """
    if not isinstance(entries, list):
        raise ValueError(f"{manifest}: shards must be a list, got {shown(entries)}")
    kinds = {"file": str, "bytes": int, "sha256": str, **more}
    for number, entry in enumerate(entries):
        for name, kind in kinds.items():
            value = entry.get(name) if isinstance(entry, dict) else None
            if type(value) is not kind:
                must = f"shards[{number}].{name} must be {kind.__name__}"
                raise ValueError(f"{manifest}: {must}, got {shown(value)}")
        if Path(entry["file"]).name != entry["file"]:
            must = f"shards[{number}].file must be a file of the folder"
            raise ValueError(f"{manifest}: {must}, got {shown(entry['file'])}")


def check_file(path: Any, entry: Mapping[str, Any], manifest: str, *, verify: bool) -> None:
    """Raises ValueError if a file is not as its entry says: its size always, its digest with `verify`."""
    if not path.is_file():
        raise ValueError(f"{path}: is listed in {manifest} but missing")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise ValueError(f"{path}: has {size} bytes, {entry['bytes']} were written")
    if verify and (found := file_entry(path)["sha256"]) != entry["sha256"]:
        raise ValueError(f"{path}: its sha256 is {found}, {entry['sha256']} was written")


# Results

RESULT_VERSION = 1
RESULTS_FOLDER = "evaluation"
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_RESULT_TYPES: dict[str, type] = {
    "task": str,
    "dataset": dict,
    "metrics": dict,
    "num_examples": int,
    "decoding": dict,
    "harness": dict,
    "seconds": float,
    "hardware": str,
}
_MEANS = {"codes_per_image", "tokens_per_image"}


@dataclass(frozen=True)
class Result:
    """What a run measured.

    Args:
        task: name of the task, and of the file.
        dataset: `name`, Hub `id` (or None), `split`, and perhaps `digest`, of the questions.
        metrics: name → number; percentages are 0 to 100.
        num_examples: questions or images.
        decoding: options of `generate`; empty where nothing is generated.
        harness: `name` ("being_vl" or "lmms-eval") and `version`.
        seconds: wall clock.
        hardware: in words.
        images: `codes_per_image` and `tokens_per_image`, means over the images.
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
    for name, kind in _RESULT_TYPES.items():
        if name not in content:
            raise ValueError(f"{path}: {name} is missing")
        if not is_of(content[name], kind):
            got = shown(content[name])
            raise ValueError(f"{path}: {name} must be {kind.__name__}, got {got}")
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
    for name, value in content["dataset"].items():
        if not isinstance(value, (str, type(None))):
            raise ValueError(f"{path}: dataset.{name} must be str or null, got {shown(value)}")
    images = content["images"]
    if images and (not isinstance(images, dict) or images.keys() != _MEANS):
        got = ", ".join(images) if isinstance(images, dict) else shown(images)
        raise ValueError(f"{path}: images must have {' and '.join(sorted(_MEANS))}, got {got}")
    for part in ("metrics", "images"):
        for name, value in content[part].items():
            if not is_of(value, float):
                raise ValueError(f"{path}: {part}.{name} must be a number, got {shown(value)}")
    return Result(**content)
