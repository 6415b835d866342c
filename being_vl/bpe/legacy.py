"""codes → tokens as the authors' released code does it: for reading their vocabularies, not for new ones.

Source: `vBPE.merge_token` of the authors' Being-VL-0.5 release (Being-VL-0 was released without code).
Differs from `ImageBPE` in the algorithm, not in the interface: the first rule merges in two dimensions,
to the right or else below; then the grid is flattened, and all later rules merge neighbours of the
sequence. One id stands for several shapes and a merged cell below is lost from its row, so the tokens
cannot be decoded. Differs from the authors' code in that a heap of ranks replaces one pass per rule.
"""

from __future__ import annotations

import os
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_json, shown, write_atomic
from .grids import check_codebook_size, check_grid
from .plain_pickle import read_plain_pickle
from .rules import as_rules
from .vocabulary_file import check_header, int_rows

FILE_NAME = "legacy_image_bpe.json"
FORMAT = "being_vl.bpe.legacy"
VERSION = 1
_FIELDS = ("format", "version", "codebook_size", "decodable", "pairs")
_COLUMNS = ("first", "second")


class LegacyImageBPE:
    """A vocabulary of the authors' released vBPE. It encodes as theirs does, and cannot decode.

    Args:
        pairs: integers (M, 2), rows (first, second) in rank order; rank r makes the id codebook_size + r.
        codebook_size: K.

    Raises:
        ValueError: naming the pair, the rule and the value got.
    """

    def __init__(self, pairs: Any, codebook_size: int):
        self._codebook_size = check_codebook_size(codebook_size)
        rules = as_rules(pairs, self._codebook_size, _COLUMNS, "pairs")
        if not len(rules):
            raise ValueError("pairs must hold a rule, got none")
        self._pairs = rules.astype(np.int32)
        self._pairs.setflags(write=False)
        # A pair that holds a new id is learned after it, so only its first rank can ever apply.
        self._pair_list = [tuple(pair) for pair in self._pairs.tolist()]
        self._ranks: dict[tuple[int, ...], int] = {}
        for rank, pair in enumerate(self._pair_list[1:], 1):
            self._ranks.setdefault(pair, rank)

    @classmethod
    def from_pickle(cls, path: str | os.PathLike[str]) -> LegacyImageBPE:
        """Read the released file, a pickled list of ((first, second), new_id), without unpickling it.

        Raises:
            ValueError: naming the file, the entry and what is wrong with it.
        """
        name = Path(path).name
        entries = read_plain_pickle(path)
        if not isinstance(entries, list) or not entries:
            raise ValueError(
                f"{name}: must hold a list of ((first, second), new_id): {shown(entries)}"
            )
        for index, entry in enumerate(entries):
            if not _is_entry(entry):
                raise ValueError(
                    f"{name}: entry {index} is not ((first, second), id): {shown(entry)}"
                )
        codebook_size = entries[0][1]
        for index, (_, new_id) in enumerate(entries):
            if new_id != codebook_size + index:
                raise ValueError(
                    f"{name}: entry {index} makes id {shown(new_id)}, expected {codebook_size + index}: "
                    "new ids follow one another"
                )
        try:
            pairs = int_rows([list(pair) for pair, _ in entries], _COLUMNS, "pairs")
            return cls(pairs, codebook_size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    @property
    def pairs(self) -> np.ndarray:
        """int32 (M, 2), read-only."""
        return self._pairs

    @property
    def codebook_size(self) -> int:
        return self._codebook_size

    @property
    def num_merges(self) -> int:
        return len(self._pairs)

    @property
    def vocab_size(self) -> int:
        return self._codebook_size + len(self._pairs)

    def encode(self, grid: Any) -> np.ndarray:
        """Codes (height, width) → visual ids int32 (n,), id for id those of the authors' merge_token."""
        array = check_grid(grid, self._codebook_size, "grid")
        return np.array(self._merge_sequence(self._merge_grid(array)), dtype=np.int32)

    def encode_batch(self, grids: Any) -> list[np.ndarray]:
        """Encode many grids, one after another."""
        return [self.encode(grid) for grid in grids]

    def decode(self, ids: Any, height: int, width: int) -> np.ndarray:
        """Not possible: always a ValueError."""
        raise ValueError(
            "the authors' released tokens cannot be decoded: one id stands for several shapes; "
            "train an ImageBPE for exact decoding"
        )

    def _merge_grid(self, grid: np.ndarray) -> list[int]:
        """The first rule: to the right, else below. Their third case, an L, never comes to its turn."""
        first, second = self._pairs[0].tolist()
        height, width = grid.shape
        token = grid.reshape(-1).tolist()
        taken = bytearray(height * width)
        for at in range(height * width):
            if token[at] != first or taken[at]:
                continue
            right, below = at + 1, at + width
            if right % width and token[right] == second and not taken[right]:
                token[at], taken[right] = self._codebook_size, 1
            elif below < len(token) and token[below] == second and not taken[below]:
                token[at], taken[below] = self._codebook_size, 1
        return [one for one, gone in zip(token, taken, strict=True) if not gone]

    def _merge_sequence(self, token: list[int]) -> list[int]:
        """The later rules, in rank order, each from left to right."""
        size = len(token)
        following = list(range(1, size + 1))
        previous = list(range(-1, size - 1))
        pairs, rank_of = self._pair_list, self._ranks.get
        heap = [
            (rank, at)
            for at in range(size - 1)
            if (rank := rank_of((token[at], token[at + 1]))) is not None
        ]
        heapify(heap)
        while heap:
            rank, at = heappop(heap)
            after = following[at]
            if after == size or (token[at], token[after]) != pairs[rank]:
                continue
            token[at], token[after] = self._codebook_size + rank, -1
            beyond = following[at] = following[after]
            if beyond < size:
                previous[beyond] = at
                if (found := rank_of((token[at], token[beyond]))) is not None:
                    heappush(heap, (found, at))
            before = previous[at]
            if before >= 0 and (found := rank_of((token[before], token[at]))) is not None:
                heappush(heap, (found, before))
        return [one for one in token if one >= 0]

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write legacy_image_bpe.json into a folder, which is made if need be; returns the paths written."""
        path = Path(save_directory) / FILE_NAME
        rows = ",\n".join(f"[{first},{second}]" for first, second in self._pairs.tolist())
        write_atomic(
            path,
            f'{{\n"format": "{FORMAT}",\n"version": {VERSION},\n"codebook_size": {self._codebook_size},\n'
            f'"decodable": false,\n"pairs": [\n{rows}\n]\n}}\n',
        )
        return [str(path)]

    @classmethod
    def from_pretrained(cls, folder_or_file: str | os.PathLike[str]) -> LegacyImageBPE:
        """Load legacy_image_bpe.json from a folder, or the file itself.

        Raises:
            ValueError: naming the file, the field, the rule and the value got.
        """
        path = Path(folder_or_file)
        path = path / FILE_NAME if path.is_dir() else path
        fields = read_json(path)
        check_header(fields, path.name, FORMAT, VERSION, _FIELDS)
        if fields["decodable"] is not False:
            raise ValueError(f"{path.name}: decodable must be false: {shown(fields['decodable'])}")
        try:
            return cls(int_rows(fields["pairs"], _COLUMNS, "pairs"), fields["codebook_size"])
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None

    def __repr__(self) -> str:
        return f"LegacyImageBPE(codebook_size={self._codebook_size}, num_merges={self.num_merges})"


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, tuple)
        and len(entry) == 2
        and isinstance(entry[0], tuple)
        and len(entry[0]) == 2
        and all(type(value) is int for value in (*entry[0], entry[1]))
    )
