"""Where transformers' distribution cannot be had, only the test that says so is collected."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))  # for model_fixtures

from mixin_distribution import why_unavailable

collect_ignore = ["standins"]
collect_ignore_glob = ["test_mixins_*.py"] if why_unavailable() else []
