"""options → what a stage trains, on which data, with which labels; no import of transformers.

Like the argument dataclasses of transformers' example scripts: `HfArgumentParser` reads them, and so does
`being-vl train`, which also refuses unknown keys of a YAML file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ModelArguments:
    """The checkpoint to train, and how it is adapted.

    Args:
        checkpoint: a checkpoint: folder or Hub id.
        dtype: of the loaded weights, which the optimizer steps on; auto is that of the checkpoint. bfloat16
            weights lose the small steps of a low learning rate: train in bfloat16 by `bf16`, which keeps
            these weights. DeepSpeed keeps float32 weights of its own.
        attn_implementation: sdpa, eager, flash_attention_2 or flex_attention; None is transformers' choice.
        use_peft: train LoRA adapters on the linear layers of the decoder instead of the layers themselves;
            the rows of the image tokens train as the stage says.
        lora_r: rank of the adapters.
        lora_alpha: their scale, times `lora_r`.
        lora_dropout: share of their inputs that is dropped.
        lora_target_modules: names of the adapted layers; None is all linear layers of the decoder.
    """

    checkpoint: str = field(metadata={"help": "checkpoint: folder or Hub id"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "of the weights in training"}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2 or flex_attention"}
    )
    use_peft: bool = field(default=False, metadata={"help": "train LoRA adapters"})
    lora_r: int = field(default=16, metadata={"help": "rank of the adapters"})
    lora_alpha: int = field(default=32, metadata={"help": "scale of the adapters, times lora_r"})
    lora_dropout: float = field(default=0.0, metadata={"help": "share of their inputs dropped"})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "adapted layers; default: all linear ones of the decoder"}
    )


@dataclass
class DataArguments:
    """The rows, and how they are put into batches.

    Args:
        data: a folder that `being-vl tokenize` wrote, or a mixture of such folders.
        eval_data: the same, for the loss on held-out rows.
        mixture_stage: which stage of a mixture that has several.
        packing: none (a row a sample, padded), samples (several samples a row, none sees another) or
            shared_image (the questions about one image in one row, the image once).
        max_length: tokens of a row; longer samples are an error, or are dropped. With packing it is the
            capacity of a row. None: the model's `max_position_embeddings`.
        drop_long: drop samples longer than `max_length` instead of raising.
        accept_mismatch: chat_template, quantizer: parts of the data that may differ from the checkpoint's.
        verify_data: compare the digest of every shard before training, which reads all of them.
    """

    data: str = field(metadata={"help": "folder of being-vl tokenize, or a mixture"})
    eval_data: str | None = field(default=None, metadata={"help": "the same, held out"})
    mixture_stage: str | None = field(
        default=None, metadata={"help": "which stage of a mixture that has several"}
    )
    packing: Literal["none", "samples", "shared_image"] = field(
        default="none", metadata={"help": "how samples share rows"}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "tokens of a row; default: the model's longest"}
    )
    drop_long: bool = field(
        default=False, metadata={"help": "drop longer samples instead of raising"}
    )
    accept_mismatch: list[str] | None = field(
        default=None, metadata={"help": "chat_template, quantizer: may differ from the data's"}
    )
    verify_data: bool = field(
        default=False, metadata={"help": "compare the digest of every shard first"}
    )

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be positive, got {self.max_length}")
        for name in self.accept_mismatch or ():
            if name not in ("chat_template", "quantizer"):
                raise ValueError(
                    f"accept_mismatch must be chat_template or quantizer, got {name!r}"
                )


@dataclass
class StageArguments:
    """What moves, and what is predicted. Source of the stages: see `stages`.

    Args:
        stage: pretrain (the paper's PT), selective (the follow-up's middle stage) or sft.
        train_embeddings: in pretrain and selective, image (only the rows of new tokens move) or all.
        train_layers: in selective, the decoder layers that move, from 0; None is the first quarter.
        freeze: in sft, none, or image (the rows of codes and merges stay).
        labels: assistant (what the assistant says), text (all text tokens) or all.
        code_weight: weight of the loss of labels that are codes.
        merge_weight: weight of the loss of labels that are merges.
    """

    stage: Literal["pretrain", "selective", "sft"] = field(
        default="sft", metadata={"help": "what is trained"}
    )
    train_embeddings: Literal["image", "all"] = field(
        default="image", metadata={"help": "pretrain, selective: rows that move"}
    )
    train_layers: list[int] | None = field(
        default=None, metadata={"help": "selective: layers that move; default: the first quarter"}
    )
    freeze: Literal["none", "image"] = field(
        default="none", metadata={"help": "sft: rows that stay"}
    )
    labels: Literal["assistant", "text", "all"] = field(
        default="assistant", metadata={"help": "tokens that are predicted"}
    )
    code_weight: float = field(default=1.0, metadata={"help": "weight of a code's loss"})
    merge_weight: float = field(default=1.0, metadata={"help": "weight of a merge's loss"})

    def __post_init__(self) -> None:
        for name in ("code_weight", "merge_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
