"""A progress bar that knows how long a stage has trained, across resumes."""

from __future__ import annotations

import time
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class TrainingClock(TrainerCallback, ExportableState):
    """Shows steps and loss, and counts the seconds spent in training, saving left out.

    Args:
        description: stands before the bar.
        seconds: what earlier parts of this run took; restored from a checkpoint by `Trainer` when
            `restore_callback_states_from_checkpoint` is set.
    """

    def __init__(self, description: str = "", seconds: float = 0.0):
        self.description = description
        self.seconds = seconds
        self._since: float | None = None
        self._bar: tqdm | None = None

    def state(self) -> dict[str, Any]:
        self._pause()
        self._since = time.perf_counter()
        return {
            "args": {"description": self.description, "seconds": self.seconds},
            "attributes": {},
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_local_process_zero:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.description, unit="step"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pause()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _pause(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None
