"""Files → files as damage, accident or malice would have made of them, by the structure of each format.

`mutate(path, kind, rng)` replaces a file in place. Every kind is also cut, flipped and spliced as plain bytes,
and one mutant in twenty is no file at all: a folder, a pipe, a link to a device, to nothing, or to itself.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

ATOMS = [
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 1.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"),
    2**31 - 1, 2**31, 10**9, 2**63, 10**30, 10**400, "", "x", "0", "é", "\0", "\ud83d", "\u202eabc", "a\nb",
    "x" * 5000, "../x", "..", "/dev/zero", "/", "C:\\x", "~", "<image>", "<|eot_id|>", "<script>alert(1)</script>",
    "{{ 1/0 }}", "{% for i in range(10**9) %}x{% endfor %}", "`|`", "---", "data:image/png;base64,xx", "http://[::1",
    [], {}, [[]], [None], [1], ["x"], {"a": 1}, {"": None}, {"path": "p"}, {"bytes": "b"}, [0] * 1000,
]  # fmt: skip


def mutate(path: Path, kind: str, rng: random.Random) -> str:
    """Replace a file by a mutant of it; says what was done.

    The file gets a new inode, since an earlier reader may have mapped the old one.
    """
    raw = path.read_bytes()
    path.unlink()
    way = rng.random()
    if way < 0.05:
        return _no_file(path, rng)
    structured = way < (0.75 if kind in _KINDS else 0.05)
    try:
        content = _KINDS.get(kind, _bytes)(raw, rng) if structured else _bytes(raw, rng)
    except Exception:
        structured, content = False, _bytes(raw, rng)  # the mutant cannot be written in this format
    path.write_bytes(content)
    return f"{kind if structured else 'bytes'}, {len(content)} bytes"


def _no_file(path: Path, rng: random.Random) -> str:
    way = rng.choice(
        ["empty", "folder", "pipe", "zero", "random", "nothing", "itself", "missing", "pipe behind a link"]
    )  # fmt: skip
    if way == "empty":
        path.touch()
    elif way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    elif way == "pipe behind a link":
        os.mkfifo(path.with_name(f"{path.name}.pipe"))
        path.symlink_to(path.with_name(f"{path.name}.pipe"))
    elif way != "missing":
        targets = {"zero": "/dev/zero", "random": "/dev/urandom", "nothing": "/nonexistent/x"}
        path.symlink_to(targets.get(way, path.name))
    return way


def _bytes(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        size = len(data)
        at = rng.randrange(size + 1)
        # Headers and footers are where readers believe numbers.
        if rng.random() < 0.5 and size > 64:
            at = rng.choice([rng.randrange(64), size - 1 - rng.randrange(64)])
        length = rng.choice([1, 2, 4, 8, 64, 1000])
        way = rng.randrange(8)
        if way == 0:
            del data[at:]
        elif way == 1:
            for _ in range(length if length < 64 else 8):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif way == 2:
            del data[at : at + length]
        elif way == 3:
            data[at:at] = rng.randbytes(length)
        elif way == 4:
            data[at:at] = data[at : at + length]
        elif way == 5:
            data[at : at + length] = bytes(min(length, max(size - at, 0)))
        elif way == 6:
            number = rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 10**9])
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        else:
            number = rng.choice([0, 1 << 62, (1 << 63) - 1, (1 << 64) - 1, 10**12])
            data[at : at + 8] = struct.pack("<Q", number)
    return bytes(data)


def mutated_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to three places changed, removed, added or moved."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2, 3])):
        places: list[tuple[Any, Any]] = []
        _walk(value, places)
        if not places or rng.random() < 0.02:
            return copy.deepcopy(rng.choice(ATOMS))
        holder, key = _chosen(places, rng)
        way = rng.random()
        if way < 0.5:
            holder[key] = _other(holder[key], rng)
        elif way < 0.65:
            del holder[key]
        elif way < 0.75:
            holder[key] = copy.deepcopy(
                rng.choice(places)[0]
            )  # a part of the file in another's place
        elif way < 0.85:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {str(key): holder[key]}
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(rng.choice([*ATOMS, *holder])))
        else:
            holder[rng.choice([f"{key}x", "", "__class__", str(key).upper()])] = _other(None, rng)
    return value


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice(
            [-value, value + 1, value - 1, value * 2, float(value), str(value), 10**9]
        )
    if isinstance(value, str) and value and rng.random() < 0.3:
        return rng.choice(
            [value[:-1], value * 2, value.upper(), f"../{value}", f"/{value}", f"{value}\ud83d"]
        )
    return copy.deepcopy(rng.choice(ATOMS))


def _walk(value: Any, places: list[tuple[Any, Any]]) -> None:
    for key in (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    ):
        places.append((value, key))
        _walk(value[key], places)


def _chosen(places: list[tuple[Any, Any]], rng: random.Random) -> tuple[Any, Any]:
    """A place; long lists and tables, of which a file may mostly consist, count as much as a field does."""
    holders = {id(holder): holder for holder, _ in places}
    holder = rng.choice(list(holders.values()))
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    return holder, key


def _json_text(raw: bytes, rng: random.Random) -> bytes:
    value = json.loads(raw)
    way = rng.random()
    if way < 0.06:
        depth = rng.choice([50, 1000, 100_000])
        return b"[" * depth + b"]" * (depth if rng.random() < 0.5 else 0)
    if way < 0.1:
        return (
            raw.rstrip()[:-1]
            + b', "x": '
            + rng.choice([b"1e999", b"NaN", b"9" * 5000, b'"\\ud83d"'])
            + b"}"
        )
    if way < 0.14 and isinstance(value, dict) and value:
        key = rng.choice(list(value))
        return (
            raw.rstrip()[:-1]
            + f", {json.dumps(key)}: {json.dumps(rng.choice([1, None, {}]))}}}".encode()
        )
    if way < 0.17:
        return rng.choice(
            [b"\xef\xbb\xbf" + raw, raw.decode().encode("utf-16"), b"\xff" + raw, raw + raw]
        )
    if way < 0.18:
        return b"[" + b"[]," * (1 << 20) + b"1]"
    return json.dumps(mutated_value(value, rng)).encode()


def _jsonl(raw: bytes, rng: random.Random) -> bytes:
    lines = raw.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = _json_text(lines[at], rng)
    return b"\n".join(lines) + b"\n"


_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip


def _yaml(raw: bytes, rng: random.Random) -> bytes:
    way = rng.random()
    if way < 0.15:
        return rng.choice([
            _LAUGHS.encode(), raw + _LAUGHS.encode(), b"[" * 20_000, b"? " * 20_000, b"a: &a [*a]", b"{}", b"- 1\n",
            b"!!python/object/apply:os.system ['true']", b"a: *b", raw + b"\n---\na: 1\n", raw + b"\t: x",
            b'a: "\\ud83d"', b"a: 1\na: 2\n", b"? {a: 1}\n: 2\n", b"0o777777777777777777777777: 1", b"%YAML 9.9\n---\n",
            b"a: 2001-99-99", b"a: 1:" + b"60:" * 400, b"? [1, 2]\n: 3\n", b"1: 2\nnull: 3\n", b"#" * (1 << 21),
        ])  # fmt: skip
    value = mutated_value(yaml.safe_load(raw), rng)
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


def _text(raw: bytes, rng: random.Random) -> bytes:
    lines = raw.split(b"\n")
    new = rng.choice(
        [
            b"{% for i in range(99999999) %}{% for j in range(99999999) %}x{% endfor %}{% endfor %}", b"{{ 'x' * 10**10 }}",
            b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", b"{{ ''.__class__.__mro__ }}", b"{{", b"{% if %}",
            b"{{ messages[99] }}", b"{{ raise_exception('no') }}", b"{% include 'x' %}", b"{{ 2**99999999 }}", b"\xff\xfe",
            b"{{ messages[0].content.a.b }}", b"<h1>", b"x" * 100_000, b"# a\n| b |", b"\t", b"\0", b"{" * 5000, b"1\t2\t3",
        ]
    )  # fmt: skip
    at = rng.randrange(len(lines) + 1)
    lines[at : at + rng.randrange(2)] = [new]
    return b"\n".join(lines)


def _safetensors(raw: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    way = rng.random()
    if (
        way < 0.3 and len(header) > 1
    ):  # a model as another one has it: names, shapes, types that fit the file
        name = rng.choice([key for key in header if key != "__metadata__"])
        entry = header[name]
        change = rng.randrange(4)
        if change == 0:
            header[f"{name}.x"] = header.pop(name)
        elif change == 1:
            entry["shape"] = (
                list(reversed(entry["shape"])) if len(entry["shape"]) > 1 else [*entry["shape"], 1]
            )
        elif change == 2 and entry["dtype"] == "F32":
            entry["dtype"] = rng.choice(["I32", "U32"])
        else:
            start, stop = entry["data_offsets"]
            filler = rng.choice([b"\xff", b"\x00", b"\x7f"])
            body = body[:start] + filler * (stop - start) + body[stop:]
    elif way < 0.7:
        header = mutated_value(header, rng)
    else:
        declared = rng.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1])
        return struct.pack("<Q", declared) + raw[8:]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _npy(raw: bytes, rng: random.Random) -> bytes:
    array = np.load(io.BytesIO(raw))
    way = rng.random()
    if way < 0.5:  # a header that promises something else
        shape = rng.choice(
            [(), (0,), (10**9,) * 3, (2**62,), (-1, 4, 4), (1, 4), array.shape[::-1], (2**31, 2, 2)]
        )
        descr = rng.choice(
            ["<i4", "|O", "<f8", "<U9", ">i2", "|u1", "<c16", "<M8[s]", "|V9999999", "x", "<i8"]
        )
        header = (
            str({"descr": descr, "fortran_order": rng.random() < 0.2, "shape": shape}).ljust(118)
            + "\n"
        )
        if rng.random() < 0.1:
            header = "(" * 3000 + header
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + raw[128:]
    kinds: list[Callable[[], Any]] = [
        lambda: array.astype(float), lambda: array - 5, lambda: array.astype(np.int64) + 2**40, lambda: array[:0],
        lambda: array[0], lambda: array.astype(bool), lambda: array.astype(complex), lambda: array.astype("U5"),
        lambda: array.astype(np.uint64) + np.uint64(2**63), lambda: np.asfortranarray(array), lambda: array[:, :0],
        lambda: array.astype(float) * np.nan, lambda: array[..., None], lambda: np.zeros(len(array), [("a", int)]),
        lambda: array + 1,
    ]  # fmt: skip
    out = io.BytesIO()
    np.save(out, rng.choice(kinds)())
    return out.getvalue()


def _picture(raw: bytes, rng: random.Random) -> bytes:
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    way = rng.random()
    if way < 0.4:  # chunks of a PNG, with right checksums
        chunks, at = [], 8
        while at < len(raw):
            (length,) = struct.unpack(">I", raw[at : at + 4])
            chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]))
            at += 12 + length
        number = rng.randrange(len(chunks)) if rng.random() < 0.3 else 0
        kind, body = chunks[number]
        if kind == b"IHDR":
            sizes = [rng.choice([0, 1, 3, 4096, 65535, 2**31 - 1, 2**32 - 1]) for _ in range(2)]
            body = struct.pack(">II", *sizes) + bytes(
                [rng.choice([8, 1, 16, 3]), rng.randrange(8), *body[10:]]
            )
        else:
            body = _bytes(body, rng)
        chunks[number] = kind, body
        if rng.random() < 0.3:
            packed = zlib.compress(b"x" * (1 << 20))
            chunks.insert(1, (rng.choice([b"zTXt", b"iCCP"]), b"a\0\0" + packed))
        return raw[:8] + b"".join(
            struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b))
            for k, b in chunks
        )
    out = io.BytesIO()
    kind = rng.choice(
        ["JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "TGA", "JPEG2000", "PCX", "SGI", "DDS"]
    )
    image.save(out, kind)
    content = out.getvalue()
    return content if rng.random() < 0.2 else _bytes(content, rng)


def _tar(raw: bytes, rng: random.Random) -> bytes:
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(raw)) as archive,
        tarfile.open(fileobj=out, mode=rng.choice(["w", "w:gz", "w:bz2", "w:xz"])) as made,
    ):
        members = archive.getmembers()
        target = rng.choice(members)
        for member in members:
            content = archive.extractfile(member).read()
            if member is target:
                way = rng.randrange(6)
                if way == 0:
                    member.name = rng.choice(
                        [
                            "../../x.png",
                            "/x.png",
                            ".png",
                            "x",
                            "a" * 300 + ".png",
                            "a\ud83d.png",
                            "a.b.c.npy",
                        ]
                    )
                elif way == 1:
                    content = _bytes(content, rng)
                elif way == 2:
                    member.type = rng.choice(
                        [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE]
                    )
                    member.linkname = "/dev/zero"
                elif way == 3:
                    made.addfile(member, io.BytesIO(content))  # twice
                elif way == 4:
                    content = bytes(rng.choice([0, 1 << 20]))
                else:
                    continue
                member.size = len(content) if member.isreg() else 0
            made.addfile(member, io.BytesIO(content))
    content = out.getvalue()
    return content if rng.random() < 0.7 else _bytes(content, rng)


def _gz(raw: bytes, rng: random.Random) -> bytes:
    inner = gzip.decompress(raw)
    way = rng.random()
    if way < 0.1:
        return gzip.compress(bytes(1 << 29), 1)
    if way < 0.4:
        return _bytes(raw, rng)
    lines = inner.lstrip()[:1] == b"{" and inner.count(b"\n") > 1
    return gzip.compress(_jsonl(inner, rng) if lines else _json_text(inner, rng))


def _table(table: pa.Table, rng: random.Random) -> pa.Table:
    """A table with a column dropped, renamed, of another type, with nulls, or with other values."""
    name = rng.choice(table.column_names)
    place, column = table.column_names.index(name), table[name]
    values = column.to_pylist()
    way = rng.randrange(7)
    if way == 0:
        return table.drop_columns([name])
    if way == 1:
        return table.rename_columns([f"{n}x" if n == name else n for n in table.column_names])
    if way == 2:
        values = [None if rng.random() < 0.5 else value for value in values]
        return table.set_column(place, name, pa.array(values, column.type))
    if way == 3:
        return table.set_column(place, name, pa.array([str(value) for value in values]))
    if way == 4:
        row = rng.randrange(max(len(values), 1))
        values[row] = mutated_value([values[row]], rng)[0]
        try:
            return table.set_column(place, name, pa.array(values, column.type))
        except (pa.ArrowException, TypeError, OverflowError, ValueError):
            return table.set_column(place, name, pa.array([[v] for v in column.to_pylist()]))
    if way == 5:
        metadata = {
            k: _bytes(v, rng) if rng.random() < 0.5 else _field(v, rng)
            for k, v in (table.schema.metadata or {}).items()
        }
        return table.replace_schema_metadata(metadata or {b"x": b"y"})
    return table.slice(0, rng.choice([0, 1]))


def _field(raw: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(mutated_value(json.loads(raw), rng)).encode()
    except ValueError:
        return rng.choice([b"", b"-1", b"1000000000", b"x", b"\xff", b"99999999999999999999"])


def _parquet(raw: bytes, rng: random.Random) -> bytes:
    out = io.BytesIO()
    pq.write_table(_table(pq.read_table(io.BytesIO(raw)), rng), out)
    return out.getvalue()


def _arrow(raw: bytes, rng: random.Random) -> bytes:
    table = _table(pa.ipc.open_stream(raw).read_all(), rng)
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/being_vl_pickle_was_run",)


def _pickle(raw: bytes, rng: random.Random) -> bytes:
    value = pickle.loads(raw)
    way = rng.random()
    if way < 0.1:
        return pickle.dumps([_Evil()])
    if way < 0.2:
        return rng.choice(
            [
                b"(" * 100_000,
                b"]" + b"]a" * 50_000 + b".",
                b"\x80\x04\x95" + b"\xff" * 8,
                b"V\xff\n.",
            ]
        )
    changed = mutated_value(json.loads(json.dumps(value)), rng)
    return pickle.dumps(changed, rng.choice([0, 2, 4, 5]))


def _zip(raw: bytes, rng: random.Random) -> bytes:
    """An archive, as torch's files and .npz are, with one member changed, added or left out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive, zipfile.ZipFile(out, "w") as made:
        names = archive.namelist()
        target = rng.choice(names)
        for name in names:
            content = archive.read(name)
            if name == target:
                way = rng.randrange(5)
                if way == 0:
                    continue
                if way == 1:
                    name = rng.choice(["../x", "x", f"{name}x"])
                elif way == 2:
                    content = pickle.dumps(_Evil())
                else:
                    content = _bytes(content, rng)
            made.writestr(name, content)
    return out.getvalue()


_KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": _json_text,
    "jsonl": _jsonl,
    "yaml": _yaml,
    "text": _text,
    "safetensors": _safetensors,
    "npy": _npy,
    "zip": _zip,
    "picture": _picture,
    "tar": _tar,
    "gz": _gz,
    "parquet": _parquet,
    "arrow": _arrow,
    "pickle": _pickle,
}


def remove(path: Path) -> None:
    """Whatever lies there."""
    for each in (path, path.with_name(f"{path.name}.pipe")):
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink(missing_ok=True)
