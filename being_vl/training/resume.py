"""Exact resuming of a stopped training.

A plain `Trainer` silently continues with a new optimizer, a new schedule or other random numbers where their
file is missing; continues from the checkpoint of another run; may leave an incomplete checkpoint under its final
name; takes one more step when it resumes at its last; and, with several processes and a custom sampler, follows
the order of the first epoch for the rest of the epoch in which it resumes.

A checkpoint here records the identity of its run (settings, model, data), and only the same run may continue from
it: otherwise the result would be weights that neither run would have had.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import wait_for_everyone, writing
from .checkpoints import (
    clean_up,
    newest_whole_checkpoint,
    partial_folder,
    publish,
    read_manifest,
    rotate,
)
from .distributed import check_deepspeed_settings, check_fsdp_settings
from .identity import data_identity, identity_differences, model_identity, settings_of
from .streaming import StreamedSamples


class ExactResumeMixin(Trainer):
    """A `Trainer` whose checkpoints are whole or absent, and that goes on from them exactly.

    On one process and a CPU, a run that was killed anywhere and resumed ends with the weights, bit for
    bit, that it would have had undisturbed, provided that the collator and the data set draw no random
    numbers of their own. Several processes need a file system that all of them see.

    Raises:
        ValueError: one process drives several devices; several processes may have different numbers of batches; or
            DeepSpeed or FSDP are set to what `distributed` refuses.
    """

    # Which of the alternatives that `Trainer` allows these are, type checkers cannot tell.
    args: Any
    model: Any
    train_dataset: Any
    processing_class: Any
    _identity: dict[str, Any]
    _best: str | None = None  # name of the best checkpoint, until training goes on
    _partial: Path | None = None  # `Trainer`'s folder while it writes a checkpoint
    # Unlogged loss, step of the last log, all logged.
    _log_window: tuple[float, int, float] | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process must train on one device, got {self.args.n_gpu}: run under accelerate launch or "
                "torchrun, or set CUDA_VISIBLE_DEVICES"
            )
        uneven = not self.accelerator.even_batches and not self.args.dataloader_drop_last
        if uneven and self.args.world_size > 1:
            raise ValueError(
                "accelerator_config.even_batches must be true on several processes, or dataloader_drop_last: a process "
                "that has one batch more would wait for the others without end"
            )
        state = self.accelerator.state
        if self.is_deepspeed_enabled:
            check_deepspeed_settings(state.deepspeed_plugin.deepspeed_config)
        elif self.is_fsdp_enabled:
            check_fsdp_settings(state.fsdp_plugin)

    def settings_of_the_run(self) -> Mapping[str, Any]:
        """What decides the run and is in no `TrainingArguments`, as JSON; for subclasses."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What the run is made of, as JSON; to be called before training has changed the model.

        Returns:
            `{"settings": …, "model": …, "data": …}`. Weights and data are compared by samples: 64 values of
            each parameter, and 128 samples, evenly spaced.
        """
        identity = {
            "settings": {**settings_of(self), **self.settings_of_the_run()},
            "model": model_identity(self.model),
            "data": data_identity(self.train_dataset),
        }
        return json.loads(json.dumps(identity))  # as it will be read back: lists for tuples

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """As `Trainer.train`, with a checkpoint that must be whole and of this run.

        Args:
            resume_from_checkpoint: a folder; True for the newest whole checkpoint in `output_dir`;
                `"auto"` for the same, or a start where there is no checkpoint; None or False for a start.
                A newer one that is damaged is named in a warning.

        Raises:
            ValueError: no checkpoint is whole; or the one that is belongs to a run with other settings,
                another model or other data, or cannot be resumed from. What is wrong is named.
        """
        self._identity = self.identity()
        checkpoint = self._chosen_on_main_process(resume_from_checkpoint)
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _chosen_on_main_process(self, wanted: str | bool | None) -> str | None:
        """The checkpoint to go on from; one process looks, and all of them do what it says."""
        answer: list[Any] = [None, None, None, None]
        if self.accelerator.is_main_process:
            try:
                answer[:3] = self._choose_checkpoint(wanted)
            except (ValueError, OSError) as error:
                answer[3] = str(error)
        broadcast_object_list(answer)
        checkpoint, self._log_window, self._best, refusal = answer
        if refusal is not None:
            raise ValueError(refusal)
        return checkpoint

    def _choose_checkpoint(self, wanted: str | bool | None) -> tuple[str | None, Any, str | None]:
        """The checkpoint, its losses, and the name of the best; or three None for a start."""
        clean_up(self.args.output_dir)
        if wanted is True or wanted == "auto":
            found = newest_whole_checkpoint(self.args.output_dir)
            if found is None and wanted is True:
                raise ValueError(f"{self.args.output_dir}: no checkpoint to resume from")
        else:
            found = (Path(wanted), read_manifest(wanted), []) if wanted else None
        if found is None:
            return None, None, None
        checkpoint, manifest, damaged = found
        if not manifest["resumable"]:
            raise ValueError(
                f"{checkpoint}: saved with save_only_model, so there is no optimizer to go on with"
            )
        if differences := identity_differences(manifest["run"], self._identity):
            raise ValueError(
                f"{checkpoint}: of another run: {'; '.join(differences)}. A run goes on with what it began "
                "with; choose another output_dir for this one"
            )
        for problem in damaged:
            message = f"damaged checkpoint passed over: {problem}. Going on from {checkpoint}"
            warnings.warn(message, stacklevel=4)
        return str(checkpoint), manifest["log_window"], manifest.get("best")

    def _run_epoch(self, *, epoch: int, train_dataloader: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """`Trainer`'s, with the order of this epoch, and nothing to do where all steps are done."""
        # Here rather than in `train`: before its first epoch `Trainer` sets all of these, from its own state in the
        # checkpoint or to zero. It knows the best checkpoint by a path, but the folder may have moved since.
        if self._best is not None:
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / self._best)
            self._best = None
        if self._log_window is not None:
            loss, self._globalstep_last_logged, self._total_loss_scalar = self._log_window
            self._tr_loss += loss
            self._log_window = None
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # The loop sets a sampler's epoch through one wrapper. Sharing batches out among processes and
        # skipping those of a resumed epoch are two, and the order would be that of epoch 0.
        is_stream = isinstance(self.train_dataset, IterableDataset)  # has no sampler to tell
        has_length = isinstance(self.train_dataset, Sized | StreamedSamples)
        checkpoint = kwargs["resume_from_checkpoint"]
        if checkpoint is not None and not has_length and self.state.epoch >= 1:  # type: ignore[operator]
            raise ValueError(
                f"{checkpoint}: {type(self.train_dataset).__name__} had ended before it and was read again; a run can go "
                "on only in the first reading of a stream without a length"
            )
        part: Any = None if is_stream else train_dataloader
        while part is not None:
            part = getattr(part, "batch_sampler", None) or getattr(part, "sampler", None)
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer`'s, with the mean loss over all steps of the run, not only over those since it went on."""
        total = self._total_loss_scalar + self._tr_loss.item()
        self._mean_loss = total / max(self.state.global_step, 1)
        output = super()._finalize_training(*args, **kwargs)
        return output._replace(
            training_loss=self._mean_loss, metrics={**output.metrics, "train_loss": self._mean_loss}
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "train_loss" in logs:
            logs = {**logs, "train_loss": self._mean_loss}
        super().log(logs, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._partial is None else str(self._partial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """`Trainer`'s, which uploads in the background, once the folder has its place."""
        if self._partial is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """`Trainer`'s parts, written aside, then put in place."""
        # `Trainer._save_checkpoint` writes into `_get_output_dir`, which leads it aside while `_partial` is set.
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        checkpoint = Path(self._get_output_dir(trial)) / name
        partial = partial_folder(checkpoint)
        if self.args.should_save:
            clean_up(checkpoint.parent)
        wait_for_everyone(self.accelerator.state)
        self._partial = partial.parent
        try:
            with writing(partial):
                super()._save_checkpoint(model, trial)
        finally:
            self._partial = None
        # The sum since the last log, which `Trainer` keeps on the device and saves nowhere: without it the first log
        # of a run that goes on would be of fewer steps. Before the branch below, for all processes take part.
        loss = nested_gather(self._tr_loss, self.args.parallel_mode).mean().item()
        if self.state.best_model_checkpoint == str(partial):
            self.state.best_model_checkpoint = str(checkpoint)
        wait_for_everyone(self.accelerator.state)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            with writing(partial):  # once more, with the best checkpoint by its final name
                self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
            content = {
                "resumable": not self.args.save_only_model,
                "run": self._identity,
                "best": None if best is None else Path(best).name,
                "log_window": [loss, self._globalstep_last_logged, self._total_loss_scalar],
            }
            with writing(partial):
                publish(checkpoint, content)
            rotate(checkpoint, self.args.save_total_limit, keep=[] if best is None else [best])
        wait_for_everyone(self.accelerator.state)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
