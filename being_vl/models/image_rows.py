"""text rows, VQ codebook, merges → the first values of an embedding's new rows.

Source: the vocabulary expansions of Being-VL ("normal"), of Hewitt's note on new word embeddings
("mean_text"), and two that are in no paper: "codebook" projects the VQ-GAN's code vectors at random, which
keeps their geometry (Johnson-Lindenstrauss), and "constituents" starts a merge as the mean of its two parts.

What they do to text before any training: rows with the deviation of text rows ("normal", "codebook",
"constituents") meet hidden states by chance, and the luckiest of thousands outbids the right word. The mean
text row never outbids: by convexity its logit is at most the log of the text rows' mean probability mass.
"""

from typing import get_args

import numpy as np
import torch

from ..vocabulary import VocabularyLayout
from .families import ImageInit

_MOST_DEVIATIONS = 16  # no normal number lies further out
_MEAN_TEXT_NOISE = 0.01  # of the text rows' standard deviation: enough to tell equal rows apart


def check_image_init(
    image_init: str,
    layout: VocabularyLayout,
    codebook: torch.Tensor | None,
    merges: np.ndarray | torch.Tensor | None,
) -> None:
    """Raises ValueError unless `image_init` is known and has what it starts from, in the right shape."""
    if image_init not in get_args(ImageInit):
        raise ValueError(f"image_init must be one of {get_args(ImageInit)}, got {image_init!r}")
    if image_init == "codebook":
        if codebook is None:
            raise ValueError("image_init='codebook' needs codebook=, the (K, dim) code vectors")
        if codebook.ndim != 2 or codebook.shape[0] != layout.codebook_size:
            raise ValueError(
                f"codebook must have shape ({layout.codebook_size}, dim), got {tuple(codebook.shape)}"
            )
    if image_init in ("codebook", "constituents") and layout.num_merges:
        if merges is None:
            raise ValueError(f"image_init={image_init!r} needs merges=, the (M, 4) merge rules")
    if merges is not None and tuple(merges.shape) != (layout.num_merges, 4):
        raise ValueError(
            f"merges must have shape ({layout.num_merges}, 4), got {tuple(merges.shape)}"
        )


def new_rows(
    text_rows: torch.Tensor,
    layout: VocabularyLayout,
    image_init: ImageInit,
    *,
    std: float | None = None,
    codebook: torch.Tensor | None = None,
    merges: np.ndarray | torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Rows for the ids [T, T + S + K + M), float32 on the CPU, shape (S + K + M, hidden_size).

    The S special rows are drawn as `"normal"`, or as `"mean_text"` where that is asked for.

    Args:
        text_rows: the matrix of the text model, (T, hidden_size), any float dtype.
        layout: the sizes T, S, K and M.
        image_init: how code and merge rows start; docs/model.md has a table of the methods.
        std: standard deviation of normal rows and of projected codes, by default that of the text rows;
            of the noise around the mean for `"mean_text"`, by default a hundredth of it.
        codebook: (K, dim) code vectors, for `"codebook"`.
        merges: (M, 4) merge rules, for `"codebook"` and `"constituents"`.
        generator: a CPU generator.
    """
    if std is not None and not 0 <= std <= torch.finfo(text_rows.dtype).max / _MOST_DEVIATIONS:
        raise ValueError(
            f"image_init_std must be at least 0 and far below what {text_rows.dtype} holds, got {std}"
        )
    text_rows = text_rows.detach().float().cpu()
    hidden_size = text_rows.shape[1]
    num_rows = layout.size - layout.text_size
    rows = torch.randn(num_rows, hidden_size, generator=generator)
    if image_init == "mean_text":
        noise = _MEAN_TEXT_NOISE * text_rows.std() if std is None else std
        return rows * noise + text_rows.mean(dim=0)
    scale = text_rows.std() if std is None else std
    rows *= scale
    image_rows = rows[layout.num_special_tokens :]
    if image_init == "codebook" and codebook is not None:
        image_rows[: layout.codebook_size] = scale * _project(codebook, hidden_size, generator)
    if image_init in ("codebook", "constituents") and merges is not None:
        _average_parts(image_rows, layout.codebook_size, merges)
    return rows


def _project(
    codebook: torch.Tensor, hidden_size: int, generator: torch.Generator | None
) -> torch.Tensor:
    """(K, dim) → (K, hidden_size) of unit variance; distances between codes survive the projection."""
    codes = codebook.detach().float().cpu()
    codes = codes - codes.mean(dim=0)
    projected = codes @ torch.randn(codes.shape[1], hidden_size, generator=generator)
    return projected / projected.std().clamp_min(torch.finfo(torch.float32).tiny)


def _average_parts(
    image_rows: torch.Tensor, codebook_size: int, merges: np.ndarray | torch.Tensor
) -> None:
    """Row K + r becomes the mean of its rule's two parts, in rank order, so parts come before wholes."""
    for rank, (first, second) in enumerate(merges[:, :2].tolist()):
        visual_id = codebook_size + rank
        if not (0 <= first < visual_id and 0 <= second < visual_id):
            raise ValueError(
                f"merges[{rank}] joins {first} and {second}, but only {visual_id} tokens exist at that rank"
            )
        image_rows[visual_id] = (image_rows[first] + image_rows[second]) / 2
