"""merge rules: their names, their limits, and the checks of a list of them.

Source: point 2 of the law of the image BPE. The limits bound what a file may make a reader allocate; whoever
learns rules must keep to them too, or what it learned cannot be saved.
"""

from typing import Any

import numpy as np

MERGE_RULES = ("shape", "pair")  # the law; the paper's Algorithm 4.1, whose rules forget the offset
RULE_FIELDS = ("first", "second", "row_offset", "col_offset")
MAX_CODEBOOK_SIZE = 1 << 20
MAX_MERGES = 1 << 17
MAX_TOKEN_CELLS = 1 << 14
MAX_TOTAL_CELLS = 1 << 22  # over all merges: bounds memory against rules that double at every rank
MAX_OFFSET = MAX_TOKEN_CELLS - 1  # of a row, and of a column to either side


def as_rules(value: Any, codebook_size: int, columns: tuple[str, ...], field: str) -> np.ndarray:
    """Rules as int64 (M, len(columns)), whose first two columns are tokens that exist at that rank.

    Raises:
        ValueError: naming the rule, the column, what is allowed and the value.
    """
    rules = np.asarray(value)
    if rules.size == 0:
        rules = np.zeros((0, len(columns)), dtype=np.int64)
    if rules.ndim != 2 or rules.shape[1] != len(columns) or rules.dtype.kind not in "iu":
        raise ValueError(
            f"{field} must be integers of shape (M, {len(columns)}), got {rules.dtype} {rules.shape}"
        )
    if len(rules) > MAX_MERGES:
        raise ValueError(f"{field} has {len(rules)} rules; at most {MAX_MERGES} are allowed")
    rules = rules.astype(np.int64)
    known = codebook_size + np.arange(len(rules))
    bad = np.argwhere((rules[:, :2] < 0) | (rules[:, :2] >= known[:, None]))
    if len(bad):
        r, column = bad[0]
        part = rules[r, column]
        why = "an id is at least 0" if part < 0 else f"only {known[r]} tokens exist at that rank"
        raise ValueError(f"{field}[{r}].{columns[column]} is {part}, but {why}")
    return rules


def check_merges(merges: np.ndarray, merge_rule: str) -> None:
    """Check the offsets of int64 rules (M, 4), and that no rule is there twice; errors as of `as_rules`."""
    if merge_rule == "pair":
        bad = np.argwhere(merges[:, 2:] != 0)
        if len(bad):
            r, column = bad[0][0], bad[0][1] + 2
            raise ValueError(
                f'merges[{r}].{RULE_FIELDS[column]} is {merges[r, column]}, but is 0 where merge_rule is "pair"'
            )
    else:
        _check_offsets(merges)
    _check_distinct(merges)


def _check_offsets(merges: np.ndarray) -> None:
    row, col = merges[:, 2], merges[:, 3]
    for column, low in ((2, 0), (3, -MAX_OFFSET)):
        offset = merges[:, column]
        bad = np.flatnonzero((offset < low) | (offset > MAX_OFFSET))
        if len(bad):
            r = bad[0]
            raise ValueError(
                f"merges[{r}].{RULE_FIELDS[column]} is {offset[r]}, but must lie in [{low}, {MAX_OFFSET}]"
            )
    bad = np.flatnonzero((row == 0) & (col <= 0))
    if len(bad):
        r = bad[0]
        raise ValueError(
            f"merges[{r}].col_offset is {col[r]} at row_offset 0, but must be positive there: "
            "first's anchor comes before second's in raster order"
        )


def _check_distinct(merges: np.ndarray) -> None:
    order = np.lexsort(merges.T[::-1])
    same = np.flatnonzero((merges[order[1:]] == merges[order[:-1]]).all(axis=1))
    if len(same):
        pair = min((int(order[i + 1]), int(order[i])) for i in same)  # lexsort is stable
        raise ValueError(f"merges[{pair[0]}] repeats merges[{pair[1]}]; a rule is learned once")
