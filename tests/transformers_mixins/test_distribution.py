"""Says why transformers' own tests do not run, where they do not."""

import pytest
from mixin_distribution import folder_of_tests


def test_the_distribution_of_transformers_is_there():
    if not folder_of_tests().is_dir():
        pytest.skip(
            f"{folder_of_tests()} is missing: run python tests/transformers_mixins/fetch.py"
        )
    assert (folder_of_tests() / "test_modeling_common.py").exists()
