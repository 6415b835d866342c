"""The sizes of a Being-VL language model: its text model's fields and the layout of its vocabulary.

Source: transformers' configurations, which these extend, so every field of a text model means what it means
there. They differ by fields that say where text ends and images begin, and by optional grid positions.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from ..hub.part import CheckpointPart
from ..vocabulary import VocabularyLayout
from .families import MODEL_TYPES

SPECIAL_IDS = (
    "boi_token_id",
    "eoi_token_id",
    "image_token_id",
    "bov_token_id",
    "eov_token_id",
    "video_token_id",
)
_SIZES = ("vocab_size", "text_vocab_size", "num_special_tokens", "codebook_size", "num_merges")


@dataclass(kw_only=True)
class ImageVocabularyConfig(CheckpointPart):
    """The fields that every Being-VL language model has beside those of its text model.

    Args:
        vocab_size: rows of the embeddings; by default the size of the layout. A larger value is padding (rows that no
            token has), a smaller one an error.
        text_vocab_size: T, the size of the base tokenizer, its own special tokens included.
        num_special_tokens: S, the special tokens added for images.
        codebook_size: K, the codes of the VQ-GAN; one more where the image BPE has a repeat code.
        num_merges: M, the rules of the image BPE.
        boi_token_id, eoi_token_id: the tokens that open and close an image, in [0, T + S).
        image_token_id: the placeholder of an image in chat text, in [0, T + S); never generated.
        bov_token_id, eov_token_id, video_token_id: the same for videos, where the vocabulary knows them.
        key_frame_interval: one in so many frames of the videos that the model generates holds no repeat code; the
            first alone by default.
        image_grid_size: (height, width), the cells of generated images, unless `generate` is told otherwise.
        image_positions: `"grid"` adds learned row and column vectors to the embeddings of image tokens.
            Such a checkpoint has two more tensors than its text model and **no stock class can run it**.
        max_grid_size: rows, and columns, that `image_positions="grid"` has vectors for.

    Raises:
        ValueError: a size is negative, `vocab_size` is too small, an id lies outside its range, or
            `image_grid_size` is not two positive numbers.
    """

    vocab_size: int | None = None
    text_vocab_size: int = 32000
    num_special_tokens: int = 4
    codebook_size: int = 8192
    num_merges: int = 8192
    boi_token_id: int | None = None
    eoi_token_id: int | None = None
    image_token_id: int | None = None
    bov_token_id: int | None = None
    eov_token_id: int | None = None
    video_token_id: int | None = None
    key_frame_interval: int | None = None
    image_grid_size: list[int] | tuple[int, int] | None = None
    image_positions: Literal["grid"] | None = None
    max_grid_size: int = 64

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vocab_size is None:
            self.vocab_size = self.layout.size
        super().__post_init__(**kwargs)  # type: ignore[misc]
        # Here too, so that bad sizes are a ValueError: @strict wraps what its validators raise.
        self.validate_layout()
        self.validate_image_grid()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """transformers', but a size given to override one is checked, and `vocab_size` follows it.

        Raises:
            ValueError: the configuration is of another kind of model, of which transformers would make a new one.
        """
        own = cls.model_type  # type: ignore[attr-defined]
        found = config_dict.get("model_type", own)
        if found != own:
            advice = (
                "AutoModelForCausalLM and AutoConfig know its class"
                if found in MODEL_TYPES
                else "`being-vl init` makes a Being-VL checkpoint of a text model"
            )
            raise ValueError(
                f"config.json: model_type must be {own!r} to load as {cls.__name__}, got {found!r}; {advice}"
            )
        given = {name: kwargs.pop(name) for name in _SIZES if name in kwargs}
        if given:
            config_dict = {**config_dict, "vocab_size": None, **given}
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    @cached_property
    def auto_map(self) -> dict[str, Any]:
        """The code in the checkpoint, by Auto class; TRL reads it for each class that is not transformers' own."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """The fields; `auto_map` only where there is code."""
        fields = super().to_dict()  # type: ignore[misc]
        return {k: value for k, value in fields.items() if k != "auto_map" or value}

    @property
    def layout(self) -> VocabularyLayout:
        """Where text, special tokens, codes and merges lie in the vocabulary."""
        return VocabularyLayout(
            self.text_vocab_size, self.num_special_tokens, self.codebook_size, self.num_merges
        )

    @layout.setter
    def layout(self, layout: VocabularyLayout) -> None:
        self.text_vocab_size = layout.text_size
        self.num_special_tokens = layout.num_special_tokens
        self.codebook_size = layout.codebook_size
        self.num_merges = layout.num_merges

    def validate_layout(self) -> None:
        """Part of the `@strict` validation: the vocabulary's sizes and ids agree."""
        layout, vocab_size = self.layout, self.vocab_size
        if vocab_size is None or vocab_size < layout.size:
            raise ValueError(
                f"vocab_size must be at least text_vocab_size + num_special_tokens + codebook_size + "
                f"num_merges = {layout.size}, got {self.vocab_size}"
            )
        for name in SPECIAL_IDS:
            token_id = getattr(self, name)
            if token_id is not None and not 0 <= token_id < layout.first_code_id:
                raise ValueError(
                    f"{name} must be a text or special token, in [0, {layout.first_code_id}), got {token_id}"
                )

    def validate_image_grid(self) -> None:
        """Part of the `@strict` validation: the grid sizes are positive and fit each other."""
        interval = self.key_frame_interval
        if interval is not None and interval < 1:
            raise ValueError(f"key_frame_interval must be at least 1, got {interval}")
        size = self.image_grid_size
        if size is not None and (len(size) != 2 or any(side < 1 for side in size)):
            raise ValueError(f"image_grid_size must be (height, width), both positive, got {size}")
        if self.image_positions == "grid":
            if self.max_grid_size < 1:
                raise ValueError(f"max_grid_size must be positive, got {self.max_grid_size}")
            if size is not None and max(size) > self.max_grid_size:
                most = self.max_grid_size
                raise ValueError(f"image_grid_size {tuple(size)} exceeds max_grid_size {most}")


@strict
class BeingVLConfig(ImageVocabularyConfig, LlamaConfig):
    """Fields of `LlamaConfig` and of [`ImageVocabularyConfig`]."""

    model_type = "being_vl"


@strict
class BeingVLQwen2Config(ImageVocabularyConfig, Qwen2Config):
    """Fields of `Qwen2Config` and of [`ImageVocabularyConfig`]."""

    model_type = "being_vl_qwen2"


@strict
class BeingVLQwen3Config(ImageVocabularyConfig, Qwen3Config):
    """Fields of `Qwen3Config` and of [`ImageVocabularyConfig`]."""

    model_type = "being_vl_qwen3"


@strict
class BeingVLMistralConfig(ImageVocabularyConfig, MistralConfig):
    """Fields of `MistralConfig` and of [`ImageVocabularyConfig`]."""

    model_type = "being_vl_mistral"


@strict
class BeingVLGemma3Config(ImageVocabularyConfig, Gemma3TextConfig):
    """Fields of `Gemma3TextConfig` and of [`ImageVocabularyConfig`]."""

    model_type = "being_vl_gemma3"


@strict
class BeingVLSmolLM3Config(ImageVocabularyConfig, SmolLM3Config):
    """Fields of `SmolLM3Config` and of [`ImageVocabularyConfig`]."""

    model_type = "being_vl_smollm3"

    text_vocab_size: int = 128256  # SmolLM 3's, which its default end token lies in


@strict
class BeingVLPhi3Config(ImageVocabularyConfig, Phi3Config):
    """Fields of `Phi3Config` and of [`ImageVocabularyConfig`]."""

    model_type = "being_vl_phi3"


@strict
class BeingVLOlmo2Config(ImageVocabularyConfig, Olmo2Config):
    """Fields of `Olmo2Config` and of [`ImageVocabularyConfig`]."""

    model_type = "being_vl_olmo2"

    text_vocab_size: int = 50304  # OLMo 2's, which its default end token lies in
