"""What is said in two places agrees: versions, the parts of CI, the pages of the site."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import yaml

import being_vl

ROOT = Path(__file__).parents[1]


def test_one_version() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == "attr: being_vl.__version__"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == being_vl.__version__
    assert f"({being_vl.__version__})" in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_what_ci_run_runs() -> None:
    (parts,) = re.findall(r"^for part in (.+); do$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    matrix = workflow["jobs"]["ci"]["strategy"]["matrix"]["part"]
    assert sorted(matrix) == sorted(
        [*parts.split(), "cluster"]
    )  # which run leaves out for its time
    for part in matrix:
        assert (ROOT / ".ci" / part).stat().st_mode & 0o111, part


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = set(re.findall(r"([\w/.-]+\.md)$", nav, re.MULTILINE))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    pages |= {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    rooms = {path.parent.name for path in (ROOT / "being_vl").glob("*/__init__.py")}
    pages |= {f"reference/{room}.md" for room in rooms - {"cli"}}
    assert pages <= named, pages - named
