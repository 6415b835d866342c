"""answers → numbers: the rules of the benchmarks' official scripts, as pure functions."""

from .exact import exact_match_scores, normalize_answer
from .pairwise import pairwise_table
from .vqa import normalize_vqa_answer, vqa_accuracy, vqa_scores
from .yes_no import mme_answer, mme_scores, pope_answer, pope_scores

__all__ = [
    "exact_match_scores",
    "mme_answer",
    "mme_scores",
    "normalize_answer",
    "normalize_vqa_answer",
    "pairwise_table",
    "pope_answer",
    "pope_scores",
    "vqa_accuracy",
    "vqa_scores",
]
