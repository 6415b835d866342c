"""logits of vLLM's batch → logits that keep texts texts and images decodable.

A request asks for an image by `extra_args` of its `SamplingParams`, `vllm_xargs` over HTTP:
`{"generation_mode": "image" | "interleaved", "image_grid_size": [height, width]}`. Without them it is a text, and
takes no token of an image. An image is whole when its grid is, and then its answer ends: with a token that ends
answers, or at `stop_token_ids=[eoi_token_id]` before it.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from ...bpe.image_bpe import ImageBPE
from ...models.legal_logits import image_token_bound
from ..request_masks import BatchMask, ImageIds, RequestState, checked_mode
from . import served_grid_size


class ImageGridLogitsProcessor(LogitsProcessor):
    """The mask of every request to a Being-VL checkpoint."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse what no image can come of, before the request reaches the engine."""
        mode, size = checked_mode(sampling_params.extra_args or {})
        if mode == "text":
            return
        size = size or served_grid_size()
        if size is None:
            raise ValueError(
                "image_grid_size=[height, width] must be given: the checkpoint has none"
            )
        needed, limit = image_token_bound(*size), sampling_params.max_tokens
        if mode == "image" and limit is not None and limit < needed:
            raise ValueError(
                f"an image of {size[0]}×{size[1]} cells takes up to {needed} tokens, and max_tokens is {limit}"
            )

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        model = vllm_config.model_config
        config = model.hf_config
        generation = model.try_get_generation_config()
        end = generation.get("eos_token_id", config.eos_token_id)
        end = end if isinstance(end, list) else [] if end is None else [end]
        bpe = ImageBPE.from_pretrained(model.model, revision=model.revision)
        self._ids = ImageIds.from_config(config, bpe, end)
        self._grid_size = config.image_grid_size
        self._mask = BatchMask(self._ids, device, pin_memory=is_pin_memory)
        self._requests: dict[int, RequestState] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(self._requests, batch_update, self._begun)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return self._mask.apply(logits, self._requests)

    def _begun(self, params: Any, prompt: list[int] | None, generated: list[int]) -> RequestState:
        mode, size = checked_mode(params.extra_args or {})
        size = size or self._grid_size
        grid_size = tuple(size) if size and mode != "text" else None
        return RequestState(self._ids, mode, grid_size, prompt or (), generated, params.max_tokens)
