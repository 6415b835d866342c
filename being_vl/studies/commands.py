"""A study is a list of commands: each is printed, run in this process, and not run again once it is done."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import new_folder

RunCommand = Callable[[str, list[str]], Any]


class Commands:
    """Runs commands of `being-vl` one after the other.

    `run` (`being_vl.cli.run_command`) takes a command's name and arguments and runs it in this process, which
    has imported torch once for all of them; `show` takes each command line before.
    """

    def __init__(self, run: RunCommand, show: Callable[[str], Any] = print):
        self._run, self._show = run, show

    def __call__(
        self, name: str, *arguments: Any, unless: Path | None = None, **options: Any
    ) -> None:
        """Run `being-vl NAME ARGUMENTS --OPTION VALUE …`, unless the file `unless` is there.

        That file is one that the command leaves behind when it is done; one that was stopped has not left
        it, and goes on. Options have `_` as the command spells it; None leaves one out.
        """
        if unless is not None and unless.exists():
            return
        argv = list(map(str, arguments))
        for option, value in options.items():
            if value is not None:
                values = value if isinstance(value, (list, tuple)) else [value]
                argv += [f"--{option}", *map(_text, values)]
        self._show(shlex.join(["being-vl", name, *argv]))
        self._run(name, argv)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def make_part(target: Path, build: Callable[[Path], Any]) -> Path:
    """Run `build` on a temporary folder that becomes `target`, unless `target` is there; returns `target`."""
    if not target.exists():
        with new_folder(target) as partial:
            build(partial)
    return target
