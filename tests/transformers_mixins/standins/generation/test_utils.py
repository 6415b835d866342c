"""Stand-in: transformers does not ship its generation tests; ours are in test_generation.py."""


class GenerationTesterMixin:
    """Has no tests; ModelTesterMixin demands it of every model that generates."""
