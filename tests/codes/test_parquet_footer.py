"""Sizes of column chunks, as pyarrow reads them, and footers that end its process."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from being_vl.codes.parquet_footer import column_chunks
from being_vl.codes.shard_files import read_schema


def parquet(rows: int = 1000, **options) -> bytes:
    lists = [list(range(row % 7)) for row in range(rows)]
    table = pa.table(
        {"id": [str(row) for row in range(rows)], "codes": pa.array(lists, pa.list_(pa.int16()))}
        | {"flag": [row % 2 == 0 for row in range(rows)], "x": np.linspace(0, 1, rows)}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=300, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd", "use_dictionary": False, "write_statistics": False},
        {"write_page_index": True, "sorting_columns": [pq.SortingColumn(0)]},
        {"store_schema": False, "version": "1.0", "data_page_version": "2.0"},
    ],
)
def test_sizes_are_those_that_pyarrow_reads(tmp_path: Path, options) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(**options))
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(n) for group in groups for n in range(metadata.num_columns)]
    expected = [(column.num_values, column.total_uncompressed_size) for column in columns]
    assert len(expected) == 16
    assert column_chunks(path) == column_chunks(io.BytesIO(path.read_bytes())) == expected


def test_a_damaged_footer_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    """Any byte of it; pyarrow ends the process for some, such as a histogram of another length."""
    data = parquet(20)
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    rng = random.Random(0)
    path = tmp_path / "a.parquet"
    for _ in range(2000):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            mutant[rng.randrange(start, len(data))] = rng.randrange(256)
        path.write_bytes(mutant)
        try:
            read_schema(path)
        except ValueError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("footer", [b"", b"\x00", b"\x19" * 1000, b"\x1c" * 100_000, b"\xff" * 99])
def test_what_is_no_footer_is_refused(footer: bytes) -> None:
    file = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(ValueError, match="its footer is damaged"):
        column_chunks(io.BytesIO(file))
    with pytest.raises(ValueError, match="its footer of"):
        column_chunks(io.BytesIO(file[:-1]))
