"""samples → samples of many concepts: caps on what is frequent.

Source: Being-VL-0, section 4.1, which filters images by class labels or noun-phrase statistics for the
diversity of concepts, and LLaVA's selection from CC3M, whose rule for noun phrases this is:
phrases seen fewer than 3 times are not counted, each other phrase brings in at most 100 samples, and a sample
stays if one of its phrases brings it in. The paper leaves open the caps, what a phrase is, and whether a
sample that one phrase brought in counts towards the cap of another; here it does not, as in LLaVA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .conversations import spoken_text

SPACY_HINT = (
    "noun phrases are found by spaCy, which is not installed: pip install being-vl[phrases], and a model, "
    "such as python -m spacy download en_core_web_sm"
)


def cap_per_group(groups: Sequence[Any], cap: int, *, seed: int) -> np.ndarray:
    """At most `cap` samples of each group, chosen at random; ascending sample numbers, int64.

    Args:
        groups: the label of each sample; samples of None are kept.
        cap: most samples of a label.
        seed: decides which.

    Raises:
        ValueError: `cap` is not positive.
    """
    samples = np.array([i for i, group in enumerate(groups) if group is not None], np.int64)
    unlabelled = np.array([i for i, group in enumerate(groups) if group is None], np.int64)
    codes = _codes(groups[i] for i in samples)
    return np.sort(np.concatenate([unlabelled, samples[_capped(codes, cap, seed)]]))


def cap_per_phrase(
    phrases: Iterable[Iterable[str]], cap: int = 100, *, min_count: int = 3, seed: int
) -> np.ndarray:
    """Samples that one of their phrases brings in; ascending sample numbers, int64.

    Args:
        phrases: of each sample; case and surrounding blanks do not matter.
        cap: most samples that a phrase brings in, chosen at random.
        min_count: phrases of fewer samples bring in none.
        seed: decides which.

    Raises:
        ValueError: `cap` or `min_count` is not positive.
    """
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    samples: list[int] = []
    found: list[str] = []
    for sample, own in enumerate(phrases):
        distinct = dict.fromkeys(" ".join(phrase.lower().split()) for phrase in own)
        samples += [sample] * len(distinct)
        found += distinct
    codes = _codes(found)
    counts = np.bincount(codes)
    kept = np.flatnonzero(counts[codes] >= min_count) if len(codes) else np.empty(0, np.int64)
    brought = kept[_capped(codes[kept], cap, seed)]
    return np.unique(np.array(samples, np.int64)[brought])


def noun_phrases(texts: Iterable[str], model: str = "en_core_web_sm") -> list[list[str]]:
    """The noun phrases of each text, as spaCy finds them.

    Raises:
        ImportError: spaCy or its model is not installed.
    """
    try:
        import spacy
    except ImportError as error:
        raise ImportError(SPACY_HINT) from error
    try:
        nlp = spacy.load(model, exclude=["ner", "lemmatizer"])
    except OSError as error:
        raise ImportError(f"spaCy has no model {model!r}: {error}") from error
    return [[chunk.text for chunk in document.noun_chunks] for document in nlp.pipe(texts)]


def select_samples(
    samples: Callable[[], Iterable[Any]],
    *,
    label_field: str | None = None,
    max_per_label: int | None = None,
    phrase_field: str | None = None,
    spacy_model: str | None = None,
    max_per_phrase: int = 100,
    min_phrase_count: int = 3,
    seed: int = 0,
) -> np.ndarray | None:
    """The samples that the filters keep, ascending; None where no filter is asked for.

    Args:
        samples: gives the samples, mappings, from the start each time it is called.
        label_field, max_per_label: cap on the samples of each value of a field; samples without it are kept.
        phrase_field: a field that lists a sample's phrases.
        spacy_model: or a spaCy model that finds noun phrases in what the assistant says.
        max_per_phrase, min_phrase_count: see [`cap_per_phrase`].
        seed: decides which samples a cap keeps.

    Raises:
        ValueError: options that do not go together, or a field is missing or of another type.
        ImportError: spaCy is asked for and not installed.
    """
    if (label_field is None) != (max_per_label is None):
        raise ValueError("label_field and max_per_label go together, got one of them")
    if phrase_field is not None and spacy_model is not None:
        raise ValueError("phrases come from phrase_field or from spacy_model, got both")
    kept = None
    if label_field is not None and max_per_label is not None:
        labels = [_field(sample, i, label_field) for i, sample in enumerate(samples())]
        if all(label is None for label in labels):
            raise ValueError(f"label_field: no sample has the field {label_field!r}")
        kept = cap_per_group(labels, max_per_label, seed=seed)
    phrases = None
    if phrase_field is not None:
        phrases = [_phrases(sample, i, phrase_field) for i, sample in enumerate(samples())]
    elif spacy_model is not None:
        phrases = noun_phrases(map(spoken_text, samples()), spacy_model)
    if phrases is not None:
        by_phrase = cap_per_phrase(phrases, max_per_phrase, min_count=min_phrase_count, seed=seed)
        kept = by_phrase if kept is None else np.intersect1d(kept, by_phrase)
    if kept is not None and not len(kept):
        raise ValueError("the filters keep no sample")
    return kept


def _field(sample: Any, number: int, name: str) -> Any:
    value = sample.get(name) if isinstance(sample, dict) else None
    if value is not None and not isinstance(value, (str, int)):
        raise ValueError(f"sample {number}: {name} must be text or an integer, got {value!r}")
    return value


def _phrases(sample: Any, number: int, name: str) -> list[str]:
    value = sample.get(name) if isinstance(sample, dict) else None
    if not isinstance(value, list) or not all(isinstance(phrase, str) for phrase in value):
        raise ValueError(f"sample {number}: {name} must be a list of texts, got {value!r}")
    return value


def _codes(values: Iterable[Any]) -> np.ndarray:
    """Numbers for values, equal for equal ones, in the order of first sight."""
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], np.int64)


def _capped(codes: np.ndarray, cap: int, seed: int) -> np.ndarray:
    """Positions of at most `cap` random members of each code."""
    if cap < 1:
        raise ValueError(f"the cap must be at least 1, got {cap}")
    order = np.lexsort((np.random.default_rng(seed).permutation(len(codes)), codes))
    ordered = codes[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    place = np.arange(len(ordered)) - np.repeat(starts, np.diff([*starts, len(ordered)]))
    return order[place < cap]
