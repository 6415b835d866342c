"""package → one flat folder: the modules that a checkpoint carries for `trust_remote_code=True`.

transformers loads custom code from a single folder whose files import each other by `from .name import …`.
The package has rooms, so what travels is generated: the imports of the named modules are followed, and each
module is written under a flat name with its imports rewritten. Nothing else of the source changes, and the
result is the same bytes each time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def flat_name(module: str) -> str:
    """Flat name of a module: its path below the package joined by `_`; `…_being_vl…` modules keep their own.

    >>> flat_name("bpe.codec.kernels"), flat_name("models.modeling_being_vl")
    ('bpe_codec_kernels', 'modeling_being_vl')
    """
    last = module.rpartition(".")[2]
    return last if "being_vl" in last else module.replace(".", "_")


def flat_modules(entries: Iterable[str]) -> dict[str, str]:
    """Sources of modules and of all that they import, by flat name.

    Args:
        entries: flat names of the modules to begin with, such as "modeling_being_vl".

    Raises:
        ValueError: an import cannot be written for a flat folder; module and line are named.
    """
    known = {flat_name(module): module for module in _modules()}
    queue = sorted(known[entry] for entry in entries)
    sources: dict[str, str] = {}
    while queue:
        module = queue.pop()
        if flat_name(module) not in sources:
            source, imported = _flattened(module)
            sources[flat_name(module)] = source
            queue += imported
    return dict(sorted(sources.items()))


def _modules() -> dict[str, Path]:
    """Dotted name below the package → file; a room's own name is that of its `__init__.py`."""
    found = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = path.relative_to(_PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _flattened(module: str) -> tuple[str, list[str]]:
    """Source of a module with flat imports, and the modules that it imports."""
    modules = _modules()
    text = modules[module].read_text("utf-8")
    lines = text.splitlines(keepends=True)
    package = module if modules[module].name == "__init__.py" else module.rpartition(".")[0]
    imported = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if package else []
        target = ".".join([*above, *filter(None, [node.module])])
        inside = [
            alias.name for alias in node.names if f"{target}.{alias.name}".lstrip(".") in modules
        ]
        if not target or inside:
            raise ValueError(
                f"{modules[module]}:{node.lineno}: a module that travels with checkpoints imports names of "
                f"modules, not modules: {ast.unparse(node)}"
            )
        imported.append(target)
        dots = "." * node.level + (node.module or "")
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = line.replace(f"from {dots} ", f"from .{flat_name(target)} ", 1)
    return "".join(lines), imported
