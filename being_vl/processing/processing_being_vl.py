"""pixels and text → ids: what surrounds the language model; `decoding.py` is the way back.

Source: transformers' `ProcessorMixin`, whose conventions it keeps. It differs from its peers (Chameleon,
Emu3) in that an image takes as many tokens as its content needs, so images are quantized and encoded
here, before the text is tokenized, and the model sees nothing but `input_ids`. The VQ model lies in the
checkpoint's subfolder `vq_model/` and is loaded when the first image comes.
"""

# No `from __future__ import annotations`: transformers reads BeingVLProcessorKwargs' annotations as classes.
import copy
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData, ProcessingKwargs, TextKwargs
from transformers.utils import cached_file

from ..hub.part import VQ_FOLDER, CheckpointPart, Origin, absolute_folder, hub_options, pinned
from ..quantizers.quantizing import LazyVQ, quantize
from ..quantizers.video_processing_being_vl import BeingVLVideosKwargs
from ..vocabulary import VocabularyLayout
from .chat_messages import template_source
from .control_tokens import render_chat
from .decoding import DecodingMixin
from .grid_inputs import flatten, integers, is_nested, nested_codes
from .tokenization_being_vl import visual_token
from .videos import Clips, VideoMixin


class BeingVLTextKwargs(TextKwargs, total=False):
    """Options beyond those of every processor: with `split_special_tokens`, text that spells one stays text."""

    split_special_tokens: bool | None


class BeingVLProcessorKwargs(ProcessingKwargs, total=False):
    text_kwargs: BeingVLTextKwargs
    videos_kwargs: BeingVLVideosKwargs
    _defaults = {}  # noqa: RUF012 (transformers before 5.23 reads it of the class itself)


class _Grids(list):
    """Grids of codes, nested as they were given, on their way to `_process_images` in the place of images."""


class _WithImages(list):
    """Texts in which images stand, on their way to `_check_special_mm_tokens`."""


def _as_arrays(inputs: dict[str, Any]) -> dict[str, Any]:
    """Columns of ids whose rows have one length as arrays; the rest is left to transformers and its errors."""
    columns = dict(inputs)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        rows = columns.get(name)
        if isinstance(rows, list) and len({*map(len, rows)}) == 1:
            columns[name] = np.asarray(rows, dtype=np.int64)
    return columns


def _has_vq_model(where: str, options: dict[str, Any]) -> bool:
    """Whether a checkpoint has one; yes where that cannot be known, since an error is said on first use."""
    missing_is_none = {"_raise_exceptions_for_missing_entries": False, **hub_options(options)}
    try:
        return cached_file(where, "config.json", **missing_is_none) is not None
    except OSError:
        return True


@torch.inference_mode()
def reconstruct(codes: Any, model: Any, image_processor: Any) -> Image.Image:
    """Codes (h, w), integers → pixels, by a quantizer → the image."""
    grid = torch.as_tensor(codes, dtype=torch.long, device=model.device)
    return image_processor.postprocess(model.decode(grid[None]))[0]


class BeingVLProcessor(DecodingMixin, VideoMixin, CheckpointPart, ProcessorMixin):
    """Image processor, VQ model, image BPE and tokenizer behind one call.

    Each `<image>` of a text becomes `boi_token`, the image's tokens, `eoi_token`. Images come as `images`
    (anything that transformers accepts), which the VQ model quantizes, or as `image_codes`, grids of codes
    computed before, for which no VQ model is needed or loaded. `videos` and `video_codes` likewise stand for
    each `<video>`, where the vocabulary has that token; see `videos.py`.

    Args:
        image_processor: image → pixel values.
        tokenizer: a `BeingVLTokenizer`.
        chat_template: Jinja source; the tokenizer's by default.
        vq_model: any model with `encode`, `decode`, a config and `save_pretrained`. `from_pretrained` finds
            it in `vq_model/` and loads it on first use.
        vq_device: where the VQ model runs; the CPU, or where the given model already is, by default.
        video_processor: video → pixel values; by default as the image processor does, all frames.
    """

    valid_processor_kwargs: Any = BeingVLProcessorKwargs

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template=None,
        vq_model=None,
        vq_device=None,
        video_processor=None,
    ):
        if not hasattr(tokenizer, "image_bpe"):
            raise ValueError(
                f"tokenizer_config.json of {tokenizer.name_or_path or 'the tokenizer'}: tokenizer_class must be "
                f"BeingVLTokenizer, got {type(tokenizer).__name__}, which knows no image BPE"
            )
        self.image_token = tokenizer.image_token
        self.image_token_id = tokenizer.image_token_id
        self.boi_token = tokenizer.boi_token
        self.boi_token_id = tokenizer.boi_token_id
        self.eoi_token = tokenizer.eoi_token
        self.eoi_token_id = tokenizer.eoi_token_id
        self._vq = LazyVQ(vq_model, vq_device)
        self._init_videos(image_processor, tokenizer, video_processor)
        super().__init__(
            image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template
        )

    # ---- the VQ model

    @property
    def vq_model(self) -> Any:
        """The VQ model, loaded on first use; a ValueError says that there is none."""
        return self._vq.model

    @property
    def has_vq_model(self) -> bool:
        """Whether there is a VQ model, loaded or not."""
        return self._vq.available

    @property
    def vq_device(self) -> torch.device:
        """Where the VQ model runs. Assign to move it, or to choose before it is loaded."""
        return self._vq.device

    @vq_device.setter
    def vq_device(self, device: str | torch.device) -> None:
        self._vq.to(device)

    def quantize(self, images: Any, **images_kwargs: Any) -> list[np.ndarray]:
        """Pixels → codes: one int32 array (h, w) in [0, K) for each image, in order.

        Args:
            images: one image, a list or nested lists, as [`BeingVLImageProcessor`] takes them.
            images_kwargs: options of the image processor.

        Raises:
            ValueError: there is no VQ model.
            UnreadableImageError, NotFiniteError: as of `quantizing.quantize`.
        """
        return quantize(images, self.vq_model, self.image_processor, **images_kwargs)

    def image_ids(self, images: Any) -> list[list[int]]:
        """Pixels → the token ids that stand for each image in `input_ids`: `boi_token_id`, its tokens, `eoi_token_id`.

        Args:
            images: one image, a list or nested lists, as for `quantize`.

        Returns:
            one list for each image, in order: with a grid of codes (h, w) from 3 to h·w + 2 ids.

        Raises:
            ValueError: there is no VQ model, or it has codes that the image BPE does not know.
            UnreadableImageError, NotFiniteError: as of `quantizing.quantize`.
        """
        found = self.tokenizer.encode_codes(self.quantize(images))
        return [[self.boi_token_id, *ids.tolist(), self.eoi_token_id] for ids in found]

    def reconstruct(self, codes: Any) -> Image.Image:
        """Codes (h, w) → the image that the VQ model makes of them."""
        return reconstruct(integers(codes, "codes"), self.vq_model, self.image_processor)

    # ---- text and images → ids: transformers' call, and its hooks

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        *,
        image_codes: Any = None,
        video_codes: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenize texts and replace each `<image>` by its image, each `<video>` by its video.

        Args:
            images: one image, a list, or a list of lists (one list for each text).
            text: one text or a list. Without text the images, or videos, are only quantized.
            videos: one video or a (nested) list, as `flat_videos` has them.
            image_codes: grids of codes in place of `images`: one array (h, w), an array (n, h, w), or
                a (nested) list of grids of any sizes.
            video_codes: clips of codes in place of `videos`: one array (T, h, w), or a (nested) list of them.
            kwargs: what the tokenizer and the image and video processors take. `split_special_tokens=True` is for
                texts without images; a chat with images has `sanitize_control_tokens` for that.

        Returns:
            `input_ids` and `attention_mask`; without text `image_codes`, a list of int32 arrays (h, w), or
            `video_codes`, one of (T, h, w). With `return_metadata`, `video_metadata` too.

        Raises:
            ValueError: images and placeholders differ in number, truncation would cut an image, codes are
                out of range, or an image comes and there is no VQ model.
        """
        if images is not None and image_codes is not None:
            raise ValueError("pass images or image_codes, not both")
        if videos is not None and video_codes is not None:
            raise ValueError("pass videos or video_codes, not both")
        if text is None and (images is None) == (videos is None):
            raise ValueError("pass text, images or both; without text, images or videos alone")
        if text is not None:
            given = images if image_codes is None else _Grids(nested_codes(image_codes))
            clips = videos if video_codes is None else Clips(nested_codes(video_codes, 3))
            # Tensors are made here, from arrays: transformers' tokenizers walk over every id twice for that.
            return_tensors = kwargs.pop("return_tensors", None)
            inputs = super().__call__(images=given, text=text, videos=clips, **kwargs)
            if return_tensors is None:
                return inputs
            return BatchFeature(
                _as_arrays(inputs),
                tensor_type=return_tensors,
                skip_tensor_conversion=self.skip_tensor_conversion,
            )
        kinds: Any = BeingVLProcessorKwargs
        options = self._merge_kwargs(
            kinds, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        if videos is not None:
            videos_kwargs: Any = options["videos_kwargs"]
            return self._only_quantize_videos(videos, **videos_kwargs)
        images_kwargs: Any = options["images_kwargs"]
        return_tensors = images_kwargs.pop("return_tensors", None)
        codes = self.quantize(images, **images_kwargs)
        return BatchFeature({"image_codes": codes}, tensor_type=return_tensors)

    def prepare_inputs_layout(self, images: Any = None, **inputs: Any) -> tuple[Any, ...]:
        """As of every processor; grids pass, and a rendered chat keeps one BOS, whoever tokenizes it."""
        given = None if isinstance(images, _Grids) else images
        fetched, text, *others = super().prepare_inputs_layout(images=given, **inputs)
        adds = {**inputs, **(inputs.get("text_kwargs") or {})}.get("add_special_tokens", True)
        bos = self.tokenizer.bos_token
        if text is not None and bos and adds and self._adds_bos():
            text = [
                sample.removeprefix(bos) if isinstance(sample, str) else sample for sample in text
            ]
        return (images if given is None else fetched, text, *others)

    def _adds_bos(self) -> bool:
        return self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id]

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As of every processor; `sanitize_control_tokens=True` keeps as text what texts of the conversation spell.

        Raises:
            ValueError: the template would drop a part of the conversation; and as `__call__`, if it tokenizes.
        """
        apply = super().apply_chat_template
        resolve = partial(template_source, self.chat_template)
        return render_chat(self.tokenizer, resolve, apply, conversation, *args, **kwargs)

    def validate_inputs(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> None:
        """Refuse images and videos that are not those of the texts.

        Unlike the base class's it counts grids too, and compares lists for each text with their own text.
        """
        if audio is not None:
            raise ValueError("this processor takes text, images and videos, but no audio")
        if videos is not None:
            self._require_videos()
        if not all(isinstance(sample, str) for sample in text):
            raise ValueError("text must be a string or a list of strings")
        if isinstance(images, (list, tuple)) and len(images) == len(text) and is_nested(images):
            given: Any = [len(sample) for sample in images]
        else:
            given = 0 if images is None else len(flatten(images))
        found = self._check_counts("image", self.image_token, text, given)
        if self._has_videos:
            given = 0 if videos is None else self._count_videos(videos, len(text))
            found += self._check_counts("video", str(self.video_token), text, given)
        splits = {**kwargs, **kwargs.get("text_kwargs", {})}.get("split_special_tokens")
        if found and (splits or self.tokenizer.split_special_tokens):
            raise ValueError(
                "split_special_tokens=True splits the image placeholders too; for text that is not trusted "
                "use apply_chat_template(..., sanitize_control_tokens=True)"
            )

    def _check_counts(self, name: str, token: str, text: list[str], given: list[int] | int) -> int:
        """Compare the placeholders of each text with what is given, for each text or in all; returns their number."""
        counts = [sample.count(token) for sample in text]
        expected = given if isinstance(given, list) else counts if sum(counts) == given else [given]
        if counts != expected:
            things = "images or grids" if name == "image" else f"{name}s or clips"
            raise ValueError(  # begins as the base class's message does
                f"The number of {name} tokens in the prompts should be the same as the number of {name}s: text "
                f"has {counts} {token!r} placeholders (one number for each text), but the {things} given are "
                f"{expected}"
            )
        return sum(counts)

    def _process_images(self, images: Any, **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
        """Images or grids → nothing for the model, which sees ids alone, and a text for each of them."""
        kwargs.pop("return_tensors", None)
        grids = flatten(images)
        if grids and not isinstance(images, _Grids):
            grids = self.quantize(images, **kwargs)
        inputs = {"image_ids": self.tokenizer.encode_codes(grids)}
        return {}, [self.replace_image_token(inputs, index) for index in range(len(grids))]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """What stands for an image in the text: its tokens, by their texts, between begin and end."""
        visual_ids = image_inputs["image_ids"][image_idx] - self._layout.first_code_id
        tokens = map(visual_token, visual_ids.tolist())
        return f"{self.boi_token}{''.join(tokens)}{self.eoi_token}"

    def get_text_with_replacements(
        self, text: list[str], *replacements: list[str]
    ) -> tuple[list[str], list[Any]]:
        text, offsets = super().get_text_with_replacements(text, *replacements)
        return (_WithImages(text) if any(offsets) else text), offsets

    def _check_special_mm_tokens(self, text: Any, text_inputs: Any, modalities: list[str]) -> None:
        """Refuse truncation within an image: from either end, it would take the image's begin or end token."""
        if len(text_inputs["input_ids"]) != len(text):
            raise ValueError("return_overflowing_tokens would split images and is not supported")
        if not isinstance(text, _WithImages):
            return  # what spells an image token here is text
        try:
            marks = ["boi", "eoi", *(("bov", "eov") if self._has_videos else ())]
            super()._check_special_mm_tokens(text, text_inputs, marks)
        except ValueError as error:
            raise ValueError(
                f"truncation cuts an image; raise max_length or turn truncation off ({error})"
            ) from None

    @property
    def image_token_ids(self) -> list[int]:
        """The ids of all tokens of images, begin and end tokens included: 1 in `mm_token_type_ids`."""
        image = range(self._layout.first_code_id, self._layout.size)
        return [self.boi_token_id, self.eoi_token_id, *image]

    @property
    def _layout(self) -> VocabularyLayout:
        return self.tokenizer.layout

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes: the tokenizer's names, since pixels end here."""
        return list(self.tokenizer.model_input_names)

    def _get_num_multimodal_tokens(
        self,
        image_sizes: Sequence[Sequence[int]] | None = None,
        video_sizes: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> MultiModalData:
        """The most tokens that images of these (height, width), and videos of (frames, height, width), can take.

        Begin and end tokens count. The image BPE decides how many they take, by content, so this is an upper bound.
        """
        found = MultiModalData() if video_sizes is None else self._num_video_tokens(video_sizes)
        if image_sizes is not None:
            tokens = [math.prod(self.grid_size(height, width)) + 2 for height, width in image_sizes]
            found.num_image_tokens, found.num_image_patches = tokens, [1] * len(tokens)
        return found

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """The size (h, w) of the grid of codes of an image of height × width pixels."""
        blank = self.image_processor(Image.new("RGB", (width, height)))["pixel_values"][0]
        downsampling = self._vq.config.downsampling
        return blank.shape[-2] // downsampling, blank.shape[-1] // downsampling

    # ---- files

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        vq: bool = True,
        vq_device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> "BeingVLProcessor":
        """Load image processor, tokenizer and chat template now, and the VQ model when it is needed.

        Args:
            pretrained_model_name_or_path: folder or Hub id of a checkpoint.
            vq: False leaves the VQ model out for good: texts and `image_codes` only.
            vq_device: where the VQ model will run; the CPU by default.
            kwargs: as in `ProcessorMixin.from_pretrained`.
        """
        # The VQ model is loaded later: from the commit that everything else came from.
        kwargs |= pinned(pretrained_model_name_or_path, kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded  # return_unused_kwargs=True
        options = hub_options(kwargs, "trust_remote_code")
        options["subfolder"] = "/".join(filter(None, (kwargs.get("subfolder"), VQ_FOLDER)))
        where = absolute_folder(pretrained_model_name_or_path)
        has_one = vq and _has_vq_model(where, options)
        processor._vq = LazyVQ(device=vq_device, source=(where, options) if has_one else None)
        return loaded

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> list[str]:
        """Save the processor, and the VQ model in the subfolder `vq_model/` if there is one; returns the paths written.

        Raises:
            ValueError: the quantizer is an object of your own, which no checkpoint can hold.
        """
        if self.has_vq_model:
            self.vq_model.save_pretrained(os.path.join(save_directory, VQ_FOLDER))
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _checkpoint_source(self) -> Origin | None:
        return self.tokenizer._checkpoint_source()

    def to_dict(self) -> dict[str, Any]:
        """The configuration; the VQ model is no part of it."""
        light = copy.copy(self)
        light._vq = LazyVQ()
        return super(BeingVLProcessor, light).to_dict()
