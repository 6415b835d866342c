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

# From the bottom up; the parts of one layer know nothing of each other. Each part lists its modules, by
# full name or by folder; a part may import itself, and any part of a layer below.
LAYERS: list[dict[str, tuple[str, ...]]] = [
    {
        "vocabulary": ("vocabulary",),
        "code files": ("code_shards", "run_folder"),
        "pushing": ("pushing",),
    },
    {
        "bpe": ("bpe", "image_bpe", "image_grid_tracking", "legacy_image_bpe", "plain_pickle"),
        "vq": (
            "modeling_being_vl_vq",
            "modeling_being_vl_patch_vq",
            "image_processing_being_vl",
            "image_loading",
            "vq_checkpoints",
            "vq_metrics",
            "quantizer_identity",
        ),
    },
    {"tokenization": ("tokenization_being_vl",), "configuration": ("configuration_being_vl",)},
    {
        "processing": ("processing_being_vl", "lazy_vq", "grid_inputs"),
        "modeling": (
            "modeling_being_vl",
            "generation_being_vl",
            "frozen_rows",
            "image_grid_positions",
            "image_rows",
            "text_model_extension",
        ),
    },
    {"data": ("drawing", "result_files")},
    {
        "training": ("training", "quantizing"),
        "evaluation": ("evaluation",),
        "environment": ("environment",),
        "analysis": ("analysis",),
        "demo": ("demo",),
        "hub": ("checkpoint", "chat_templates", "remote_code", "hub"),
    },
    {"quickstart": ("quickstart",)},
    {"ablation": ("ablation",)},
    {"cli": ("cli",)},
]
# The package's own face: it names modules of every layer, and loads none of them by itself.
_FACE = {"", "__main__", "_auto_classes"}


def _place(module: str) -> tuple[int, str] | None:
    """Layer and part of a module (a dotted name below the package), by its longest listed name."""
    places = [
        (len(name), layer, part)
        for layer, parts in enumerate(LAYERS)
        for part, names in parts.items()
        for name in names
        if module == name or module.startswith((f"{name}.", f"{name}_"))
    ]
    return max(places)[1:] if places else None


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
        else:
            continue
        below = [name.partition(".")[2] for name in names if name.partition(".")[0] == "being_vl"]
        found.update(name for name in below if name in known)
    return found - {module, ""}


def test_every_module_has_a_place() -> None:
    lost = [name for name in _modules() if name not in _FACE and _place(name) is None]
    assert not lost, f"no layer lists {lost}; add them to LAYERS"


def test_imports_go_down_only() -> None:
    known = _modules()
    wrong = []
    for module, path in known.items():
        if module in _FACE:
            continue
        layer, part = _place(module)
        for imported in _imports(module, path, known):
            if imported in _FACE:
                continue
            other_layer, other_part = _place(imported)
            if other_layer > layer or (other_layer == layer and other_part != part):
                wrong.append(f"{module} ({part}) imports {imported} ({other_part})")
    assert not wrong, "\n".join(wrong)


def test_the_test_sees_imports_that_go_up(tmp_path: Path) -> None:
    """The reader of imports finds relative, absolute and late ones, and leaves annotations out."""
    source = tmp_path / "example.py"
    source.write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from .vocabulary import VocabularyLayout\n"
        "from . import image_bpe\n"
        "if TYPE_CHECKING:\n    from .checkpoint import init_checkpoint\n"
        "def late():\n    from being_vl.cli import main\n    import being_vl.training\n"
    )
    assert _imports("example", source, _modules()) == {"vocabulary", "image_bpe", "cli", "training"}


@pytest.mark.parametrize(
    "module", ["being_vl", "being_vl.bpe", "being_vl.image_bpe", "being_vl.vocabulary"]
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


def test_remote_code_modules_import_only_flat_modules() -> None:
    """transformers follows `from .name import` of modules that lie side by side, and nothing else."""
    known = _modules()
    for entry in (
        "modeling_being_vl",
        "modeling_being_vl_vq",
        "modeling_being_vl_patch_vq",
        "tokenization_being_vl",
        "processing_being_vl",
        "image_processing_being_vl",
    ):
        seen, queue = set(), [entry]
        while queue:
            module = queue.pop()
            assert "." not in module and known[module].name != "__init__.py", (
                f"{entry} needs {module}"
            )
            seen.add(module)
            queue += _imports(module, known[module], known) - seen
