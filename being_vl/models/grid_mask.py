"""token ids so far → which ids keep each image decodable, as tensors on the model's device.

The reference is `bpe.grid_tracking` with `bpe.placement`, in numpy, one sequence at a time. Here a batch
advances together and nothing leaves the device: the mask of a step takes a handful of kernels whose size is
that of the distinct shapes of the vocabulary (some hundreds for 8,192 merges), not of the vocabulary.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from ..bpe.grid_tracking import OpenImageTracker
from ..bpe.image_bpe import ImageBPE


class _Tables(NamedTuple):
    """The shapes of a vocabulary on a device: their cells lie end to end, as in `bpe.placement.ShapeTable`."""

    rows: torch.Tensor  # long (cells,), relative to the anchor
    cols: torch.Tensor
    starts: torch.Tensor  # long (shapes + 1,): the cells of shape s are [starts[s]:starts[s + 1]]
    shape_of: torch.Tensor  # long (K + M,), by visual id
    # long (K + M,): the shape; of tokens with the repeat code, which some frames may not hold, shapes + shape.
    judged_as: torch.Tensor
    repeats: torch.Tensor  # bool (K + M,): whether the token holds the repeat code

    @classmethod
    def of(cls, bpe: ImageBPE, device: torch.device) -> "_Tables":
        shapes, repeats = bpe.shape_table(), bpe.repeating_ids()
        starts = np.append(shapes.starts, len(shapes.rows))
        judged_as = shapes.shape_of + len(shapes.starts) * repeats
        arrays = (shapes.rows, shapes.cols, starts, shapes.shape_of, judged_as, repeats)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


class GridMask:
    """Follows the open image of each sequence of a batch, from one step of generation to the next.

    Args:
        tracker: the reference, asked where the sequences are not those of the last step plus one token.

    Attributes:
        is_open, is_illegal: bool (batch,): is an image open, and are the ids since boi no legal image?
        num_frames: long (batch,): frames of the open video, the open one included; -1 where no video is open.
    """

    def __init__(self, tracker: OpenImageTracker):
        self._tracker = tracker
        self._has_repeats = tracker.image_bpe.repeat_code is not None
        self._tables: Any = None  # _Tables, once the device is known
        self._covered: torch.Tensor
        self.num_frames: torch.Tensor
        self.is_open: torch.Tensor
        self.is_illegal: torch.Tensor
        self._ids: torch.Tensor | None = None  # (batch, length) of the last step

    def advance(self, input_ids: torch.Tensor) -> None:
        """Take the sequences of the next step, (batch, length) long; rows may be reordered, as beams are."""
        before, self._ids = self._ids, input_ids.clone()
        if before is None or before.shape != (input_ids.shape[0], input_ids.shape[1] - 1):
            self._start_anew(input_ids)
            return
        # same[i, j]: does row i go on from what was row j? The sequences themselves tell, since nobody tells a logits
        # processor how beam search has reordered them. Rows that are alike have equal states: any of them will do.
        same = (before[None] == input_ids[:, None, :-1]).all(dim=-1)  # (batch, batch)
        # generate() waits for the device once a step anyway, to see whether all sequences have ended.
        if not bool(same.any(dim=1).all()):
            self._start_anew(input_ids)
            return
        parents = same.to(torch.uint8).argmax(dim=1)  # of bool there is none on CUDA
        self._covered = self._covered[parents]
        self.is_open, self.is_illegal = self.is_open[parents], self.is_illegal[parents]
        self.num_frames = self.num_frames[parents]
        self._place(input_ids[:, -1])

    def _start_anew(self, input_ids: torch.Tensor) -> None:
        ids = input_ids.cpu().numpy()
        states = self._tracker.states(ids)
        covered = np.zeros((len(ids), np.prod(self._tracker.grid_size)), dtype=bool)
        flags = np.zeros((2, len(ids)), dtype=bool)
        for row, state in enumerate(states):
            if isinstance(state, ValueError):
                flags[1, row] = True
            elif state is not None:
                flags[0, row] = True
                covered[row] = state.covered.reshape(-1)
        device = input_ids.device
        self._covered = torch.from_numpy(covered).to(device)
        self.is_open, self.is_illegal = torch.from_numpy(flags).to(device)
        frames = [self._tracker.num_frames(row) for row in ids]
        self.num_frames = torch.tensor(frames, dtype=torch.long, device=device)
        if self._tables is None:
            self._tables = _Tables.of(self._tracker.image_bpe, device)

    @property
    def is_full(self) -> torch.Tensor:
        """bool (batch,): whether the open image has no uncovered cell; where none is open, False."""
        return self.is_open & self._covered.all(dim=1)

    def legal_visual_ids(self) -> torch.Tensor:
        """bool (batch, K + M): the visual ids that fit at the first uncovered cell; undefined for full grids."""
        starts, blocked = self._tables.starts, self._blocked_cells()
        # Exact sums of each shape's cells: differences of one running sum, without atomic additions.
        sums = torch.nn.functional.pad(blocked.cumsum(dim=1, dtype=torch.int32), (1, 0))
        fits = sums[:, starts[1:]] == sums[:, starts[:-1]]
        if self._has_repeats:
            fits = torch.cat(
                [fits, fits & self._tracker.may_repeat(self.num_frames)[:, None]], dim=1
            )
        return fits[:, self._tables.judged_as]

    def _positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each cell of each shape, anchored where the next token goes: flat position, and whether inside."""
        rows, cols = self._tables.rows, self._tables.cols
        height, width = self._tracker.grid_size
        # the first uncovered cell
        anchor = self._covered.to(torch.uint8).argmin(dim=1, keepdim=True)
        row, col = anchor // width + rows, anchor % width + cols
        is_inside = (row < height) & (col >= 0) & (col < width)
        # Cells outside point at cell 0, so that they can index; whoever uses a position asks `is_inside` too.
        return torch.where(is_inside, row * width + col, 0), is_inside

    def _blocked_cells(self) -> torch.Tensor:
        position, is_inside = self._positions()
        return ~is_inside | self._covered.gather(1, position)

    def _place(self, token_ids: torch.Tensor) -> None:
        """Put one token (batch,) at the end of each sequence.

        Every row goes through every step, whatever its token is: a branch would need its value on the host.
        """
        starts, shape_of, repeats = self._tables.starts, self._tables.shape_of, self._tables.repeats
        tracker, layout = self._tracker, self._tracker.layout
        is_boi, is_eoi = token_ids == tracker.boi_token_id, token_ids == tracker.eoi_token_id
        is_visual = (token_ids >= layout.first_code_id) & (token_ids < layout.size)
        was_open, was_full = self.is_open, self.is_full
        # Of other tokens some visual id, whose shape is then not placed.
        visual_ids = (token_ids - layout.first_code_id).clamp(0, len(shape_of) - 1)
        shape = shape_of[visual_ids]
        position, is_inside = self._positions()
        cell = torch.arange(position.shape[1], device=position.device)
        is_cell = (cell >= starts[shape, None]) & (cell < starts[shape + 1, None])
        is_blocked = (is_cell & (~is_inside | self._covered.gather(1, position))).any(dim=1)
        if self._has_repeats:
            is_blocked |= repeats[visual_ids] & ~self._tracker.may_repeat(self.num_frames)
        is_placed = was_open & is_visual & ~was_full & ~is_blocked
        # A maximum, since several cells write to position 0, and those outside of the grid or the shape say 0.
        touched = torch.zeros_like(self._covered, dtype=torch.uint8)
        touched.scatter_reduce_(1, position, (is_cell & is_inside).to(torch.uint8), "amax")
        self._covered = self._covered | (touched.bool() & is_placed[:, None])
        self._covered = self._covered & ~is_boi[:, None]
        # What breaks an image leaves the row illegal until another mark; a text token in an image does, too.
        inside_broken = self.is_illegal & ~is_boi & ~is_eoi
        self.is_illegal = inside_broken | (was_open & ~is_placed & ~is_boi & ~is_eoi)
        self.is_open = is_boi | (was_open & is_placed)
        if tracker.bov_token_id is not None:
            in_video = (self.num_frames >= 0) & (token_ids != tracker.eov_token_id)
            frames = torch.where(in_video, self.num_frames + is_boi, -1)
            self.num_frames = torch.where(token_ids == tracker.bov_token_id, 0, frames)
