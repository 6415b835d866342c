"""The snippets of README.md and docs/ run as they stand, in order, in one folder a page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: .+ -->$")


def blocks(text: str) -> list[tuple[str, str, int]]:
    """Runnable fenced blocks: language, source, first line."""
    found, lines = [], text.splitlines()
    number = 0
    while number < len(lines):
        match = re.fullmatch(r"```(\w*)", lines[number])
        if not match:
            number += 1
            continue
        end = next(i for i in range(number + 1, len(lines)) if lines[i] == "```")
        skipped = number > 0 and NOT_RUN.match(lines[number - 1])
        if match.group(1) in ("python", "bash") and not skipped:
            found.append((match.group(1), "\n".join(lines[number + 1 : end]), number + 2))
        number = end + 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page: Path, tmp_path: Path) -> None:
    """All blocks of a page in one process; a bash block through the shell, in the same folder."""
    script = ["import subprocess"]
    for language, source, line in blocks(page.read_text()):
        if language == "bash":
            source = f"subprocess.run(['bash', '-euo', 'pipefail', '-c', {source!r}], check=True)"
        else:
            source = f"exec(compile({source!r}, {f'{page.name}, block at line {line}'!r}, 'exec'), globals())"
        script.append(source)
    commands = tmp_path / "bin"
    commands.mkdir()
    # Scripts, not links: a link to the python of a virtual environment does not find its packages.
    for name, module in (("being-vl", "-m being_vl"), ("python", "")):
        command = commands / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        command.chmod(0o755)
    (tmp_path / "page").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(script)],
        cwd=tmp_path / "page",
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "BEING_VL_CACHE": str(tmp_path / "cache"),
        },
    )
    assert run.returncode == 0, run.stderr[-4000:]


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as GitHub and mkdocs spell them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, *ROOT.glob("hub_configs/*/README.md"), *ROOT.glob("*.md")]:
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text()):
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(found), f"{page.name}: {target}#{anchor}"


def test_every_command_is_in_the_table_of_commands() -> None:
    from being_vl.cli import COMMANDS

    table = (ROOT / "docs/commands.md").read_text()
    for name in COMMANDS:
        assert f"`{name}`" in table, name
