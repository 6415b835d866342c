"""Says why transformers' own tests do not run, where they do not."""

import pytest
from mixin_distribution import tests_folder


def test_the_distribution_of_transformers_is_there():
    if not tests_folder().is_dir():
        pytest.skip(f"{tests_folder()} is missing: run python tests/transformers_mixins/fetch.py")
    assert (tests_folder() / "test_modeling_common.py").exists()
