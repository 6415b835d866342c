"""package → one flat folder: the modules that a checkpoint carries for `trust_remote_code=True`.

transformers loads custom code from a single folder whose files import each other by `from .name import …`.
The package has rooms, so what travels is generated: the imports of the named modules are followed, and each
module is written under a flat name with its imports rewritten. Nothing else of the source changes, and the
result is the same bytes each time. A folder that is flat already comes out as it is: that is how code that
was loaded from a checkpoint is saved with the next one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# This module travels too: in a checkpoint its name is a flat one, and its folder has all there is.
_IS_FLAT = Path(__file__).stem != "flat_modules"
PACKAGE = Path(__file__).parents[0 if _IS_FLAT else 1]


def flat_name(module: str) -> str:
    """Flat name of a module: its path joined by `_`, without folders that its own name repeats.

    Names that say `being_vl` already, as transformers' file names do, stand alone.

    Examples:
        >>> [flat_name(name) for name in ("files", "bpe.image_bpe", "models.modeling_being_vl")]
        ['files', 'image_bpe', 'modeling_being_vl']
    """
    *folders, name = module.split(".")
    name = name.strip("_")
    if "being_vl" in name:
        return name
    return "_".join([*(folder for folder in folders if folder not in name.split("_")), name])


def flat_modules(entries: Iterable[str], root: Path = PACKAGE) -> dict[str, str]:
    """Sources of modules and of all that they import, by flat name.

    Args:
        entries: flat names of the modules to begin with, such as "modeling_being_vl".
        root: the package, or a flat folder.

    Raises:
        ValueError: an import cannot be written for a flat folder, or two modules have one flat name.
    """
    modules = modules_of(root)
    known: dict[str, str] = {}
    for module in modules:
        if known.setdefault(flat_name(module), module) != module:
            raise ValueError(
                f"{module} and {known[flat_name(module)]} have one flat name, {flat_name(module)}"
            )
    queue = sorted(known[entry] for entry in entries)
    sources: dict[str, str] = {}
    while queue:
        module = queue.pop()
        if flat_name(module) not in sources:
            source, imported = _flattened(module, root)
            sources[flat_name(module)] = source
            queue += imported
    return dict(sorted(sources.items()))


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name below the root → file; a room's own name is that of its `__init__.py`."""
    files = root.glob("*.py") if _IS_FLAT or root != PACKAGE else root.rglob("*.py")
    found = {}
    for path in sorted(files):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache  # parsed once for all parts of a checkpoint
def _flattened(module: str, root: Path) -> tuple[str, list[str]]:
    """Source of a module with flat imports, and the modules that it imports."""
    modules = modules_of(root)
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
