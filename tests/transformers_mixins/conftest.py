"""Where transformers' distribution was not fetched, only the test that says so is collected."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))  # for model_fixtures

from mixin_distribution import folder_of_tests

collect_ignore = ["standins"]
collect_ignore_glob = [] if folder_of_tests().is_dir() else ["test_mixins_*.py"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what transformers' decorators rule out on this machine, such as tests of accelerators."""
    here = Path(__file__).parent
    ruled_out = [
        item
        for item in items
        if here in item.path.parents and getattr(item.obj, "__unittest_skip__", False)  # type: ignore[attr-defined]
    ]
    if ruled_out:
        config.hook.pytest_deselected(items=ruled_out)
        left_out = set(ruled_out)
        items[:] = [item for item in items if item not in left_out]
