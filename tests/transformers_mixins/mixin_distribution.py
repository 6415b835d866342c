"""transformers' own test mixins, from its source distribution at the installed version.

`fetch.py` puts them into a cache folder. They are imported as the package `transformers_tests`, whose search
path ends in `standins/`: the modules that they import and that do not ship.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from unittest.mock import patch

import transformers

_PACKAGE = "transformers_tests"
_STANDINS = Path(__file__).parent / "standins"


def folder_of_tests() -> Path:
    """Where the mixins of the installed transformers lie, once they are fetched."""
    cache = Path(os.environ.get("BEING_VL_TEST_CACHE", Path.home() / ".cache" / "being_vl"))
    return cache / f"transformers-{transformers.__version__}-tests"


def mixin_module(name: str) -> types.ModuleType:
    """Import a module of the distribution's `tests/` folder, such as `test_modeling_common`."""
    if _PACKAGE not in sys.modules:
        package = types.ModuleType(_PACKAGE)
        package.__path__ = [str(folder_of_tests()), str(_STANDINS)]
        sys.modules[_PACKAGE] = package
        sys.path.append(str(_STANDINS))
    # They would load a second transformers, from the `src/` folder beside `tests/`.
    with patch("transformers.utils.direct_transformers_import", lambda *_: transformers):
        return importlib.import_module(f"{_PACKAGE}.{name}")
