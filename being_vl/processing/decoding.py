"""ids → text, images and videos: what a processor makes of what a model has generated.

Source: transformers' `post_process_multimodal_output`, whose modes it keeps. It differs in that an image has as many
tokens as its content needs, so the size of its grid is given, or is that of every image.
"""

# No `from __future__ import annotations`: the processor, which this is mixed into, reads annotations as classes.
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..bpe.placement import GridState
from ..bpe.repeats import decode_frames
from .grid_inputs import integers


class DecodingMixin:
    """The part of [`BeingVLProcessor`] that goes back from ids."""

    def decode_image(
        self,
        ids: Any,
        height: int | None = None,
        width: int | None = None,
        *,
        visual: bool = False,
    ) -> Image.Image:
        """The ids of one image → the image.

        Args:
            ids: token ids, with or without the begin and end tokens; or, if `visual`, visual ids.
            height, width: the size of the grid, in cells; by default that of every image, where the image
                processor crops them all to one size.

        Raises:
            ValueError: the ids do not cover a grid of that size exactly, naming the id and its position; or
                images differ in size, and none is given.
        """
        if not self.has_vq_model:
            self.vq_model  # noqa: B018  (says what is missing)
        codes = self.decode_codes(ids, height, width, visual=visual)
        repeat_code = self.tokenizer.image_bpe.repeat_code
        if repeat_code is not None and (codes == repeat_code).any():
            raise ValueError(
                "the ids repeat a frame before, which is no image by itself: decode_video takes all frames"
            )
        return self.reconstruct(codes)

    def decode_codes(
        self,
        ids: Any,
        height: int | None = None,
        width: int | None = None,
        *,
        visual: bool = False,
    ) -> np.ndarray:
        """The ids of one image → its grid of codes, int32 (h, w); see [`decode_image`]."""
        ids = integers(ids, "ids").reshape(-1)
        layout, bpe = self._layout, self.tokenizer.image_bpe
        if len(ids) and not visual:
            start = int(ids[0] == self.boi_token_id)
            stop = len(ids) - int(ids[-1] == self.eoi_token_id)
            text = np.flatnonzero(ids[start:stop] < layout.first_code_id)
            if len(text):
                raise ValueError(
                    f"token id {ids[start + text[0]]} at position {start + text[0]} is no image token's, which "
                    f"begin at {layout.first_code_id}; visual ids are decoded with visual=True"
                )
            ids = ids[start:stop] - layout.first_code_id
        self._check_visual_ids(ids)
        if height is None or width is None:
            height, width = self._common_grid_size(int(bpe.token_sizes()[ids].sum()))
        return bpe.decode(ids.astype(np.int32), height, width)

    def _check_visual_ids(self, ids: np.ndarray) -> None:
        count = self.tokenizer.image_bpe.vocab_size
        wrong = np.flatnonzero((ids < 0) | (ids >= count))
        if len(wrong):
            raise ValueError(
                f"visual id {ids[wrong[0]]} at position {wrong[0]} is not in [0, {count})"
            )

    def _common_grid_size(self, num_cells: int) -> tuple[int, int]:
        """The grid of every image. A count of cells does not tell the sides: 36 are 6 × 6 as well as 4 × 9."""
        options = self.image_processor
        if not self.has_vq_model or not options.do_center_crop or options.aspect_ratio_buckets:
            raise ValueError(
                f"images differ in size: give the height and width of this one of {num_cells} cells"
            )
        side = self._vq.config.downsampling
        height, width = options.crop_size["height"] // side, options.crop_size["width"] // side
        if height * width != num_cells:
            raise ValueError(
                f"images have {height} × {width} cells here, and this one has {num_cells}: give its height and "
                "width in cells"
            )
        return height, width

    def decode_video(
        self,
        ids: Any,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        visual: bool = False,
    ) -> list[Image.Image]:
        """The ids of one video → its frames.

        Args:
            ids: token ids of the frames in order, with or without begin and end tokens and timestamps, or visual ids.
            num_frames: how many there must be; any number by default.
            height, width, visual: as of [`BeingVLProcessor.decode_image`].

        Raises:
            ValueError: the ids do not cover that many frames of that size exactly, or a first frame has a repeat
                code.
        """
        if not self.has_vq_model:
            self.vq_model  # noqa: B018  (says what is missing)
        codes = self.decode_video_codes(ids, num_frames, height, width, visual=visual)
        if self._temporal_downsampling > 1:
            with torch.inference_mode():
                grids = torch.as_tensor(codes, dtype=torch.long, device=self.vq_model.device)
                return self.image_processor.postprocess(self.vq_model.decode_video(grids))
        return [self.reconstruct(frame) for frame in codes]

    def decode_video_codes(
        self,
        ids: Any,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        visual: bool = False,
    ) -> np.ndarray:
        """The ids of one video → its codes, int32 (T, h, w); see [`decode_video`]."""
        ids = integers(ids, "ids").reshape(-1)
        layout, bpe = self._layout, self.tokenizer.image_bpe
        if not visual:
            ids = ids[(ids >= layout.first_code_id) & (ids < layout.size)] - layout.first_code_id
        self._check_visual_ids(ids)
        if height is None or width is None:
            if not num_frames:
                raise ValueError("give num_frames, or the height and width of a frame in cells")
            cells = int(bpe.token_sizes()[ids].sum())
            height, width = self._common_grid_size(cells // num_frames)
        frames: list[np.ndarray] = []
        start = 0
        while start < len(ids):
            state, stop = GridState(bpe, height, width), start
            while stop < len(ids) and not state.finished:
                try:
                    state.append(int(ids[stop]))
                except ValueError as error:
                    raise ValueError(f"frame {len(frames)}: {error}") from None
                stop += 1
            frames.append(ids[start:stop])
            start = stop
        if num_frames is not None and len(frames) != num_frames:
            raise ValueError(f"ids must be of {num_frames} frames, got {len(frames)}")
        return decode_frames(bpe, frames, height, width)

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """What `generate` returned → texts, images, both, or videos.

        Args:
            generated_outputs: ids (batch, length) or (length,), a list of such rows, or what `generate` returned with
                `return_dict_in_generate=True`.
            skip_special_tokens: leave special tokens out of texts.
            generation_mode: `"text"` (default) gives a text for each row; `"image"` the last image of each
                row; `"interleaved"` a list of `{"type": "text", "text": …}` and
                `{"type": "image", "image": …}` for each row; `"video"` the frames of the last video of each row.
            height, width: the size of the images' grids, in cells; by default as for [`decode_image`].
            num_frames: of the videos, see [`decode_video`].

        Raises:
            ValueError: another mode; a row without an image in mode `"image"`; ids that are no image.
        """
        generated_outputs = getattr(generated_outputs, "sequences", generated_outputs)
        if generation_mode in (None, "text"):
            return self.post_process_image_text_to_text(
                generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
            )
        if generation_mode not in ("image", "interleaved", "video"):
            raise ValueError(
                "generation_mode must be 'text', 'image', 'interleaved' or 'video', got "
                f"{generation_mode!r}"
            )
        if getattr(generated_outputs, "ndim", 2) == 1:
            generated_outputs = [generated_outputs]
        kwargs["skip_special_tokens"] = skip_special_tokens
        results: list[Any] = []
        for index, row in enumerate(generated_outputs):
            where = f"row {index} of generated_outputs"
            if generation_mode == "video":
                self._require_videos()
                if (ids := self._last_video(row)) is None:
                    raise ValueError(f"{where} has no video")
                results.append(self.decode_video(ids, num_frames, height, width))
            elif generation_mode == "image":
                images = [ids for is_image, ids in self._split_images(row) if is_image]
                if not images:
                    raise ValueError(f"{where} has no image")
                results.append(self.decode_image(images[-1], height, width))
            else:
                segments: list[dict[str, Any]] = []
                for is_image, ids in self._split_images(row):
                    if is_image:
                        image = self.decode_image(ids, height, width)
                        segments.append({"type": "image", "image": image})
                    elif text := self.tokenizer.decode(ids, **kwargs):
                        segments.append({"type": "text", "text": text})
                results.append(segments)
        return results

    def _split_images(self, row: Any) -> list[tuple[bool, np.ndarray]]:
        """Runs of image tokens and runs of other tokens, in order."""
        ids = integers(row, "generated_outputs")
        is_image = (ids >= self._layout.first_code_id) & (ids < self._layout.size)
        bounds = np.flatnonzero(np.diff(is_image)) + 1
        return [
            (bool(flags[0]), part)
            for flags, part in zip(np.split(is_image, bounds), np.split(ids, bounds), strict=True)
            if len(part)
        ]

    def _last_video(self, row: Any) -> np.ndarray | None:
        """The ids between the last begin of a video and its end; None where there is none."""
        ids = integers(row, "generated_outputs")
        begins = np.flatnonzero(ids == self.bov_token_id)
        if not len(begins):
            return None
        ends = np.flatnonzero(ids[begins[-1] :] == self.eov_token_id)
        return ids[begins[-1] + 1 :][: ends[0] - 1 if len(ends) else None]
