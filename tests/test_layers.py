"""Imports go down only, and what must start fast does not load what is slow."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import being_vl

_PACKAGE = Path(being_vl.__file__).parent

# The rooms from the bottom up; rooms of one floor know nothing of each other. A module may import its own
# room, and any room of a floor below.
FLOORS: list[tuple[str, ...]] = [
    ("files", "vocabulary", "hub.part"),
    ("codes",),
    ("bpe", "quantizers"),
    ("processing", "models"),
    ("data",),
    ("training", "evaluation", "serving", "hub"),
    ("studies", "demo"),
    ("cli",),
]
# The package's face names modules of every room, and loads none of them by itself.
_FACE = {"", "__main__"}
# hub.part is the mixin that parts of a checkpoint have from hub/. It stands below them, and reaches up to the
# rest of hub/ in one function, when somebody saves or pushes.
_KNOWN_UP: dict[str, set[str]] = {"hub.part": {"hub.pushing"}}


def _floor(module: str) -> tuple[int, str]:
    """Floor and room of a module, a dotted name below the package."""
    for name in (module, module.partition(".")[0]):
        for floor, rooms in enumerate(FLOORS):
            if name in rooms:
                return floor, name
    raise AssertionError(f"no floor lists {module}; see FLOORS")


def _modules() -> dict[str, Path]:
    names = {}
    for path in _PACKAGE.rglob("*.py"):
        parts = path.relative_to(_PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _without_type_checking(tree: ast.AST) -> ast.AST:
    """Imports for annotations alone are not imports."""

    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return node.orelse if is_typing else node

    return Drop().visit(tree)


def _imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a module imports, anywhere in its code."""
    found: set[str] = set()
    is_package = path.name == "__init__.py"
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text("utf-8")))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = ["being_vl", *filter(None, module.split("."))]
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, *filter(None, [base])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # importlib.import_module("being_vl.hub"), lazy tables of names, and the like
            names = _named_modules(node.value, module, is_package, known)
        else:
            continue
        below = [name.partition(".")[2] for name in names if name.partition(".")[0] == "being_vl"]
        found.update(name for name in below if name in known)
    return found - {module, ""}


def _named_modules(text: str, module: str, is_package: bool, known: dict[str, Path]) -> list[str]:
    """The modules that a string names: `being_vl.room.name`, or `.name` and `..room.name` from here."""
    if text.startswith("being_vl."):
        name = text.partition(".")[2]
    elif text.startswith(".") and text.strip(".").replace(".", "").isidentifier():
        dots = len(text) - len(text.lstrip("."))
        above = module.split(".")
        name = ".".join([*above[: len(above) - dots + is_package], text.lstrip(".")])
    else:
        return []
    parts = name.split(".")
    heads = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return [f"being_vl.{head}" for head in heads if head in known][:1]


def test_every_module_has_a_room() -> None:
    for name in _modules().keys() - _FACE:
        _floor(name)


def test_only_rooms_at_the_top() -> None:
    top = {path.name for path in _PACKAGE.iterdir() if path.name != "__pycache__"}
    rooms = {room for floor in FLOORS for room in floor} - {"vocabulary", "hub.part"}
    assert top <= rooms | {"__init__.py", "__main__.py", "py.typed", "vocabulary.py"}


def _going_up(module: str, imported: set[str]) -> set[str]:
    """Those of the imported modules that lie above a module, or in another room of its floor."""
    floor, room = _floor(module)
    return {
        name
        for name in imported - _FACE
        if _floor(name)[0] > floor or (_floor(name)[0] == floor and _floor(name)[1] != room)
    }


def test_imports_go_down_only() -> None:
    known = _modules()
    wrong = []
    for module, path in known.items():
        if module not in _FACE:
            up = _going_up(module, _imports(module, path, known)) - _KNOWN_UP.get(module, set())
            wrong += [f"{module} imports {name}" for name in sorted(up)]
    assert not wrong, "\n".join(wrong)


def test_the_test_sees_imports_that_go_up(tmp_path: Path) -> None:
    """The reader of imports finds relative, absolute, late and named ones, and leaves annotations out."""
    source = tmp_path / "example.py"
    source.write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from ..vocabulary import VocabularyLayout\n"
        "from . import image_bpe\n"
        "if TYPE_CHECKING:\n    from ..hub.checkpoint import init_checkpoint\n"
        "def late():\n    from being_vl.cli import main\n    import being_vl.training\n"
    )
    found = _imports("bpe.example", source, _modules())
    assert found == {"vocabulary", "bpe", "bpe.image_bpe", "cli", "training"}
    assert _going_up("bpe.example", found) == {"cli", "training"}


@pytest.mark.parametrize(
    "line",
    [
        "importlib.import_module('being_vl.hub')",
        "importlib.import_module('..hub.card', __package__)",
        "__import__('being_vl.hub.card')",
        "LAZY = {'write_card': 'being_vl.hub.card'}",
    ],
)
def test_the_test_sees_imports_by_name(tmp_path: Path, line: str) -> None:
    source = tmp_path / "example.py"
    source.write_text(f"import importlib\n{line}\n")
    found = _imports("bpe.example", source, _modules())
    assert _going_up("bpe.example", found) in ({"hub"}, {"hub.card"})


@pytest.mark.parametrize(
    "module", ["being_vl", "being_vl.bpe", "being_vl.bpe.image_bpe", "being_vl.vocabulary"]
)
def test_loads_neither_torch_nor_transformers(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'transformers'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_help_is_quick() -> None:
    """CPU seconds of the process, so that a busy machine does not fail it; the best of three."""
    code = (
        "import sys, time; from being_vl.cli import main; main(['--help']); "
        "print(time.process_time(), {'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    seconds = []
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        used, heavy = run.stdout.splitlines()[-1].split(" ", 1)
        assert heavy == "set()"
        seconds.append(float(used))
        time.sleep(0.05)
    assert min(seconds) < 0.5
