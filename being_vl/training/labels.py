"""ids → labels: which tokens a row is trained to predict, and how much each counts.

Source: LLaVA trains on what the assistant says, Chameleon and the released Being-VL code on every token.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch

from ..vocabulary import VocabularyLayout
from .packing import IGNORE_INDEX

Labels = Literal["assistant", "text", "all"]
# Kinds of labels, in the order of `kinds_of`. Special tokens, such as the end of an image, count as text.
KINDS = ("text", "code", "merge")


def make_labels(
    input_ids: np.ndarray, assistant_masks: np.ndarray, layout: VocabularyLayout, labels: Labels
) -> np.ndarray:
    """The labels of one sample, not shifted.

    Args:
        input_ids: int (length,), token ids.
        assistant_masks: int (length,), 1 where the assistant speaks.
        layout: the vocabulary.
        labels: `"assistant"`, `"text"` (ids below T: neither image tokens nor the special tokens around
            them) or `"all"`.

    Returns:
        int32 (length,): the ids, -100 where nothing is predicted. The first is always -100: nothing
        stands before it.

    Raises:
        ValueError: `labels` is unknown, or the two arrays differ in length.
    """
    if len(input_ids) != len(assistant_masks):
        raise ValueError(
            f"input_ids and assistant_masks must have one length, got {len(input_ids)} and {len(assistant_masks)}"
        )
    if labels == "assistant":
        predicted = np.asarray(assistant_masks) != 0
    elif labels == "text":
        predicted = np.asarray(input_ids) < layout.text_size
    elif labels == "all":
        predicted = np.ones(len(input_ids), bool)
    else:
        raise ValueError(f"labels must be one of {', '.join(get_args(Labels))}, got {labels!r}")
    chosen = np.where(predicted, input_ids, IGNORE_INDEX).astype(np.int32)
    chosen[:1] = IGNORE_INDEX
    return chosen


def kinds_of(token_ids: torch.Tensor, layout: VocabularyLayout) -> torch.Tensor:
    """Token ids of any shape → long of that shape: 0 text and special, 1 code, 2 merge (`KINDS`)."""
    return (token_ids >= layout.first_code_id).long() + (token_ids >= layout.first_merge_id)
