"""Ctrl-C and SIGTERM end a command once: what it has begun is undone, its workers end, and one line says so."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_PAUSE = 1.0  # seconds in which a second Ctrl-C does not disturb what the first one undoes
_AGAIN = 0.05  # seconds after which an exception that Python has dropped is raised again


def handle() -> None:
    """Install the handlers, in the main thread of a process that is the command's own.

    Under torchrun, SIGTERM keeps its default: a process that waits for others in a collective runs no handler.
    """
    _handle(signal.SIGINT)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        _handle(signal.SIGTERM)
    sys.unraisablehook = _raised_where_nothing_can_be
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_the_parent)
        multiprocessing.set_forkserver_preload([f"{__package__}.fork_server"])


def _handle(number: int) -> None:
    pressed = -_PAUSE

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        now = time.monotonic()
        if now - pressed < _PAUSE:
            return
        pressed = now
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(TERMINATED)

    signal.signal(number, stop)


def _raised_where_nothing_can_be(dropped: Any) -> None:
    """Python drops what is raised in a `__del__` or a callback of a weak reference, and the command would go on."""
    stops = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
    if dropped.exc_type not in stops:
        sys.__unraisablehook__(dropped)
        return
    number = stops[dropped.exc_type]
    _handle(number)
    threading.Timer(_AGAIN, os.kill, (os.getpid(), number)).start()


def _leave_to_the_parent() -> None:
    """A terminal sends Ctrl-C to the workers, too; the parent ends them, by SIGTERM where they do not end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def let_go() -> None:
    """From here on nothing is left to undo: either signal ends the interpreter, whatever it still does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_by_sigterm() -> NoReturn:
    """End as a process without a handler ends, which shells, systemd and Slurm tell from a failure."""
    let_go()
    signal.raise_signal(signal.SIGTERM)
    raise SystemExit(TERMINATED)  # where the signal is blocked
