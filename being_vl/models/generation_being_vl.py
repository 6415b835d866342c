"""logits → legal token ids: generation of text, of images, and of both in turn.

Source: transformers' GenerationMixin, which does the decoding; the mask of point 8 of the law of the image
BPE. Differs from other image-generating models in that the number of tokens of an image is not fixed: it is
closed when its last cell is covered, so every generated image decodes.
"""

import copy
import os
import warnings
from typing import Any, Literal, get_args

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.utils import cached_file

from ..bpe.grid_tracking import OpenImageTracker
from ..bpe.image_bpe import ImageBPE
from ..bpe.vocabulary_file import FILE_NAME
from ..hub.part import hub_options
from .legal_logits import ImageGridLogitsProcessor, TextOnlyLogitsProcessor, image_token_bound
from .stopping import StopOutsideImages

GenerationTarget = Literal["text", "image", "interleaved", "video"]

_DEFAULT_NEW_TOKENS = 20  # the default length of `generate`, which no configuration holds


class BeingVLGenerationMixin:
    """`generate` with a mode, for a model with a `config` of [`BeingVLConfig`]."""

    output_modalities = ("text", "image", "video")
    _image_bpe: Any = None  # ImageBPE, once it is known
    _hub_options: dict[str, Any] = {}  # noqa: RUF012

    @property
    def image_bpe(self) -> ImageBPE:
        """The merge rules, from `image_bpe.json` of the checkpoint unless they were set.

        Raises:
            OSError: the checkpoint that the model was loaded from has no such file.
            ValueError: the model was not loaded from a checkpoint, or the rules are not of the model's sizes.
        """
        if self._image_bpe is None:
            if self._source is None:
                raise ValueError("the model has no image BPE yet: set model.image_bpe")
            self.image_bpe = self._saved_image_bpe(**self._hub_options)
        return self._image_bpe

    @image_bpe.setter
    def image_bpe(self, image_bpe: ImageBPE | None) -> None:
        if image_bpe is not None:
            sizes = (image_bpe.codebook_size, image_bpe.num_merges)
            expected = (self.config.codebook_size, self.config.num_merges)
            if sizes != expected:
                raise ValueError(
                    f"the image BPE has {sizes[0]} codes and {sizes[1]} merges, the model {expected[0]} "
                    f"and {expected[1]}"
                )
        self._image_bpe = image_bpe

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As of every model; the merge rules of the checkpoint come along, so that saving has them again."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        if model._source is not None:
            model._hub_options = hub_options(kwargs)
            try:
                model.image_bpe = model._saved_image_bpe(
                    _raise_exceptions_for_missing_entries=False, **model._hub_options
                )
            except (OSError, ValueError) as error:  # text needs none
                warnings.warn(
                    f"{pretrained_model_name_or_path}: {FILE_NAME} is not loaded with the model, nor "
                    f"saved with it: {error}",
                    stacklevel=2,
                )
        return loaded

    def _saved_image_bpe(self, **options: Any) -> ImageBPE | None:
        """The merge rules that lie beside the weights, from the commit that these came from."""
        name, revision, subfolder = self._source
        options |= {"revision": revision, "subfolder": subfolder}
        path = cached_file(name, FILE_NAME, **options)
        if path is None:
            return None
        image_bpe = ImageBPE.from_pretrained(path)
        image_bpe._source = self._source
        return image_bpe

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Llama's, with `image_bpe.json` beside the weights where the model knows its merge rules."""
        if self._image_bpe is not None and is_main_process:
            self._image_bpe.save_pretrained(save_directory)
        kwargs |= {"is_main_process": is_main_process, "state_dict": state_dict}
        return super().save_pretrained(save_directory, **kwargs)

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *args: Any,
        generation_mode: GenerationTarget | None = None,
        image_grid_size: tuple[int, int] | None = None,
        num_frames: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' generate, told what to generate.

        Args:
            generation_mode: `"text"` (the default) never emits a token of an image. `"image"` emits one
                image: boi unless the prompt ends in it, tokens that cover the grid, eoi; its length follows from
                the grid, not from `max_new_tokens` and `eos_token_id`. `"interleaved"` emits text and images, and
                begins an image only where `max_new_tokens` leaves room to finish it. `"video"` emits one video of
                `num_frames` frames; tokens that repeat the frame before come in no image and no first or key
                frame (`config.key_frame_interval`). An image or video that a prompt ends in is continued.
            num_frames: of the video, those in the prompt included.
            image_grid_size: (height, width) of the images in cells; by default
                `config.image_grid_size`.
            guidance_scale: in images, classifier-free guidance; without `negative_prompt_ids` the
                unconditional sequence is bos, and the image or video as far as the prompt has it.

        Returns:
            As transformers' generate: ids (batch, length), the prompt's included, or a ModelOutput.

        Raises:
            ValueError: an unknown mode, no grid size, an id that is unknown, `num_frames` missing or out of place,
                a prompt that ends in an image which does not fit the grid, or guidance together with beam search.
        """
        if generation_mode is not None and generation_mode not in get_args(GenerationTarget):
            raise ValueError(
                f"generation_mode must be one of {get_args(GenerationTarget)}, got {generation_mode!r}"
            )
        if generation_mode in (None, "text"):
            return super().generate(
                inputs, generation_config, logits_processor, stopping_criteria, *args, **kwargs
            )

        settings = _Settings(generation_config, self.generation_config, kwargs)
        tracker = self._tracker(image_grid_size)
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        if prompt is not None:
            _check_prompt(tracker, prompt)
        if (num_frames is None) == (generation_mode == "video"):
            raise ValueError(
                f'generation_mode "video", and it alone, needs num_frames, got {num_frames}'
            )
        if generation_mode in ("image", "video"):
            tokens, end = image_token_bound(*tracker.grid_size), self.config.eoi_token_id
            if num_frames is not None:
                self._require_ids("videos", "bov_token_id", "eov_token_id")
                if num_frames < 1:
                    raise ValueError(f"num_frames must be at least 1, got {num_frames}")
                tokens, end = num_frames * tokens + 2, self.config.eov_token_id
            settings.set("max_new_tokens", tokens)
            settings.kwargs.pop("max_length", None)
            settings.set("eos_token_id", end)
            budget = None
        else:
            budget = settings.max_new_tokens(prompt, kwargs.get("inputs_embeds"))
        self._prepare_guidance(settings, tracker, prompt, kwargs)
        if self.config.image_positions is not None:
            settings.kwargs["image_grid_size"] = tracker.grid_size
        processors = LogitsProcessorList(logits_processor or [])
        processors.append(
            ImageGridLogitsProcessor(
                tracker,
                self.config,
                prompt_length=0 if prompt is None else prompt.shape[1],
                max_new_tokens=budget,
                num_frames=num_frames,
            )
        )
        criteria = StoppingCriteriaList(stopping_criteria or [])
        criteria.append(StopOutsideImages(self.config))
        return super().generate(
            inputs, settings.config, processors, criteria, *args, **settings.kwargs
        )

    def _get_logits_processor(
        self, *args: Any, logits_processor: LogitsProcessorList | None = None, **kwargs: Any
    ) -> LogitsProcessorList:
        """Transformers'; what generates no image, `generate_batch` too, masks the tokens of images."""
        processors = LogitsProcessorList(logits_processor or [])
        # An assistant model is handed the main model's processors, and follows its mode.
        if not any(isinstance(p, ImageGridLogitsProcessor) for p in processors):
            processors.append(TextOnlyLogitsProcessor(self.config))
        return super()._get_logits_processor(*args, logits_processor=processors, **kwargs)

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> StoppingCriteriaList:
        """Transformers'; `max_time` and `stop_strings` wait for the end of an image."""
        criteria = super()._get_stopping_criteria(*args, **kwargs)
        outside = next((one for one in criteria if isinstance(one, StopOutsideImages)), None)
        if outside is None:
            return criteria
        kept = StoppingCriteriaList()
        for one in criteria:
            waits = isinstance(one, (MaxTimeCriteria, StopStringCriteria))
            (outside.criteria if waits else kept).append(one)
        return kept

    def _require_ids(self, what: str, *names: str) -> None:
        for name in names:
            if getattr(self.config, name) is None:
                raise ValueError(f"config.{name} must be set to generate {what}, got None")

    def _tracker(self, image_grid_size: tuple[int, int] | None) -> OpenImageTracker:
        config = self.config
        size = image_grid_size if image_grid_size is not None else config.image_grid_size
        if size is None:
            raise ValueError(
                "image_grid_size=(height, width) must be given, or set in the model's configuration"
            )
        self._require_ids("images", "boi_token_id", "eoi_token_id")
        return OpenImageTracker(
            config.layout, self.image_bpe, tuple(size), config.boi_token_id, config.eoi_token_id,
            bov_token_id=config.bov_token_id, eov_token_id=config.eov_token_id,
            key_frame_interval=config.key_frame_interval,
        )  # fmt: skip

    def _prepare_guidance(
        self,
        settings: "_Settings",
        tracker: OpenImageTracker,
        prompt: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> None:
        """Give transformers' guidance its unconditional sequences, one for each generated one."""
        if settings.get("guidance_scale") in (None, 1):
            return
        if (settings.get("num_beams") or 1) > 1:
            raise ValueError(
                "guidance_scale works with greedy search and sampling, got num_beams > 1"
            )
        if self.config.image_positions is not None:
            raise ValueError("guidance_scale does not work with image_positions='grid'")
        negative = kwargs.get("negative_prompt_ids")
        if negative is None:
            negative = self._unconditional_ids(settings, tracker, prompt, kwargs)
        copies = settings.get("num_return_sequences") or 1
        settings.kwargs["negative_prompt_ids"] = negative.repeat_interleave(copies, dim=0)
        mask = kwargs.get("negative_prompt_attention_mask")
        if mask is not None:
            settings.kwargs["negative_prompt_attention_mask"] = mask.repeat_interleave(
                copies, dim=0
            )

    def _unconditional_ids(
        self,
        settings: "_Settings",
        tracker: OpenImageTracker,
        prompt: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        bos_token_id = settings.get("bos_token_id")
        if bos_token_id is None:
            raise ValueError(
                "guidance_scale needs negative_prompt_ids, as the model has no bos token"
            )
        given = prompt if prompt is not None else kwargs["inputs_embeds"]
        bos = torch.full((given.shape[0], 1), bos_token_id, dtype=torch.long, device=given.device)
        if prompt is None:
            return bos
        starts = set()
        for ids in prompt.cpu().numpy():
            video = tracker.video_at(ids)
            starts.add(tracker.open_at(ids) if video is None else video)
        if len(starts) > 1:
            raise ValueError(
                "guidance_scale needs negative_prompt_ids where the prompts' images are unequally far"
            )
        start = starts.pop()
        return bos if start is None else torch.cat([bos, prompt[:, start - 1 :]], dim=1)


class _Settings:
    """Generation settings where transformers looks for them: arguments, else a config, else the model's."""

    def __init__(
        self,
        config: GenerationConfig | None,
        defaults: GenerationConfig,
        kwargs: dict[str, Any],
    ):
        self.config = copy.deepcopy(config)
        self.kwargs = dict(kwargs)
        self._defaults = defaults

    def get(self, name: str) -> Any:
        for value in (self.kwargs.get(name), getattr(self.config, name, None)):
            if value is not None:
                return value
        return getattr(self._defaults, name, None)

    def set(self, name: str, value: Any) -> None:
        if self.config is None:
            self.kwargs[name] = value
        else:
            self.kwargs.pop(name, None)
            setattr(self.config, name, value)

    def max_new_tokens(self, prompt: torch.Tensor | None, embeds: torch.Tensor | None) -> int:
        """How many tokens transformers will generate at most."""
        max_new_tokens, max_length = self.get("max_new_tokens"), self.get("max_length")
        if max_new_tokens is not None:
            return max_new_tokens
        if max_length is None:
            return _DEFAULT_NEW_TOKENS
        given = embeds if embeds is not None else prompt
        return max_length - (0 if given is None else given.shape[1])


def _check_prompt(tracker: OpenImageTracker, prompt: torch.Tensor) -> None:
    for row, state in enumerate(tracker.states(prompt.cpu().numpy())):
        if isinstance(state, ValueError):
            height, width = tracker.grid_size
            raise ValueError(
                f"the image that prompt {row} ends in does not fit a grid of {height}x{width} cells: {state}"
            )
