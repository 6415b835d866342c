"""options → what a stage trains: `TrainingArguments` with this library's defaults, beside `stage_arguments`."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments

from .logs import check_report_to
from .stage_arguments import DataArguments, ModelArguments, StageArguments, option

__all__ = ["BeingVLTrainingArguments", "DataArguments", "ModelArguments", "StageArguments"]


# What these would do elsewhere does not happen here: the value that they must have, and why.
_REFUSED: dict[str, tuple[bool | None, str]] = {
    "remove_unused_columns": (False, "the samples hold what no forward takes"),
    "resume_from_checkpoint": (None, "a run goes on from its newest whole checkpoint"),
    "push_to_hub": (False, "being-vl push uploads a finished checkpoint"),
    "logging_nan_inf_filter": (False, "it counts a loss of NaN as 0; here training stops"),
    "do_train": (True, "this command trains; being-vl eval evaluates"),
    "do_predict": (False, "being-vl eval answers questions"),
    "auto_find_batch_size": (False, "a run that goes on must have the batches that it began with"),
    "use_liger_kernel": (False, "its fused loss computes no logits, which the loss by kind needs"),
    "label_names": (None, "the labels are the collator's"),
}


@dataclass
class BeingVLTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with the defaults of both stages of the paper (Table B.3).

    These are: a cosine schedule, 0.03 of the steps as warm-up, no weight decay, AdamW. What differs between
    the stages (learning rate, accumulation, epochs) stands in the recipes under hub_configs/training.
    `remove_unused_columns` is False, because samples are made from columns that no forward takes.
    """

    lr_scheduler_type: str = option("schedule of the rate", "cosine")
    warmup_steps: float = option("steps of warm-up; below 1, their share of all steps", 0.03)
    logging_steps: float = option("steps between two logs", 10)
    prediction_loss_only: bool = option(
        "keep no logits, which a large vocabulary fills memory with", True
    )
    save_total_limit: int | None = option("checkpoints kept", 2)
    remove_unused_columns: bool = option("must be False", False)
    logging_nan_inf_filter: bool = option("must be False: NaN is no loss of 0", False)
    do_train: bool = option("must be True", True)

    @property
    def order_seed(self) -> int:
        """What decides the order of the data."""
        return self.seed if self.data_seed is None else self.data_seed

    def __post_init__(self) -> None:
        super().__post_init__()
        check_report_to(self)
        for name, (allowed, reason) in _REFUSED.items():
            value = getattr(self, name)
            if value != allowed:
                shown = {None: "left out", False: "false", True: "true"}[allowed]
                raise ValueError(f"{name} must be {shown}: {reason}")
