"""images of a request → ids in its prompt, in vLLM's frontend.

Source: vLLM's `BaseMultiModalProcessor`. It differs from other models' in that the ids which take a
placeholder's place are those that the language model reads, begin, tokens, end, as many as the image needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from ...models.legal_logits import image_token_bound
from ...processing.processing_being_vl import BeingVLProcessor

_load_processor = lru_cache(BeingVLProcessor.from_pretrained)


class ImageInfo(BaseProcessingInfo):
    """What vLLM asks about the images of a checkpoint."""

    def get_hf_processor(self, **kwargs: object) -> BeingVLProcessor:
        """The checkpoint's processor; `--mm-processor-kwargs '{"vq_device": "cuda"}'` moves its quantizer."""
        config = self.ctx.model_config
        configured = self.ctx.get_mm_config().mm_processor_kwargs or {}
        if unknown := sorted(set(configured) - {"vq_device"}):
            raise ValueError(f"mm_processor_kwargs may hold vq_device, got {unknown[0]}")
        if changed := sorted(name for name in kwargs if kwargs[name] != configured.get(name)):
            raise ValueError(f"{changed[0]} of mm_processor_kwargs is set when the server starts")
        device = configured.get("vq_device")
        return _load_processor(config.model, revision=config.revision, vq_device=device)

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {}

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        grid = self.get_hf_processor().grid_size(*self.largest_image())
        return {"image": image_token_bound(*grid)}

    def largest_image(self) -> tuple[int, int]:
        """Height and width in pixels of an image that takes as many cells as any.

        Without a crop there is no largest one: of one shape, a square, is then planned for.
        """
        options = self.get_hf_processor().image_processor
        if options.aspect_ratio_buckets:
            height, width = max(options.aspect_ratio_buckets, key=math.prod)
        elif options.do_center_crop:
            height, width = options.crop_size["height"], options.crop_size["width"]
        else:
            height = width = max(value for value in dict(options.size).values() if value)
        return height, width


class DummyImages(BaseDummyInputsBuilder[ImageInfo]):
    """Blank images, by which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return self.info.get_hf_processor().image_token * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any
    ) -> dict[str, Any]:
        height, width = self.info.largest_image()
        count = mm_counts.get("image", 0)
        return {"image": self._get_dummy_images(width=width, height=height, num_images=count)}


class ImageProcessor(BaseMultiModalProcessor[ImageInfo]):
    """Quantizes and merges."""

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        processor = self.info.get_hf_processor(**hf_kwargs)
        images = processor.image_ids(hf_data["images"])
        return BatchFeature({"image_ids": [torch.tensor(ids) for ids in images]})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"image_ids": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        def ids(index: int) -> PromptUpdateDetails:
            return PromptUpdateDetails.from_seq(
                out_mm_kwargs["image"][index]["image_ids"].data.tolist()
            )

        placeholder = self.info.get_hf_processor().image_token_id
        return [PromptReplacement(modality="image", target=[placeholder], replacement=ids)]
