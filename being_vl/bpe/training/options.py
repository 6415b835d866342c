"""The options of a training, and its progress."""

from __future__ import annotations

from dataclasses import dataclass

from ..grids import NO_LIMIT, check_codebook_size, check_integer
from ..rules import MAX_MERGES, MAX_TOKEN_CELLS, MAX_TOTAL_CELLS, MERGE_RULES
from .checkpoints import Checkpoint

NARROW_IDS = 0xFFFF  # with at most so many tokens a cell has 4 bytes
MAX_AHEAD = 1024  # rules that are merged before their turn
SORTED_BYTES = 8  # a cell that the first count sorts
USUAL_ROOM = 1 << 28
USUAL_TURNS = 8
_SMALL_ROOM = 1 << 26
_SMALL_TURNS = 4
_LEAST_SIGMA = 1e-100  # its square is not 0
SCORINGS = ("frequency", "spatial")


def usual_room(needed: int) -> int:
    """Bytes that the first count sorts at a time, of so many, where memory is not limited.

    A turn reads all cells once more, which takes less time than touching 64 MB for the first time.
    """
    room = min(USUAL_ROOM, max(_SMALL_ROOM, needed // _SMALL_TURNS))
    return max(room, needed // USUAL_TURNS)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `trainer.train_merges` that the rules depend on, and the memory limit.

    Raises:
        ValueError: one is out of its range, or two exclude each other.
    """

    num_merges: int
    codebook_size: int
    min_count: int
    max_cells: int | None
    max_token_extent: int | None
    scoring: str
    merge_rule: str
    spatial_weight: float
    spatial_sigma: float
    memory_limit: int | None

    def __post_init__(self) -> None:
        check_integer(self.num_merges, "num_merges", least=0)
        if self.num_merges > MAX_MERGES:
            raise ValueError(f"num_merges must be at most {MAX_MERGES}, got {self.num_merges}")
        check_codebook_size(self.codebook_size)
        check_integer(self.min_count, "min_count")
        for name in ("max_cells", "max_token_extent", "memory_limit"):
            if getattr(self, name) is not None:
                check_integer(getattr(self, name), name)
        if self.scoring not in SCORINGS:
            raise ValueError(f"scoring must be one of {SCORINGS}, got {self.scoring!r}")
        if self.merge_rule not in MERGE_RULES:
            raise ValueError(f"merge_rule must be one of {MERGE_RULES}, got {self.merge_rule!r}")
        if self.merge_rule == "pair" and self.scoring == "spatial":
            raise ValueError('scoring="spatial" needs the offsets that merge_rule="pair" forgets')
        if self.merge_rule == "pair" and self.max_token_extent is not None:
            raise ValueError('max_token_extent needs the shapes that merge_rule="pair" forgets')
        if not 0 <= self.spatial_weight < float("inf"):
            raise ValueError(
                f"spatial_weight must be a number of at least 0, got {self.spatial_weight!r}"
            )
        if not _LEAST_SIGMA <= self.spatial_sigma < float("inf"):
            raise ValueError(
                f"spatial_sigma must be a number of at least {_LEAST_SIGMA}, got {self.spatial_sigma!r}"
            )

    @property
    def vocab_size(self) -> int:
        """K + M, if all merges are found."""
        return self.codebook_size + self.num_merges

    @property
    def most_ahead(self) -> int:
        """The most rules that are merged before their turn; none that would make the cells 8 bytes."""
        narrow = self.vocab_size <= NARROW_IDS
        return min(MAX_AHEAD, NARROW_IDS - self.vocab_size) if narrow else MAX_AHEAD

    @property
    def num_listed(self) -> int:
        """How many keys to list at least: the one of that rank, halved, is theta.

        Below it, keys are not listed. Which are is a matter of time alone; half the count of the key ranked
        2 · num_merges has never run dry from 1,000 grids up.
        """
        return max(2 * self.num_merges, 20_000)

    # A vocabulary can be saved only within these limits; tokens of merge_rule="pair" have no table of shapes.
    @property
    def most_cells(self) -> int:
        """The most cells of a token, as asked for or as can be saved."""
        most = NO_LIMIT if self.merge_rule == "pair" else MAX_TOKEN_CELLS
        return most if self.max_cells is None else min(most, self.max_cells)

    @property
    def most_extent(self) -> int:
        """The most rows and the most columns of a token."""
        return NO_LIMIT if self.max_token_extent is None else self.max_token_extent

    @property
    def most_cells_of_all(self) -> int:
        """The most cells of all merged tokens together."""
        return NO_LIMIT if self.merge_rule == "pair" else MAX_TOTAL_CELLS


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        checkpoint: the rules so far, and their counts (views into the trainer's arrays).
        num_grids: the number of grids, of all processes.
        num_cells: their cells.
        num_tokens: the tokens that the rules so far leave.
    """

    checkpoint: Checkpoint
    num_grids: int
    num_cells: int
    num_tokens: int

    @property
    def tokens_per_grid(self) -> float:
        return self.num_tokens / self.num_grids
