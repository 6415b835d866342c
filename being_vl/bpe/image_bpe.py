"""codes ↔ tokens: the 2D byte-pair encoding of grids of VQ codes, exact both ways.

Source: "From Pixels to Tokens: Byte-Pair Encoding on Quantized Visual Modalities" (ICLR 2025), section 4,
and its follow-up Being-VL-0.5 (ICCV 2025). Differs from the authors' code in that a merge rule carries the
offset of its parts: a token has one shape, identical neighbours merge, and decoding is exact. Imports
neither torch nor transformers; numba makes it fast and is optional.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..files import is_remote, place
from ..hub.part import Origin, PushesCheckpoint, commit_of
from .codec.plain import Drop, PlainEncoder
from .grids import (
    MAX_GRID_CELLS,
    check_codebook_size,
    check_grid,
    check_sides,
    check_threads,
    flat_ids,
    grid_chunks,
    map_in_order,
    split_flat,
)
from .placement import GridState, ShapeTable
from .rules import MERGE_RULES, RULE_FIELDS, as_rules, check_merges
from .shapes import TokenTable, build_token_table
from .vocabulary_file import FILE_NAME, load_vocabulary, save_vocabulary

__all__ = ["GridState", "ImageBPE"]

_DECODE_CHUNK = 1024


class ImageBPE(PushesCheckpoint):
    """A vocabulary of merge rules over the codes of a codebook, and the encoding that it defines.

    Visual ids: a code c is the id c; the token made by the rule of rank r is the id codebook_size + r.

    Args:
        merges: integers (M, 4), rows (first, second, row_offset, col_offset) in rank order.
        codebook_size: K.
        merge_rule: ``"shape"``, or ``"pair"`` for the paper's Algorithm 4.1, whose rules ignore the
            offset (both offsets are 0 in `merges`) and whose tokens cannot be decoded.
        repeat_code: the code that says "as in the frame before" (`mark_repeats`), which is the last one,
            codebook_size - 1; None for a vocabulary of images.

    Raises:
        ValueError: naming the rule, the field, what is allowed and the value got.
    """

    def __init__(
        self,
        merges: Any,
        codebook_size: int,
        *,
        merge_rule: str = "shape",
        repeat_code: int | None = None,
    ):
        codebook_size = check_codebook_size(codebook_size)
        if repeat_code is not None and repeat_code != codebook_size - 1:
            last = codebook_size - 1
            raise ValueError(f"repeat_code must be the last code, {last}, got {repeat_code!r}")
        if merge_rule not in MERGE_RULES:
            raise ValueError(f"merge_rule must be one of {MERGE_RULES}, got {merge_rule!r}")
        rules = as_rules(merges, codebook_size, RULE_FIELDS, "merges")
        check_merges(rules, merge_rule)
        self._codebook_size = codebook_size
        self._merge_rule = merge_rule
        self._table: Any = (  # None for `pair`, where nothing that needs it is built
            build_token_table(rules, self._codebook_size) if merge_rule == "shape" else None
        )
        self._merges = rules.astype(np.int32)
        self._merges.setflags(write=False)
        self._repeat_code = None if repeat_code is None else codebook_size - 1
        self._source: Origin | None = None  # where from, for push_to_hub

    @classmethod
    def train(
        cls,
        grids: Any,
        num_merges: int,
        codebook_size: int,
        *,
        min_count: int = 2,
        max_cells: int | None = None,
        max_token_extent: int | None = None,
        scoring: str = "frequency",
        merge_rule: str = "shape",
        repeat_code: int | None = None,
        num_threads: int | None = None,
        **trainer_options: Any,
    ) -> ImageBPE:
        """Learn the merge rules of a set of grids.

        Args:
            grids: int codes (N, H, W), or a sequence of (h, w) arrays of mixed sizes.
            num_merges: at most; training stops earlier when no pair occurs min_count times.
            codebook_size, merge_rule: as of the class.
            min_count: a pair that occurs fewer times becomes no rule.
            max_cells: the most cells that a token may cover.
            max_token_extent: the most rows and columns that a token may span.
            scoring: ``"frequency"`` (Being-VL-0) or ``"spatial"`` (Being-VL-0.5).
            repeat_code: codebook_size - 1 where the grids are frames that `mark_repeats` has marked.
            num_threads: by default one for each CPU, or fewer where there is too little work for each; the result
                does not depend on it.
            **trainer_options: of `being_vl.bpe.training.trainer.train_merges`.

        Returns:
            the vocabulary, with at most `num_merges` rules.

        Raises:
            ImportError: the trainer is not there (this module was loaded from a Hub checkpoint alone).
            ValueError: naming the argument and the value got.
        """
        # Absolute: what a relative import names travels with checkpoints, and the trainer stays here.
        try:
            from being_vl.bpe.training.trainer import train_merges
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("being_vl"):
                raise
            raise ImportError(
                "ImageBPE.train needs the package being_vl with its trainer (pip install being-vl); "
                "a vocabulary loaded from a checkpoint alone can encode and decode"
            ) from error
        merges = train_merges(
            grids,
            num_merges=num_merges,
            codebook_size=codebook_size,
            min_count=min_count,
            max_cells=max_cells,
            max_token_extent=max_token_extent,
            scoring=scoring,
            merge_rule=merge_rule,
            num_threads=num_threads,
            **trainer_options,
        )
        return cls(merges, codebook_size, merge_rule=merge_rule, repeat_code=repeat_code)

    @property
    def merges(self) -> np.ndarray:
        """int32 (M, 4), read-only: first, second, row_offset, col_offset in rank order."""
        return self._merges

    @property
    def codebook_size(self) -> int:
        """K, the repeat code included where there is one."""
        return self._codebook_size

    @property
    def num_merges(self) -> int:
        """M, the number of rules."""
        return len(self._merges)

    @property
    def vocab_size(self) -> int:
        """K + M, the number of visual ids."""
        return self._codebook_size + len(self._merges)

    @property
    def merge_rule(self) -> str:
        """``"shape"`` or ``"pair"``."""
        return self._merge_rule

    @property
    def repeat_code(self) -> int | None:
        """The code that says "as in the frame before"; None for a vocabulary of images."""
        return self._repeat_code

    @property
    def quantizer_codebook_size(self) -> int:
        """The codes that a quantizer gives: codebook_size, less the repeat code where there is one."""
        return self._codebook_size - (self._repeat_code is not None)

    def repeating_ids(self) -> np.ndarray:
        """bool (vocab_size,): the ids whose token holds the repeat code, so no token of a first or key frame."""
        table = self._shapes_or_raise()
        if self._repeat_code is None:
            return np.zeros(self.vocab_size, dtype=bool)
        return np.logical_or.reduceat(table.code == self._repeat_code, table.start[:-1])

    def cells(self, visual_id: int) -> list[tuple[int, int, int]]:
        """(row, col, code) of a token's cells relative to its anchor, in raster order.

        Raises:
            ValueError: the id is out of range, or merge_rule is "pair".
        """
        table = self._shapes_or_raise()
        if not 0 <= visual_id < self.vocab_size:
            raise ValueError(f"visual id {visual_id} is not in [0, {self.vocab_size})")
        return table.cells(visual_id)

    def token_sizes(self) -> np.ndarray:
        """int64 (vocab_size,): the number of cells of every visual id."""
        return np.diff(self._shapes_or_raise().start)

    def first(self, num_merges: int) -> ImageBPE:
        """The vocabulary that training would have had after `num_merges` merges; all else that it says is kept.

        Raises:
            ValueError: num_merges is not in [0, self.num_merges].
        """
        if not 0 <= num_merges <= self.num_merges:
            raise ValueError(f"num_merges must be in [0, {self.num_merges}], got {num_merges}")
        cut = _rebuild(self._merges[:num_merges], *self._says)
        cut._source = self._source
        return cut

    def encode(
        self,
        grid: Any,
        *,
        segmentation: str = "merges",
        dropout: float = 0.0,
        seed: int | np.random.Generator | None = None,
    ) -> np.ndarray:
        """Codes (height, width) → visual ids int32 (n,), in raster order of the tokens' anchors.

        Args:
            grid: integer codes in [0, codebook_size).
            segmentation: ``"merges"`` applies the rules in rank order, as training did; ``"compact"`` looks
                for a covering of fewer tokens, up to a few percent, at twenty to fifty times the work.
                Both decode exactly. A model should see one of them, in training and after.
            dropout: the probability that a rule is left out where it applies (BPE-dropout, arXiv
                1910.13267), for training on many coverings of an image; each decodes exactly.
            seed: of dropout, or a generator to draw one from; by default each call drops others.

        Raises:
            ValueError: the grid is not two-dimensional, empty, not integer, or a code is out of range; or
                dropout is not in [0, 1], or given with ``"compact"``.
        """
        array = check_grid(grid, self._codebook_size, "grid")
        encode, drops = self._encoder(segmentation, dropout, seed)
        sides = [np.array([side]) for side in array.shape]
        return encode(array.reshape(-1), *sides, *drops(1))[0]

    def encode_batch(
        self,
        grids: Any,
        num_threads: int | None = None,
        *,
        segmentation: str = "merges",
        dropout: float = 0.0,
        seed: int | np.random.Generator | None = None,
    ) -> list[np.ndarray]:
        """Encode many grids, each as `encode` does, with the same options.

        Args:
            grids: int codes (N, H, W), or a sequence of (h, w) arrays of mixed sizes.
            num_threads: all cores by default; they release the GIL where numba is installed, and do not change
                what is dropped.

        Returns:
            visual ids of each grid, int32 (n,), in the order of the grids.

        Raises:
            ValueError: as `encode`, naming the grid.
        """
        encoded: list[np.ndarray] = []
        encode, drops = self._encoder(segmentation, dropout, seed)
        chunks = (
            (*chunk, *drops(len(chunk[1]))) for chunk in grid_chunks(grids, self._codebook_size)
        )
        for ids, counts in map_in_order(encode, chunks, check_threads(num_threads)):
            encoded += split_flat(ids, counts)
        return encoded

    def decode(self, ids: Any, height: int, width: int) -> np.ndarray:
        """Visual ids (n,) → codes int32 (height, width): the exact inverse of encode.

        Any sequence whose tokens cover the grid exactly decodes, whatever made it.

        Raises:
            ValueError: an id is out of range, overlaps, runs over the border, or cells stay open, naming
                the id and its position; or merge_rule is "pair".
        """
        return self.decode_batch([ids], height, width, num_threads=1)[0]

    def decode_batch(
        self,
        ids: Sequence[Any],
        height: int | Sequence[int],
        width: int | Sequence[int],
        num_threads: int | None = None,
    ) -> list[np.ndarray]:
        """Decode many sequences, each as `decode` does.

        Args:
            ids: sequences of visual ids (n,).
            height, width: in cells; one number for all sequences, or one for each.
            num_threads: all cores by default.

        Returns:
            codes int32 (height, width) of each sequence, in order.

        Raises:
            ValueError: as `decode`, naming the sequence too; or the numbers of sequences, heights and widths differ.
        """
        self._shapes_or_raise()
        heights = check_sides(height, len(ids), "height")
        widths = check_sides(width, len(ids), "width")
        for h, w in zip(heights, widths, strict=True):
            if h * w > MAX_GRID_CELLS:
                raise ValueError(f"height {h} x width {w} is more than {MAX_GRID_CELLS} cells")
        decoded: list[np.ndarray] = []

        def work(begin: int) -> list[np.ndarray]:
            part = slice(begin, begin + _DECODE_CHUNK)
            name = lambda i: "ids" if len(ids) == 1 else f"ids[{begin + i}]"  # noqa: E731
            return self._decode_chunk(ids[part], heights[part], widths[part], name)

        begins = ((begin,) for begin in range(0, len(ids), _DECODE_CHUNK))
        for grids in map_in_order(work, begins, check_threads(num_threads)):
            decoded += grids
        return decoded

    def _decode_chunk(
        self, ids: Sequence[Any], heights: list[int], widths: list[int], name: Callable[[int], str]
    ) -> list[np.ndarray]:
        flat, counts = flat_ids(ids, name)
        if self._decode_grids is not None:
            sides = np.array([heights, widths], dtype=np.int64)
            codes, are_covered = self._decode_grids(flat, counts, *sides)
            if are_covered:
                pieces = split_flat(codes, sides[0] * sides[1])
                return [p.reshape(h, w) for p, h, w in zip(pieces, heights, widths, strict=True)]
        todo = zip(split_flat(flat, counts), heights, widths, strict=True)
        return [self._decode_one(name(i), *one) for i, one in enumerate(todo)]

    def _decode_one(self, name: str, ids: np.ndarray, height: int, width: int) -> np.ndarray:
        """Point 8 of the law in plain Python, and the errors of decoding; `_decode_grids` is the same, compiled."""
        size, codes, anchor = height * width, [-1] * (height * width), 0
        where = f"{height}x{width} grid"

        def wrong(why: str) -> ValueError:
            return ValueError(f"{name}[{index}] is {visual_id}, but {why}")

        for index, visual_id in enumerate(ids.tolist()):
            if not 0 <= visual_id < self.vocab_size:
                raise wrong(f"visual ids lie in [0, {self.vocab_size})")
            while anchor < size and codes[anchor] >= 0:
                anchor += 1
            if anchor == size:
                raise wrong(f"the {where} is full after {index} ids")
            anchor_row, anchor_col = divmod(anchor, width)
            for row, col, code in self._cells(visual_id):
                row, col = anchor_row + row, anchor_col + col
                if row >= height or not 0 <= col < width:
                    raise wrong(f"there it runs over the border of the {where}")
                if codes[row * width + col] >= 0:
                    raise wrong("there it overlaps the cells of earlier ids")
                codes[row * width + col] = code
        if -1 in codes:
            last = (
                f"after {name}[{index}], which is {visual_id}," if len(ids) else f"{name} is empty:"
            )
            raise ValueError(f"{last} cells of the {where} stay open")
        return np.array(codes, dtype=np.int32).reshape(height, width)

    def legal_next(self, covered: Any) -> np.ndarray:
        """The ids whose token, anchored at the first uncovered cell, lies inside the grid and on uncovered cells.

        Args:
            covered: bool (height, width).

        Returns:
            bool (vocab_size,); every code is legal until the grid is covered; then nothing is.

        Raises:
            ValueError: covered is not boolean and two-dimensional, or merge_rule is "pair".
        """
        covered = np.asarray(covered)
        if covered.ndim != 2 or covered.size == 0 or covered.dtype != bool:
            got = f"{covered.dtype} {covered.shape}"
            raise ValueError(f"covered must be bool (height, width), got {got}")
        shapes = self.shape_table()
        if covered.all():
            return np.zeros(self.vocab_size, dtype=bool)
        fits = shapes.fitting(covered, *divmod(int(covered.argmin()), covered.shape[1]))
        return fits[shapes.shape_of]

    def shape_table(self) -> ShapeTable:
        """The distinct token shapes, built on first use."""
        self._shapes_or_raise()
        return self._shape_table

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write image_bpe.json into a folder, which is made if need be; returns the paths written."""
        path = place(save_directory) / FILE_NAME
        save_vocabulary(path, self._merges, *self._says)
        return [str(path)]

    def _checkpoint_source(self) -> Origin | None:
        return self._source

    @classmethod
    def from_pretrained(
        cls,
        folder_or_file: str | os.PathLike[str],
        *,
        subfolder: str = "",
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> ImageBPE:
        """Load image_bpe.json from a folder, or the file itself, or a repository on the Hub.

        Args:
            folder_or_file: a path, or the URL of one in a store; where nothing lies there, `namespace/name` is asked of the Hub.
            subfolder: of the folder or repository, where the file lies.
            revision, cache_dir, token, local_files_only, force_download: as of `hf_hub_download`.

        Raises:
            ValueError: naming the file, the field, the rule and the value got.
            OSError: there is no such file, or (as FileNotFoundError) no such repository.
        """
        name = os.fspath(folder_or_file)
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not os.path.exists(name):
            from huggingface_hub import hf_hub_download

            source: str | None = name
            try:
                path = hf_hub_download(
                    name,
                    FILE_NAME,
                    subfolder=subfolder or None,
                    revision=revision,
                    cache_dir=cache_dir,  # type: ignore[arg-type]
                    token=token,
                    local_files_only=local_files_only,
                    force_download=force_download,
                )
            except OSError as error:
                raise FileNotFoundError(
                    f"{name} is no folder here, and its {FILE_NAME} cannot be had from the Hub: {error}"
                ) from error
        else:
            path = os.path.join(name, subfolder) if subfolder else name
            # Absolute, since the working directory may be another one when the object is pushed. No checkpoint is
            # in a store.
            source = os.path.abspath(name if os.path.isdir(name) else os.path.dirname(name))
            if is_remote(place(name)):
                source = None
        fields = load_vocabulary(path)
        try:
            bpe = cls(**fields)
        except ValueError as error:
            file = Path(path) / FILE_NAME if os.path.isdir(path) else path
            raise ValueError(f"{file}: {error}") from None
        if source is not None:
            bpe._source = Origin.of(source, commit_of(path) or revision, subfolder)
        return bpe

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageBPE):
            return NotImplemented
        return self._says == other._says and np.array_equal(self._merges, other._merges)

    def __hash__(self) -> int:
        return hash((*self._says, self._merges.tobytes()))

    def __repr__(self) -> str:
        rule = "" if self._merge_rule == "shape" else f", merge_rule={self._merge_rule!r}"
        rule += "" if self._repeat_code is None else f", repeat_code={self._repeat_code}"
        return f"ImageBPE(codebook_size={self._codebook_size}, num_merges={self.num_merges}{rule})"

    def __reduce__(self) -> tuple[Any, ...]:
        # without the tables: copies hash alike in datasets.map
        return _rebuild, (np.array(self._merges), *self._says)

    @property
    def _says(self) -> tuple[int, str, int | None]:
        """All that the vocabulary says beside its rules."""
        return self._codebook_size, self._merge_rule, self._repeat_code

    def _encoder(
        self, segmentation: str, dropout: float, seed: int | np.random.Generator | None
    ) -> tuple[Callable[..., Any], Callable[[int], tuple[Drop, ...]]]:
        """What encodes chunks, and what gives, for a number of grids, its last arguments."""
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability in [0, 1], got {dropout!r}")
        if segmentation == "compact":
            if dropout:
                raise ValueError('dropout leaves out merges: it needs segmentation="merges"')
            self._shapes_or_raise()
            return self._compact.encode, lambda count: ()
        if segmentation != "merges":
            raise ValueError(f'segmentation must be "merges" or "compact", got {segmentation!r}')
        if not dropout:
            return self._by_merges.encode, lambda count: ()
        random = np.random.default_rng(seed)
        below = np.uint64(round(dropout * (1 << 53)))
        return self._by_merges.encode, lambda count: (
            Drop(random.integers(0, 1 << 64, count, dtype=np.uint64), below),
        )

    # Kernels are imported on first use: numba takes half a second.

    @cached_property
    def _by_merges(self) -> Any:
        from ._jit import HAS_NUMBA

        if not HAS_NUMBA or self._table is None:
            return self._plain
        from .codec.encode import KernelEncoder

        return KernelEncoder(self._merges, self._codebook_size, self._table)

    @cached_property
    def _decode_grids(self) -> Any:
        """`codec.decode.decode_grids` for this vocabulary; None without numba."""
        from ._jit import HAS_NUMBA

        if not HAS_NUMBA:
            return None
        from .codec.decode import grid_decoder

        return grid_decoder(self._codebook_size, self._table)

    @cached_property
    def _cells(self) -> Callable[[int], list[tuple[int, int, int]]]:
        return cache(self._table.cells)

    @cached_property
    def _plain(self) -> PlainEncoder:
        return PlainEncoder(self._merges, self._codebook_size, self._merge_rule)

    @cached_property
    def _compact(self) -> Any:
        from .codec.compact import CompactEncoder

        return CompactEncoder(self._merges, self._codebook_size, self._table, self._by_merges)

    @cached_property
    def _shape_table(self) -> ShapeTable:
        return ShapeTable(self._table)

    def _shapes_or_raise(self) -> TokenTable:
        if self._table is None:
            raise ValueError(
                'merge_rule="pair" tokens have no fixed shape, so they cannot be decoded or drawn; '
                'train with merge_rule="shape" for that'
            )
        return self._table


def _rebuild(
    merges: np.ndarray, codebook_size: int, merge_rule: str, repeat_code: int | None
) -> ImageBPE:
    return ImageBPE(merges, codebook_size, merge_rule=merge_rule, repeat_code=repeat_code)
