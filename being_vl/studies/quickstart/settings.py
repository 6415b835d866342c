"""What the quickstart is asked to do, and where it keeps what it has done."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

SETTINGS_FILE = "quickstart.json"
QUANTIZERS = ("patch", "vqgan")


@dataclass(frozen=True)
class Settings:
    """The quickstart's options.

    Args:
        output: folder of everything it makes.
        seed: seeds the quantizer, the validation split, the initial weights and the order of the data.
        minutes: about how long the whole run takes on two CPU cores. It sets the numbers of steps, which
            do not depend on the machine, so that a seed has one result.
        device: of the language model's training and answers, as torch names it.
        quantizer: `"patch"` (k-means of patches) or `"vqgan"`.

    Raises:
        ValueError: a value is out of range.
    """

    output: str = "being-vl-quickstart"
    seed: int = 0
    minutes: float = 4.0
    device: str = "cpu"
    quantizer: str = "patch"

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 1440:
            raise ValueError(f"minutes must be above 0 and at most 1440, got {self.minutes}")
        if self.quantizer not in QUANTIZERS:
            raise ValueError(
                f"quantizer must be one of {', '.join(QUANTIZERS)}, got {self.quantizer!r}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


class Workspace:
    """The output folder. A part is either whole or absent, so a run that was stopped goes on.

    Raises:
        ValueError: the folder was made with other settings, or holds something else.
        OSError: the folder cannot be written.
    """

    def __init__(self, settings: Settings):
        self.folder = Path(settings.output)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"--output {self.folder} is not a folder") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise PermissionError(f"--output {self.folder} is not writable")
        ours = {k: v for k, v in asdict(settings).items() if k != "output"}
        path = self.folder / SETTINGS_FILE
        if not path.exists():
            if any(self.folder.iterdir()):
                raise ValueError(
                    f"--output {self.folder} is not empty and was not made by the quickstart"
                )
            self.make(
                SETTINGS_FILE, lambda target: target.write_text(json.dumps(ours, indent=2) + "\n")
            )
            return
        theirs = json.loads(path.read_text())
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise ValueError(
                    f"--output {self.folder} was made with {name}={theirs.get(name)}, now {name}={value}: "
                    "choose another folder, or delete it to start anew"
                )

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def make(self, name: str, build: Callable[[Path], object]) -> Path:
        """Run `build` on a temporary path, unless the part `name` is there; the part's path is returned."""
        return make_part(self.folder / name, build)


def make_part(target: Path, build: Callable[[Path], object]) -> Path:
    """Run `build` on a temporary path beside `target`, unless `target` is there; returns `target`."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        build(aside / target.name)
        os.replace(aside / target.name, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target
