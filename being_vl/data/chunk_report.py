"""What a shard says of its chunk of samples: counts, and what was left out of it and why.

`attempt` is the one place that decides whether a sample that cannot be used ends the run or is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .tokenize_settings import TokenizeSettings
from .tokenized import COUNTS


class LeftOut(Exception):
    """A sample that a setting leaves out; `reason` and, if one is the cause, `image_id`."""

    def __init__(self, reason: str, image_id: str | None = None):
        super().__init__(reason)
        self.reason, self.image_id = reason, image_id


class Refused(ValueError):
    """A sample that a setting refuses; its message names the option."""


class ChunkReport:
    """Counts, and the samples and images left out, of one chunk."""

    def __init__(self, settings: TokenizeSettings):
        self._settings = settings
        self.counts = dict.fromkeys(COUNTS, 0)
        self.skipped: list[dict[str, Any]] = []

    @contextmanager
    def attempt(self, where: str, sample_id: str | None) -> Iterator[None]:
        """Around a step of one sample: what leaves the sample out is written down, and the step given up.

        Raises:
            ValueError: something is wrong with the sample, and the settings do not skip it.
        """
        try:
            yield
            return
        except LeftOut as left_out:
            reason, image_id = left_out.reason, left_out.image_id
        except ValueError as error:
            if self._settings.on_bad_row == "raise":
                refused = isinstance(error, Refused)
                hint = "" if refused else "; --on-bad-row skip leaves such samples out"
                raise ValueError(f"{error}{hint}") from error
            reason, image_id = str(error).removeprefix(f"{where}: "), None
        self.counts["skipped_samples"] += 1
        self.write_down(where, sample_id, image_id, reason)

    def write_down(
        self, where: str, sample_id: str | None, image_id: str | None, reason: str
    ) -> None:
        self.skipped.append(
            {"sample": where, "id": sample_id, "image_id": image_id, "reason": reason}
        )
