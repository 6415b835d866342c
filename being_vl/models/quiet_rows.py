"""text model → a shift of new head rows after which they take no probability from text.

A softmax over a longer vocabulary gives every new row its share, and thousands of rows that are merely average
can outweigh the right word. Hidden states of a trained model have one direction in common (transformers are
anisotropic: Ethayarajh, 2019); a small step of the new rows against it lowers their logits everywhere.
"""

import logging
import math
from typing import Any

import torch
import torch.nn.functional as F

_BATCH, _LENGTH = 4, 64  # random text ids that the hidden states are looked at on
_RIDGE = 0.1  # of the mean square of a coordinate
_SHARE = 1e-4  # of the probability, for all new rows together
_STEPS = torch.linspace(0, 40, 161)  # logits
_WORTH_SAYING = 0.01  # nats

logger = logging.getLogger(__name__)


@torch.no_grad()
def quiet_shift(text_model: Any, text_size: int, rows: torch.Tensor) -> torch.Tensor:
    """The vector to add to new rows of the head, (hidden_size,) float32 on the CPU.

    The model runs once, over 256 random text ids. The shift is the smallest after which all new rows
    together take less than 1e-4 of the probability at each of these positions. Where no shift does that,
    the one whose worst position is the best, and a warning says by how much the mean loss rises.

    Args:
        text_model: any text model with a head.
        text_size: T, the number of its token ids.
        rows: (number of new rows, hidden_size), alike but for noise, as of `"mean_text"`.

    Raises:
        ValueError: the text model gives hidden states that are not finite, or all zero.
    """
    shift = torch.zeros(rows.shape[1])
    if text_model.get_output_embeddings().weight.is_meta or not len(rows):
        return shift
    hidden_states, text_logits = _look(text_model, text_size)
    if not hidden_states.isfinite().all() or not hidden_states.any():
        raise ValueError(
            f"{text_model.name_or_path or 'the text model'}: its hidden states are not finite, or all zero: the "
            "weights are damaged"
        )
    # Over the text rows: the best that the model can do without the new ones.
    share = hidden_states @ rows.mean(dim=0) + math.log(len(rows)) - text_logits.logsumexp(dim=-1)
    direction = _common_direction(hidden_states)
    lowered = share[:, None] - (hidden_states @ direction)[:, None] * _STEPS
    worst = lowered.amax(dim=0)
    is_quiet = worst < math.log(_SHARE)
    increase = F.softplus(lowered).mean(dim=0)  # of the loss, in nats
    best = int(is_quiet.int().argmax() if is_quiet.any() else worst.argmin())
    if increase[best] > _WORTH_SAYING:
        logger.warning(
            "The %d new rows raise the loss on text by %.2f before any training: the hidden states of this "
            "text model have no direction in common, as of one that was hardly trained",
            len(rows),
            increase[best],
        )
    return -_STEPS[best] * direction


def _look(text_model: Any, text_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states before the head and logits of the text ids, float32 (positions, …) on the CPU."""
    length = min(_LENGTH, text_model.config.max_position_embeddings)
    ids = torch.randint(text_size, (_BATCH, length), generator=torch.Generator().manual_seed(0))
    was_training = text_model.training
    text_model.eval()
    hidden_states = text_model.model(ids.to(text_model.device)).last_hidden_state.flatten(0, 1)
    logits = text_model.get_output_embeddings()(hidden_states)[:, :text_size]
    text_model.train(was_training)
    return hidden_states.float().cpu(), logits.float().cpu()


def _common_direction(hidden_states: torch.Tensor) -> torch.Tensor:
    """(positions, hidden_size) → the direction whose product with all of them is as near to 1 as can be.

    Ridge regression to a constant, solved in the space of positions, which are fewer than coordinates.
    """
    positions, hidden_size = hidden_states.shape
    products = hidden_states @ hidden_states.T
    ridge = _RIDGE * products.trace() / hidden_size
    solved = torch.linalg.solve(products + ridge * torch.eye(positions), torch.ones(positions))
    direction = hidden_states.T @ solved
    return direction / (hidden_states @ direction).mean()
