"""A chat template is a program that comes with a checkpoint: what it may cost.

transformers renders it in Jinja's sandbox, which keeps it from files and attributes, but not from loops of
loops, `'x' * 10**10`, or a macro that calls itself twice.
"""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension

MAX_TEMPLATE_CHARACTERS = 1 << 16  # the longest of published models have a third of that
MAX_SECONDS = 1.0  # of CPU time; a rendering takes milliseconds
MAX_BYTES = 1 << 27
_MAX_FACTOR = 1000
_PAGE = 4096
_TICK = 0.01  # seconds of CPU time


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`, as transformers has it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class BrokenTemplateError(ValueError):
    """A chat template that renders fewer or more placeholders than the messages have images and videos."""


def template_file(folder: Any) -> str:
    """How errors call the chat template of a checkpoint: its file, where it has one of its own."""
    path = Path(str(folder or "the tokenizer"), "chat_template.jinja")
    return str(path if path.is_file() else path.parent)


def check_number(tokenizer: Any, kind: str, given: int, found: int) -> None:
    """Raises BrokenTemplateError if a chat template puts other than one placeholder for each image or video."""
    if given != found:
        raise BrokenTemplateError(
            f"{template_file(tokenizer.name_or_path)}: the chat template puts {found} placeholder(s) for "
            f"{given} {kind}(s)"
        )


@contextmanager
def limited_template(template: str, name: str) -> Iterator[None]:
    """For a rendering of a chat template: it is checked before, and its time and memory are limited.

    Both are limited in the main thread alone, where Python delivers signals, and not on Windows; memory on Linux.
    `template` is Jinja source; `name` is what errors call the checkpoint.

    Raises:
        ValueError: the template is no Jinja, too long, multiplies texts, takes too long or too much, or recurses
            without end.
    """
    _check_template(template, name)
    try:
        with _limits():
            yield
    except _LimitReached as error:
        raise ValueError(f"{name}: rendering the chat template takes more than {error}") from None
    except Exception as error:
        if isinstance(error, ValueError) or not _is_of_template(error):
            raise
        raise ValueError(
            f"{name}: the chat template does not render: {type(error).__name__} {error}"
        ) from error


@lru_cache(maxsize=64)
def _check_template(template: str, name: str) -> None:
    """What one operation in C could do at once, no signal can stop: it is looked for in the source."""
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise ValueError(
            f"{name}: the chat template has {len(template)} characters, more than {MAX_TEMPLATE_CHARACTERS}"
        )
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        tree = environment.parse(template)
        found = next(filter(_is_dangerous, tree.find_all(nodes.Expr)), None)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ValueError(f"{name}: the chat template is not Jinja: {error}") from None
    if found is not None:
        raise ValueError(
            f"{name}: line {found.lineno} of the chat template has a power, a product of two unknowns or a wide "
            "format, which may take any amount of memory"
        )


def _is_dangerous(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Mul):
        factors = [n.value for n in (node.left, node.right) if isinstance(n, nodes.Const)]
        numbers = [n for n in factors if isinstance(n, int)]
        return not numbers or max(map(abs, numbers)) > _MAX_FACTOR
    if isinstance(node, nodes.Mod):
        return isinstance(node.left, nodes.Const) and _is_wide(node.left.value)
    if isinstance(node, nodes.Filter) and node.name in ("center", "format", "indent"):
        parts = [node.node, *node.args]
        return any(
            not isinstance(part, nodes.Const) or _is_wide(part.value)
            for part in (parts[:1] if node.name == "format" else parts[1:])
        )
    return isinstance(node, nodes.Pow)


def _is_wide(value: Any) -> bool:
    if isinstance(value, str):
        return re.search(r"%[^a-zA-Z%]*[\d*]", value) is not None
    return isinstance(value, (int, float)) and abs(value) > _MAX_FACTOR


def _is_of_template(error: Exception) -> bool:
    """Whether an error arose in a template, rather than in what is done with its text."""
    if isinstance(error, (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError)):
        return True
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            return True
        traceback = traceback.tb_next
    return False


class _LimitReached(BaseException):
    """No `except Exception` of the renderer may swallow it."""


@contextmanager
def _limits() -> Iterator[None]:
    in_main = threading.current_thread() is threading.main_thread()
    if (
        not in_main
        or not hasattr(signal, "setitimer")
        or signal.getitimer(signal.ITIMER_VIRTUAL)[0]
    ):
        yield
        return
    ticks, most = 0, _resident() + MAX_BYTES

    def look(_: int, frame: Any) -> None:
        """Called at each tick of CPU time; what happens outside of the template, such as tokenizing, is free."""
        nonlocal ticks
        while frame is not None and frame.f_code.co_filename != "<template>":
            frame = frame.f_back
        if frame is None:
            return
        ticks += 1
        if ticks * _TICK > MAX_SECONDS:
            raise _LimitReached(f"{MAX_SECONDS:.0f} s")
        if _resident() > most:
            raise _LimitReached(f"{MAX_BYTES >> 20} MB")

    before = signal.signal(signal.SIGVTALRM, look)
    signal.setitimer(signal.ITIMER_VIRTUAL, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _resident() -> int:
    """Bytes of this process in memory; 0 where Linux's /proc is not there."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0
