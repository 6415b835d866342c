"""a ready 4D mask → what each kind of layer takes, for rows that hold more than one sample.

transformers makes its masks from 2D ones; a 4D mask that it is given goes to every layer as it is, so a
sliding window would be lost, and eager attention would add a boolean one.
"""

from typing import Any

import torch


def block_masks(
    mask: Any, position_ids: torch.Tensor | None, config: Any, dtype: torch.dtype
) -> Any:
    """`mask` itself unless it is a 4D mask: then a mask, or one for each of the model's `layer_types`.

    Args:
        mask: (batch, 1, length, key_length), True or 0 where a query may look; or anything else.
        position_ids: (batch, length) long; a window is measured in them, so that packed samples see what
            each would see alone. Without them, or behind a cache, in places.
        config, dtype: of the text model.
    """
    if not (isinstance(mask, torch.Tensor) and mask.ndim == 4):
        return mask
    least = torch.finfo(dtype).min
    if mask.dtype == torch.bool and config._attn_implementation == "eager":
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, least)
    # Fields of the family's, not leftovers in a config.json: Llama's attention knows no window.
    window, layer_types = (
        getattr(config, name) if hasattr(type(config), name) else None
        for name in ("sliding_window", "layer_types")
    )
    if window is None or (layer_types is not None and "sliding_attention" not in layer_types):
        return mask
    length, key_length = mask.shape[-2:]
    if position_ids is None or position_ids.shape[-1] != key_length:
        keys = torch.arange(key_length, device=mask.device)[None]
    else:
        keys = position_ids.to(mask.device)
    queries = keys[:, key_length - length :]
    is_far = (queries[:, :, None] - keys[:, None, :] >= window)[:, None]
    windowed = mask.masked_fill(is_far, False if mask.dtype == torch.bool else least)
    if layer_types is None:
        return windowed
    return {"full_attention": mask, "sliding_attention": windowed}
