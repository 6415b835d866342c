"""conversations and codes → ids on disk → samples to train on.

`tokenize_samples` makes a folder of ids, `load_training_data` opens one, or a mixture of several, and
`stream_tokenized` reads one shard after another.
"""

from .columns import Quantize, TokenizeConversations
from .mixtures import mix
from .selection import cap_per_group, cap_per_phrase, noun_phrases, select_samples
from .sources import SampleSource, iter_samples, open_samples
from .streaming import TokenizedStream, stream_tokenized
from .tokenize_settings import TokenizeSettings
from .tokenized import load_tokenized, load_training_data
from .tokenizing import tokenize_samples

__all__ = [
    "Quantize",
    "SampleSource",
    "TokenizeConversations",
    "TokenizeSettings",
    "TokenizedStream",
    "cap_per_group",
    "cap_per_phrase",
    "iter_samples",
    "load_tokenized",
    "load_training_data",
    "mix",
    "noun_phrases",
    "open_samples",
    "select_samples",
    "stream_tokenized",
    "tokenize_samples",
]
