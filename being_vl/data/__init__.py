"""conversations and codes → ids on disk → rows to train on.

`tokenize_rows` makes a folder of ids, `load_training_data` opens one, or a mixture of several.
"""

from .chunks import TokenizeSettings
from .loading import load_tokenized, load_training_data, mix
from .selection import cap_per_group, cap_per_phrase, noun_phrases, select_rows
from .sources import RowSource, iter_rows, open_rows
from .tokenizing import tokenize_rows

__all__ = [
    "RowSource",
    "TokenizeSettings",
    "cap_per_group",
    "cap_per_phrase",
    "iter_rows",
    "load_tokenized",
    "load_training_data",
    "mix",
    "noun_phrases",
    "open_rows",
    "select_rows",
    "tokenize_rows",
]
