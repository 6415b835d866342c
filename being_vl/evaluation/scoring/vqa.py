"""open answers and ten human answers → VQA accuracy.

Source: the evaluation of VQA v2 (Goyal et al. 2017; rules at visualqa.org/evaluation), quirks of its
script included: what it normalizes, in which order, and that it normalizes nothing where all humans agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .exact import means_by_group

_NUMBERS = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_->@`,?!<'
_DIGITS_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the script passes re.UNICODE, which is 32, in the place of a count

# Words that get their apostrophes back; where there are two, either one may be missing.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
you'll you're you've
""".split()


_RESTORED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS
    for place, character in enumerate(word)
    if character == "'"
}
_RESTORED["somebody'd"] = "somebodyd"  # in this one case the script does the opposite


def normalize_vqa_answer(text: str) -> str:
    """Punctuation, numbers as words, articles and apostrophes, as the official script treats them."""
    drop_all = _DIGITS_COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_blank or drop_all else " ")
    cleaned = _PERIOD.sub("", cleaned, count=_MAX_PERIODS)
    words = (_NUMBERS.get(word, word) for word in cleaned.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, truths: Sequence[str], *, normalize_unanimous: bool = False) -> float:
    """The official accuracy of one answer, in [0, 1].

    Over every choice of all but one human: the number of those who gave this answer, divided by 3 and at
    most 1; the mean of these.

    Args:
        truths: the humans', ten in VQA v2.
        normalize_unanimous: normalize also where all humans agree, as lmms-eval does and the official
            script does not: there, "Yes" is wrong where they all said "yes".
    """
    if not truths:
        raise ValueError("truths must hold the humans' answers, got none")
    answer, *truths = (re.sub(r"[\n\t]", " ", text).strip() for text in (answer, *truths))
    if normalize_unanimous or len(set(truths)) > 1:
        answer, truths = normalize_vqa_answer(answer), [normalize_vqa_answer(t) for t in truths]
    same = [truth == answer for truth in truths]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)


def vqa_scores(
    answers: Sequence[str],
    truths: Sequence[Sequence[str]],
    answer_types: Sequence[str] | None = None,
    *,
    normalize_unanimous: bool = False,
) -> dict[str, float]:
    """`accuracy` in percent, and `accuracy/TYPE` for each type of answer; see [`vqa_accuracy`]."""
    values = [
        vqa_accuracy(answer, truth, normalize_unanimous=normalize_unanimous)
        for answer, truth in zip(answers, truths, strict=True)
    ]
    means = means_by_group(values, answer_types)
    return {f"accuracy{name}": 100 * mean for name, mean in means.items()}
