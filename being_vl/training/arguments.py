"""options → what a stage trains: `TrainingArguments` with this library's defaults, beside `stage_arguments`."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .stage_arguments import DataArguments, ModelArguments, StageArguments

__all__ = ["BeingVLTrainingArguments", "DataArguments", "ModelArguments", "StageArguments"]


@dataclass
class BeingVLTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the defaults of both stages of the paper (Table B.3).

    These are: a cosine schedule, 0.03 of the steps as warm-up, no weight decay, AdamW. What differs between
    the stages (learning rate, accumulation, epochs) stands in the recipes under hub_configs/training.
    `remove_unused_columns` is False, because rows are made from columns that no forward takes.
    """

    lr_scheduler_type: str = field(default="cosine", metadata={"help": "schedule of the rate"})
    warmup_steps: float = field(
        default=0.03, metadata={"help": "steps of warm-up; below 1, their share of all steps"}
    )
    logging_steps: float = field(default=10, metadata={"help": "steps between two logs"})
    prediction_loss_only: bool = field(
        default=True,
        metadata={"help": "keep no logits, which a large vocabulary fills memory with"},
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "must be False"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns must be false: the rows hold what no forward takes"
            )
        if self.resume_from_checkpoint is not None:
            raise ValueError(
                "resume_from_checkpoint must be left out: a run goes on from the newest whole checkpoint of "
                "its output_dir"
            )
        if self.push_to_hub:
            raise ValueError(
                "push_to_hub must be false: being-vl push uploads a finished checkpoint"
            )
