"""Pages of the site that are not in docs/: a hook of mkdocs (see mkdocs.yml).

README.md becomes the first page. Every other file of the repository that a page links to is added at its path in the
repository, so that relative links work on GitHub and on the site. Notebooks become Markdown; the reference has one
page for each room of the package, from its docstrings.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "being_vl"
LINK = re.compile(r"(\]\()(?!https?://|#|mailto:)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    pages = {f"docs/{file.src_uri}": (ROOT / "docs" / file.src_uri).read_text() for file in files.documentation_pages()}  # fmt: skip
    pages |= {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}  # fmt: skip
    pages |= {
        f"notebooks/{path.name}": notebook_page(path)
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    }
    todo = list(pages)
    while todo:
        page = todo.pop()
        for target in links(page, pages[page]):
            path = ROOT / target
            if target in pages or target.startswith("docs/") or not path.is_file():
                continue
            if path.suffix == ".md":
                pages[target] = path.read_text()
                todo.append(target)
            elif files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(path)))
    for page, text in pages.items():
        name = site_name(page)
        if (old := files.get_file_from_path(name)) is not None:
            files.remove(old)
        files.append(File.generated(config, name, content=relinked(page, text)))
    for name, text in reference_pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def site_name(path: str) -> str:
    """Path in the repository → path on the site."""
    if path == "README.md":
        return "index.md"
    return re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))


def links(page: str, text: str) -> list[str]:
    """Relative links of a page, as paths in the repository."""
    folder = posixpath.dirname(page)
    return [posixpath.normpath(posixpath.join(folder, target)) for _, target in LINK.findall(text)]


def relinked(page: str, text: str) -> str:
    """A page whose relative links are those of the site."""
    folder, here = posixpath.dirname(page), posixpath.dirname(site_name(page))

    def link(match: re.Match[str]) -> str:
        target = site_name(posixpath.normpath(posixpath.join(folder, match[2])))
        return match[1] + posixpath.relpath(target, here or ".")

    return LINK.sub(link, text)


def notebook_page(path: Path) -> str:
    """A notebook's text and code."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts)


def reference_pages() -> dict[str, str]:
    """Room → page of its public modules; `index` has the names that `import being_vl` gives."""
    rooms: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        parts = module.split(".")
        if any(part.startswith("_") for part in parts) or parts[1:2] in ([], ["cli"]):
            continue
        if has_public_names(path):
            rooms.setdefault(parts[1] if path.parent != PACKAGE else "index", []).append(module)
    first = {f"being_vl.{module}" for _, module in top_level_names()}
    for modules in rooms.values():
        modules.sort(key=lambda module: (module not in first, module))
    pages = {
        room: f"# being_vl.{room}\n\n" + "\n\n".join(f"::: {module}" for module in modules)
        for room, modules in rooms.items()
        if room != "index"
    }
    names = "\n".join(
        f"- [`being_vl.{name}`][being_vl.{module}.{name}]" for name, module in top_level_names()
    )
    others = "\n\n".join(f"::: {module}" for module in rooms["index"])
    pages["index"] = (
        f"# Reference\n\nNames of `import being_vl`:\n\n{names}\n\n::: being_vl.example_checkpoint\n\n{others}\n"
    )
    return pages


def has_public_names(path: Path) -> bool:
    return any(
        isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")
        for node in ast.parse(path.read_text()).body
    )


def top_level_names() -> list[tuple[str, str]]:
    """(name, module below the package), as `being_vl/__init__.py` tells type checkers."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return sorted(
        (alias.name, node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )
