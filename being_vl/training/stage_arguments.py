"""options → what a stage trains, on which data, with which labels; no import of transformers.

Like the argument dataclasses of transformers' example scripts: `HfArgumentParser` reads them, and so does
`being-vl train`, which also refuses unknown keys of a YAML file.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any, Literal


def option(help: str, default: Any = MISSING) -> Any:
    """A field with its help; required without a default."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """The checkpoint to train, and how it is adapted."""

    checkpoint: str = option("checkpoint: folder or Hub id")
    # bfloat16 weights lose the small steps of a low learning rate: train in bfloat16 by `bf16`, which keeps
    # these weights. DeepSpeed keeps float32 weights of its own.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "of the weights in training", "float32"
    )
    attn_implementation: str | None = option(
        "sdpa, eager, flash_attention_2 or flex_attention; default: transformers' choice", None
    )
    use_peft: bool = option("train LoRA adapters instead of the decoder's linear layers", False)
    lora_r: int = option("rank of the adapters", 16)
    lora_alpha: int = option("scale of the adapters, times lora_r", 32)
    lora_dropout: float = option("share of their inputs dropped", 0.0)
    lora_target_modules: list[str] | None = option(
        "adapted layers; default: all linear ones of the decoder", None
    )


@dataclass
class DataArguments:
    """The samples, and how they are put into batches."""

    data: str = option("folder of being-vl tokenize, or a mixture")
    eval_data: str | None = option("the same, held out", None)
    mixture_stage: str | None = option("which stage of a mixture that has several", None)
    # none: a sample a sequence, padded; samples: several, none sees another; shared_image: the questions
    # about one image in one sequence, the image once.
    packing: Literal["none", "samples", "shared_image"] = option(
        "how samples share sequences", "none"
    )
    max_length: int | None = option("tokens of a sequence; default: the model's longest", None)
    drop_long: bool = option("drop longer samples instead of raising", False)
    accept_mismatch: list[str] | None = option(
        "chat_template, quantizer: may differ from the data's", None
    )
    verify_data: bool = option("compare the digest of every shard first", False)
    streaming: bool = option("read shard after shard instead of mapping all", False)
    shuffle_buffer_size: int = option("streaming: samples in the buffer that shuffles", 10_000)

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be positive, got {self.max_length}")
        if self.shuffle_buffer_size < 1:
            raise ValueError(
                f"shuffle_buffer_size must be positive, got {self.shuffle_buffer_size}"
            )
        if self.streaming:
            self._check_streaming()
        for name in self.accept_mismatch or ():
            if name not in ("chat_template", "quantizer"):
                raise ValueError(
                    f"accept_mismatch must be chat_template or quantizer, got {name!r}"
                )

    def _check_streaming(self) -> None:
        if self.data.endswith((".yaml", ".yml")) or self.mixture_stage is not None:
            raise ValueError(
                f"streaming reads one folder, not a mixture, got {self.mixture_stage or self.data!r}: leave it out"
            )
        if self.packing == "shared_image":
            raise ValueError(
                "packing must be none or samples with streaming, got 'shared_image': the questions about an image "
                "may lie in several shards"
            )


@dataclass
class StageArguments:
    """What moves, and what is predicted; `stages` says where the stages come from."""

    stage: Literal["pretrain", "selective", "sft"] = option("what is trained", "sft")
    train_embeddings: Literal["image", "all"] = option(
        "pretrain, selective: rows that move", "image"
    )
    train_layers: list[int] | None = option(
        "selective: layers that move; default: the first quarter", None
    )
    freeze: Literal["none", "image"] = option("sft: rows that stay", "none")
    labels: Literal["assistant", "text", "all"] = option("tokens that are predicted", "assistant")
    code_weight: float = option("weight of a code's loss", 1.0)
    merge_weight: float = option("weight of a merge's loss", 1.0)

    def __post_init__(self) -> None:
        for name in ("code_weight", "merge_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
