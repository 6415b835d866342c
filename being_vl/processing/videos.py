"""videos → ids: what a processor does beside images, where its vocabulary has a `video_token`.

A video is `bov_token`, its frames in order, each as an image is (`boi_token`, tokens, `eoi_token`), and `eov_token`;
with `timestamps`, the time of a frame stands before it as text. Under a vocabulary with a repeat code, cells that
repeat the frame before are marked first. Source: Qwen3-VL's processor, for timestamps and the names; it differs in
that each frame takes as many tokens as its content needs.
"""

# No `from __future__ import annotations`: the processor, which this is mixed into, reads annotations as classes.
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import MultiModalData

from ..bpe.repeats import encode_frames
from ..quantizers.quantizing import encode_in_order
from ..quantizers.video_processing_being_vl import BeingVLVideoProcessor, as_metadata, flat_videos
from .grid_inputs import flatten, is_nested
from .tokenization_being_vl import visual_token


class Clips(list):
    """Codes of videos, nested as they were given, on their way to `_process_videos` in the place of videos."""


class VideoMixin:
    """The part of [`BeingVLProcessor`] that is about videos."""

    def _init_videos(self, image_processor: Any, tokenizer: Any, video_processor: Any) -> None:
        self.video_token = getattr(tokenizer, "video_token", None)
        if self.video_token is None:
            if video_processor is not None:
                raise ValueError(
                    "video_processor is given, but the tokenizer has no video_token, bov_token and eov_token"
                )
            return
        self.video_token_id = tokenizer.video_token_id
        self.bov_token, self.bov_token_id = tokenizer.bov_token, tokenizer.bov_token_id
        self.eov_token, self.eov_token_id = tokenizer.eov_token, tokenizer.eov_token_id
        if video_processor is None:
            video_processor = BeingVLVideoProcessor.like(image_processor)
        elif isinstance(video_processor, dict):  # as it stands in processor_config.json
            options = set(BeingVLVideoProcessor.valid_kwargs.__annotations__)
            video_processor = BeingVLVideoProcessor(
                **{key: value for key, value in video_processor.items() if key in options}
            )
        self.video_processor = video_processor

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that transformers loads by Auto classes; AutoVideoProcessor would need torchvision."""
        return [name for name in super().get_attributes() if name != "video_processor"]

    @property
    def _has_videos(self) -> bool:
        return self.video_token is not None

    # ---- pixels → codes

    def quantize_videos(
        self, videos: Any, **videos_kwargs: Any
    ) -> tuple[list[np.ndarray], list[Any]]:
        """Videos → codes int32 (t, h, w) of each, and their metadata.

        A quantizer of single images gives one grid a frame. One that takes several frames to a grid
        (`config.temporal_downsampling` above 1) gives its own, and the metadata then name the first frame of each.
        """
        self._require_videos()
        options = {**videos_kwargs, "return_metadata": True}
        options.pop("return_tensors", None)
        found = self.video_processor(videos, **options)
        codes = [self._quantize_frames(pixels) for pixels in found["pixel_values_videos"]]
        step = self._temporal_downsampling
        metadata = [_every(known, step) for known in found["video_metadata"]]
        return codes, metadata

    @property
    def _temporal_downsampling(self) -> int:
        return getattr(self._vq.config, "temporal_downsampling", 1)

    def _quantize_frames(self, pixels: np.ndarray) -> np.ndarray:
        model = self.vq_model
        if self._temporal_downsampling > 1:
            with torch.inference_mode():
                values = torch.as_tensor(pixels).to(model.device, model.dtype)
                return model.encode_video(values).cpu().numpy().astype(np.int32)
        return np.stack(encode_in_order(list(pixels), model, what="frame"))

    # ---- codes → text

    def _process_videos(self, videos: Any, **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
        """Videos or their codes → metadata, and a text for each of them."""
        kwargs.pop("return_tensors", None)
        if isinstance(videos, Clips):
            codes = [np.asarray(clip) for clip in flatten(videos)]
            metadata = as_metadata(kwargs.get("video_metadata"), len(codes))
        else:
            codes, metadata = self.quantize_videos(videos, **kwargs)
        options = {
            name: getattr(self.video_processor, name) if kwargs.get(name) is None else kwargs[name]
            for name in ("timestamps", "key_frame_interval")
        }
        inputs = {"video_codes": codes, "video_metadata": metadata}
        texts = [self.replace_video_token(inputs, index, **options) for index in range(len(codes))]
        return {"video_metadata": metadata}, texts

    def replace_video_token(
        self,
        video_inputs: dict,
        video_idx: int,
        timestamps: bool = False,
        key_frame_interval: int | None = None,
        **kwargs: Any,
    ) -> str:
        """What stands for a video in the text: see the module."""
        codes, bpe = video_inputs["video_codes"][video_idx], self.tokenizer.image_bpe
        if codes.ndim != 3 or 0 in codes.shape:
            raise ValueError(f"video_codes must be clips (T, h, w), got shape {codes.shape}")
        times = (
            _times(video_inputs["video_metadata"][video_idx], len(codes)) if timestamps else None
        )
        parts = [self.bov_token]
        frames = encode_frames(bpe, codes, key_frame_interval=key_frame_interval)
        for number, ids in enumerate(frames):
            if times is not None:
                parts.append(f"<{times[number]:.1f} seconds>")
            parts += [self.boi_token, *map(visual_token, ids.tolist()), self.eoi_token]
        return "".join([*parts, self.eov_token])

    def _count_videos(self, videos: Any, texts: int) -> list[int] | int:
        """How many videos there are: for each text where they come so, else in all."""
        flat = flatten if isinstance(videos, Clips) else flat_videos
        if isinstance(videos, (list, tuple)) and len(videos) == texts and is_nested(videos):
            counts = [len(flat(type(videos)(sample) if sample else [])) for sample in videos]
            if sum(counts) == len(flat(videos)) and not _is_frames(videos):
                return counts
        return len(flat(videos))

    def _require_videos(self) -> None:
        if not self._has_videos:
            raise ValueError(
                "this checkpoint takes text and images, but no videos: its vocabulary has no video_token. "
                "being-vl train-bpe on codes of videos, then being-vl init, make one that has"
            )

    # ---- what engines ask for

    def create_mm_token_type_ids(self, input_ids: list) -> list[list[int]]:
        """As of every processor: 1 for tokens of images, 2 for those of videos, their marks included."""
        types = super().create_mm_token_type_ids(input_ids)
        if not self._has_videos:
            return types
        rows = []
        for ids, row in zip(input_ids, types, strict=True):
            array, marks = np.asarray(row), np.asarray(ids)
            array[(self.tokenizer.open_videos(marks) > 0) & (array == 1)] = 2
            array[(marks == self.bov_token_id) | (marks == self.eov_token_id)] = 2
            rows.append(array.tolist())
        return rows

    def _num_video_tokens(self, video_sizes: Sequence[Sequence[int]]) -> MultiModalData:
        """The most tokens that videos of these (frames, height, width) can take, marks included."""
        self._require_videos()
        stamp = len(self.tokenizer("<9999.9 seconds>", add_special_tokens=False).input_ids)
        each = 2 + (stamp if self.video_processor.timestamps else 0)
        tokens = []
        for frames, height, width in video_sizes:
            grids = -(-frames // self._temporal_downsampling)
            tokens.append(grids * (math.prod(self.grid_size(height, width)) + each) + 2)
        return MultiModalData(num_video_tokens=tokens)

    def _only_quantize_videos(self, videos: Any, **kwargs: Any) -> BatchFeature:
        wanted = kwargs.pop("return_metadata", None)
        codes, metadata = self.quantize_videos(videos, **kwargs)
        return BatchFeature(
            {"video_codes": codes} | ({"video_metadata": metadata} if wanted else {})
        )


def _is_frames(videos: Any) -> bool:
    """Whether lists are videos by themselves, rather than lists of videos."""
    return all(len(flat_videos([sample])) == 1 and len(sample) != 1 for sample in videos if sample)


def _every(metadata: Any, step: int) -> Any:
    """The metadata of every step-th frame."""
    if step == 1:
        return metadata
    changes = {"frames_indices": metadata.frames_indices[::step]}
    if metadata.frame_times is not None:
        changes["frame_times"] = metadata.frame_times[::step]
    return type(metadata)(**{**dict(metadata.items()), **changes})


def _times(metadata: Any, num_frames: int) -> list[float]:
    try:
        times = metadata.timestamps
    except (AttributeError, ValueError):
        raise ValueError(
            "timestamps need to know when each frame was: give video_metadata with fps and frames_indices, or "
            "frame_times; or timestamps=False"
        ) from None
    if len(times) != num_frames:
        raise ValueError(f"video_metadata has {len(times)} times for {num_frames} frames")
    return times
