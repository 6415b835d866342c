"""transformers' own test mixins, from its source distribution at the installed version.

The mixins ship in `tests/` of the distribution on PyPI and in no wheel. They are fetched once through pip
into a cache folder and imported as the package `transformers_tests`, whose search path ends in `standins/`:
the modules that they import and that do not ship. Where the distribution cannot be had, the tests fail and
say so; BEING_VL_SKIP_TRANSFORMERS_MIXINS=1 skips them on purpose.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path
from unittest.mock import patch

import transformers

SKIP_VARIABLE = "BEING_VL_SKIP_TRANSFORMERS_MIXINS"
_CACHE_VARIABLE = "BEING_VL_TEST_CACHE"
_PACKAGE = "transformers_tests"
_STANDINS = Path(__file__).parent / "standins"


class DistributionUnavailable(Exception):
    """pip could not fetch transformers' source distribution."""


def mixin_module(name: str) -> types.ModuleType:
    """Import a module of the distribution's `tests/` folder, such as `test_modeling_common`."""
    if _PACKAGE not in sys.modules:
        package = types.ModuleType(_PACKAGE)
        package.__path__ = [str(_tests_folder()), str(_STANDINS)]
        sys.modules[_PACKAGE] = package
        sys.path.append(str(_STANDINS))
    # They would load a second transformers, from the `src/` folder beside `tests/`.
    with patch("transformers.utils.direct_transformers_import", lambda *_: transformers):
        return importlib.import_module(f"{_PACKAGE}.{name}")


@functools.cache
def why_unavailable() -> str:
    """Why the mixins cannot run; empty where they can."""
    if os.environ.get(SKIP_VARIABLE):
        return f"{SKIP_VARIABLE} is set"
    try:
        _tests_folder()
    except DistributionUnavailable as error:
        return str(error)
    return ""


def _tests_folder() -> Path:
    cache = Path(os.environ.get(_CACHE_VARIABLE, Path.home() / ".cache" / "being_vl"))
    folder = cache / f"transformers-{transformers.__version__}-tests"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            _extract_tests(_fetch(Path(temporary)), Path(temporary) / "tests")
            os.replace(Path(temporary) / "tests", folder)
    return folder


def _fetch(folder: Path) -> Path:
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(folder)]
    command += ["--no-deps", "--no-binary", "transformers", "--no-build-isolation"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if done.returncode or len(archives) != 1:
        raise DistributionUnavailable(
            f"{' '.join(command)} failed: {done.stderr[-2000:]}\n"
            f"Set {SKIP_VARIABLE}=1 to leave transformers' own tests out."
        )
    return archives[0]


def _extract_tests(archive: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and member.isfile():
                (folder / parts[2]).write_bytes(tar.extractfile(member).read())
