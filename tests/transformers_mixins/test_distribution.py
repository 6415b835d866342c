"""Says loudly why transformers' own tests do not run, where they do not."""

import os

import pytest
from mixin_distribution import SKIP_VARIABLE, why_unavailable


def test_the_distribution_of_transformers_is_there():
    reason = why_unavailable()
    if reason and os.environ.get(SKIP_VARIABLE):
        pytest.skip(reason)
    assert not reason, reason
