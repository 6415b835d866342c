"""ids that a request has generated → which ids may come next, for the requests of an engine's batch.

Source: the rules of `generate` (`models/generation_being_vl.py`), with the state of a grid kept from token to
token. It differs in that each row of a batch is a request of its own, with its own mode, grid, budget and
length, and that a step sends the device one small array: a row of flags, and which shapes fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch

from ..bpe.image_bpe import ImageBPE
from ..bpe.placement import GridState
from ..models.configuration_being_vl import SPECIAL_IDS
from ..models.legal_logits import image_token_bound
from ..vocabulary import VocabularyLayout

Mode = Literal["text", "image", "interleaved"]
MAX_SIDE = 4096  # cells a side, of an image that a request asks for

_TEXT, _BOI, _EOI, _FREE, _END = range(5)  # flags: the ids that a row may take, beside image tokens
_FLAGS = 5


@dataclass(frozen=True)
class ImageIds:
    """The ids of a vocabulary, as a mask needs them."""

    layout: VocabularyLayout
    bpe: ImageBPE
    boi: int
    eoi: int
    others: tuple[int, ...] = ()  # special tokens of images and videos that no answer holds
    end: tuple[int, ...] = ()  # the tokens that end an answer

    @classmethod
    def from_config(cls, config: Any, bpe: ImageBPE, end: Sequence[int] = ()) -> ImageIds:
        """Of a Being-VL configuration."""
        boi, eoi = config.boi_token_id, config.eoi_token_id
        special = {getattr(config, name) for name in SPECIAL_IDS} - {None, boi, eoi}
        return cls(config.layout, bpe, boi, eoi, tuple(sorted(special)), tuple(end))


def checked_mode(options: Mapping[str, Any]) -> tuple[Mode, tuple[int, int] | None]:
    """`generation_mode` and `image_grid_size` of a request.

    Raises:
        ValueError: an unknown mode, or a size that is not two positive whole numbers.
    """
    mode: Any = options.get("generation_mode") or "text"
    if mode not in get_args(Mode):
        raise ValueError(
            f"generation_mode must be one of {', '.join(get_args(Mode))}, got {mode!r}"
        )
    size: Any = options.get("image_grid_size")
    if size is None:
        return mode, None
    is_pair = isinstance(size, (list, tuple)) and len(size) == 2
    if not is_pair or not all(type(side) is int and 0 < side <= MAX_SIDE for side in size):
        raise ValueError(f"image_grid_size must be [height, width] in cells, got {size!r}")
    return mode, (size[0], size[1])


@dataclass
class RequestState:
    """What a request may generate, and the grid that it is in."""

    ids: ImageIds
    mode: Mode
    grid_size: tuple[int, int] | None  # (height, width) of its images; None for text
    prompt: Sequence[int]
    generated: Sequence[int]  # its ids so far, a list that the engine appends to
    max_tokens: int
    _grid: GridState | None = field(default=None, init=False)
    _is_illegal: bool = field(default=False, init=False)
    _is_done: bool = field(default=False, init=False)
    _seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        marks = [i for i, t in enumerate(self.prompt) if t in (self.ids.boi, self.ids.eoi)]
        if self.mode != "text" and marks and self.prompt[marks[-1]] == self.ids.boi:
            for token_id in self.prompt[marks[-1] :]:  # an image that the prompt leaves open
                self._take(token_id)

    def _take(self, token_id: int) -> None:
        if token_id == self.ids.boi:
            self._grid = GridState(self.ids.bpe, *self.grid_size, may_repeat=False)
            self._is_illegal = False
        elif token_id == self.ids.eoi:
            self._grid, self._is_illegal, self._is_done = None, False, True
        elif self._grid is not None:
            try:
                self._grid.append(self.ids.layout.visual_id(token_id))
            except ValueError:  # someone else chose the token; `generate` lets it be, too
                self._grid, self._is_illegal = None, True

    def write(self, out: np.ndarray) -> None:
        """Write flags and fitting shapes into a row of zeros, uint8 (5 + shapes of `BatchMask`,)."""
        if self.mode == "text":
            out[_TEXT] = 1
            return
        for token_id in self.generated[self._seen :]:
            self._take(token_id)
        self._seen = len(self.generated)
        if self._is_illegal:  # nothing legal can follow: `generate` lets such a row be free, too
            out[:] = 1
        elif self._grid is not None and self._grid.finished:
            out[_EOI] = 1
        elif self._grid is not None:
            fitting = self._grid.fitting_shapes()
            out[_FLAGS : _FLAGS + len(fitting)] = fitting
        elif self.mode == "image":
            # One image: then only an end, or where no token is one, whatever comes.
            out[_BOI if not self._is_done else _END if self.ids.end else slice(None)] = 1
        else:
            out[_TEXT] = 1
            out[_BOI] = self.max_tokens - self._seen >= image_token_bound(*self.grid_size)


class BatchMask:
    """Rules out what the requests of a batch may not take."""

    def __init__(self, ids: ImageIds, device: torch.device | str, *, pin_memory: bool = False):
        shapes = ids.bpe.shape_table()
        # Tokens that repeat (of videos) have shapes of their own, for which an image has no room.
        repeats = ids.bpe.repeating_ids()
        self._num_shapes = len(shapes.starts) * (1 + int(repeats.any()))
        judged_as = shapes.shape_of + len(shapes.starts) * repeats
        self._shape_of = torch.from_numpy(judged_as).to(device)
        self._special = torch.tensor([ids.boi, ids.eoi, *ids.others], device=device)
        self._flag_of = torch.tensor([_BOI, _EOI, *[_FREE] * len(ids.others)], device=device)
        self._end = torch.tensor(ids.end, device=device, dtype=torch.long)
        self._first, self._stop = ids.layout.first_code_id, ids.layout.size
        self._device, self._pin_memory = device, pin_memory

    def apply(self, logits: torch.Tensor, requests: Mapping[int, RequestState]) -> torch.Tensor:
        """Set logits (batch, vocabulary) of a step to -inf in place, where a request may not go.

        Requests go by their row in the batch; other rows are left alone.
        """
        if not requests:
            return logits
        only_text = all(request.mode == "text" for request in requests.values())
        if only_text and len(requests) == len(logits):
            logits[:, self._first : self._stop] = -torch.inf
            logits[:, self._special] = -torch.inf
            return logits
        allowed = np.zeros((len(logits), _FLAGS + self._num_shapes), dtype=np.uint8)
        for row in range(len(logits)):
            if row in requests:
                requests[row].write(allowed[row])
            else:
                allowed[row] = 1
        # The passes over the whole vocabulary are what a step costs: text is filled by runs of rows, known here.
        closed = (allowed[:, _TEXT] == 0).astype(np.int8)
        edges = np.flatnonzero(np.diff(closed, prepend=0, append=0)).tolist()
        runs = list(zip(edges[::2], edges[1::2], strict=True))
        staged = torch.from_numpy(allowed)
        if self._pin_memory:
            staged = staged.pin_memory()
        return self._rule_out(logits, staged.to(self._device, non_blocking=True).bool(), runs)

    def _rule_out(
        self, logits: torch.Tensor, allowed: torch.Tensor, runs: list[tuple[int, int]]
    ) -> torch.Tensor:
        is_text, is_end = allowed[:, _TEXT], allowed[:, _END] & ~allowed[:, _TEXT]
        penalty = torch.where(allowed, 0.0, -torch.inf)
        # A sum costs a third of a fill, and `index_select` a sixth of brackets.
        of_codes = penalty[:, _FLAGS:].index_select(1, self._shape_of)
        codes = logits[:, self._first : self._stop].add_(of_codes)
        special = logits[:, self._special] + penalty[:, self._flag_of]
        # Finite, so that a row which may only end can end, whatever another processor has ruled out.
        ends = logits[:, self._end].clamp(min=-1e30)
        for begin, stop in runs:
            logits[begin:stop, : self._first] = -torch.inf
        logits[:, self._end] = torch.where(is_end[:, None], ends, logits[:, self._end])
        # Where another processor has ruled out all that is legal, the grid comes first.
        best = torch.maximum(codes.amax(dim=1), special.amax(dim=1))
        is_stuck = (best == -torch.inf) & ~is_text & ~is_end
        # On other devices asking costs more than it saves.
        if logits.device.type == "cpu" and not is_stuck.any():
            logits[:, self._special] = special
            return logits
        floor = torch.zeros_like(best).masked_fill_(~is_stuck, -torch.inf)[:, None]
        torch.maximum(codes, of_codes.add_(floor), out=codes)
        logits[:, self._special] = torch.maximum(special, penalty[:, self._flag_of] + floor)
        return logits
