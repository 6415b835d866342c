"""image tokens → the row and column of their anchors → learned vectors, for models that want them.

Off by default; not in the papers, which leave positions to the text model's rotary embedding, by which cells that
are neighbours in a column lie a row of tokens apart.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ..bpe.image_bpe import ImageBPE
from ..bpe.placement import GridState
from ..vocabulary import VocabularyLayout


class GridPositionEmbedding(nn.Module):
    """(row, column) of an image token's anchor → a learned vector; zero at first, so a Llama stays one."""

    def __init__(self, max_grid_size: int, hidden_size: int):
        super().__init__()
        self.rows = nn.Parameter(torch.empty(max_grid_size, hidden_size))
        self.columns = nn.Parameter(torch.empty(max_grid_size, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.zeros_(self.rows)
        init.zeros_(self.columns)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """(batch, length, 2) long, −1 at tokens of no image → (batch, length, hidden_size)."""
        is_image = (positions >= 0).all(dim=-1, keepdim=True)
        rows, columns = positions.clamp_min(0).unbind(dim=-1)
        vectors = F.embedding(rows, self.rows) + F.embedding(columns, self.columns)
        return torch.where(is_image, vectors, torch.zeros_like(vectors))


def image_token_positions(
    input_ids: torch.Tensor,
    layout: VocabularyLayout,
    image_bpe: ImageBPE,
    grid_size: tuple[int, int],
    *,
    boi_token_id: int,
    eoi_token_id: int,
    known: torch.Tensor | None = None,
    strict: bool = True,
) -> torch.Tensor:
    """Row and column of each image token's anchor in its grid, −1 at every other token.

    All images have the size `grid_size`, except those that end within `known`; the last may be unfinished.

    Args:
        input_ids: (batch, length) long token ids, of the vocabulary `layout`.
        image_bpe: the merge rules, which say which cells a token covers.
        grid_size: (height, width) in cells.
        boi_token_id, eoi_token_id: the tokens that open and close an image.
        known: (batch, n, 2) long, the positions of the first n tokens.
        strict: raise on ids that are no image; else give −1 from there on, as for the beams of score
            -inf that beam search fills up with.

    Returns:
        (batch, length, 2) long, on the device of `input_ids`.

    Raises:
        ValueError: an image token outside an image, or ids that do not fit the grid.
    """
    positions = np.full((*input_ids.shape, 2), -1, dtype=np.int64)
    num_known = 0 if known is None else known.shape[1]
    if known is not None:
        positions[:, :num_known] = known.cpu().numpy()
    for b, ids in enumerate(input_ids.tolist()):
        state = None
        for i, token_id in enumerate(ids):
            if token_id == boi_token_id:
                ends_within_known = eoi_token_id in ids[i:num_known]
                state = None if ends_within_known else GridState(image_bpe, *grid_size)
            elif token_id == eoi_token_id:
                state = None
            elif layout.first_code_id <= token_id < layout.size:
                if state is not None and not state.finished:
                    positions[b, i] = state.next_anchor
                    try:
                        state.append(layout.visual_id(token_id))
                    except ValueError as error:
                        if strict:
                            raise ValueError(f"input_ids[{b}, {i}]: {error}") from None
                        state = None
                elif strict and i >= num_known:
                    raise ValueError(
                        f"input_ids[{b}, {i}] is image token {token_id} outside an image of "
                        f"{grid_size[0]}x{grid_size[1]} cells"
                    )
    return torch.from_numpy(positions).to(input_ids.device)
