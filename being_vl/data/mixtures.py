"""tokenized folders → one data set to train on.

The samples are joined by `datasets.concatenate_datasets`, which maps them from disk. `interleave_datasets`
with probabilities draws sources at random until one runs out; here the number of samples of each source is
exact, and follows from the specification.

A mixture is a YAML file (or the same as a mapping):

    sources:                      # names → folders of being-vl tokenize, relative to the file, or URLs
      base: tokenized/base
      refcoco: tokenized/refcoco
    stages:                       # or `weights`/`shares` at the top, for every stage
      pretrain:
        weights: {base: 1}        # epochs of each source: 0.5 is a random half, 2 is every sample twice
      sft:
        shares: {base: 0.8, refcoco: 0.2}   # of the samples of the result
        samples: 100000              # default: as many as need no sample twice
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..files import is_of, is_remote, place, read_yaml, shown

_MOST_SAMPLES = 10**9
_MOST = 10**18  # of a weight or share: beyond, products and sums are no longer finite
# A number mistyped would fill the memory before a sample is read.
_ANY_SAMPLES, _MOST_TIMES = 1_000_000, 100
_PARTS = ("weights", "shares", "samples")


def load_mixture(
    spec: str | os.PathLike | Mapping[str, Any],
    open_folder: Callable[[Path], tuple[datasets.Dataset, str]],
    *,
    stage: str | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """The samples of a mixture, see `tokenized.load_training_data`.

    Args:
        spec: a YAML file, or what it says.
        open_folder: folder → its samples and the quantizer of its codes.
        stage, seed: see there.
    """
    base, name = Path(), "mixture"
    said: Any = spec
    if not isinstance(spec, Mapping):
        path = Path(spec)
        base, name = path.parent, str(path)
        said = read_yaml(path)
    mixture = _read_mixture(said, stage, name)
    unused = sorted(mixture.sources.keys() - mixture.amounts.keys())
    if unused and "stages" not in said:  # a stage may well leave sources to another one
        warnings.warn(f"{name}: no amount is given for {', '.join(unused)}: left out", stacklevel=2)
    opened = {}
    quantizers: dict[str, str] = {}
    for source in mixture.amounts:
        try:
            opened[source], quantizer = open_folder(_below(base, mixture.sources[source]))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name}: sources: {source}: {error}") from None
        if quantizer:
            quantizers[quantizer] = source
    if len(quantizers) > 1:
        raise ValueError(
            f"{name}: the sources must have codes of one quantizer, got those of "
            + ", ".join(f"{source}: {quantizer}" for quantizer, source in quantizers.items())
        )
    try:
        return mix(
            opened, mixture.amounts, by_share=mixture.by_share, samples=mixture.samples, seed=seed
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _below(base: Path, folder: str) -> Any:
    """A folder relative to the mixture's file, or a place of its own."""
    found = place(folder)
    return found if is_remote(found) else base / found


def mix(
    sources: Mapping[str, datasets.Dataset],
    amounts: Mapping[str, float],
    *,
    by_share: bool = False,
    samples: int | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Samples of several data sets, shuffled; how many of each is exact.

    Args:
        sources: data sets of equal columns.
        amounts: of each source, its weight (epochs) or, with `by_share`, its share of the result; shares
            need not add up to 1.
        by_share: which of the two.
        samples: with `by_share`, samples of the result; by default the most that need no sample twice.
        seed: decides which samples are taken where not all are, and the order.

    Raises:
        ValueError: an amount is not positive, a source is taken more than 100 times over, or nothing is left.
    """
    for name, amount in amounts.items():
        _check_amount(f"the amount of {name!r}", amount)
    if by_share:
        total = sum(amounts.values())
        shares = {name: amount / total for name, amount in amounts.items()}
        if samples is None:
            samples = math.floor(min(len(sources[n]) / share for n, share in shares.items()) + 1e-9)
        counts = _rounded(shares, samples)
    else:
        counts = {name: round(amount * len(sources[name])) for name, amount in amounts.items()}
    if sum(counts.values()) > _MOST_SAMPLES:
        raise ValueError(
            f"the mixture has {sum(counts.values())} samples, more than {_MOST_SAMPLES}"
        )
    for name, count in counts.items():
        size = len(sources[name])
        if count > max(_ANY_SAMPLES, _MOST_TIMES * size):
            raise ValueError(
                f"the mixture takes {count} samples of {name!r}, which has {size}: more than {_MOST_TIMES} times each"
            )
        if not count:
            warnings.warn(
                f"the mixture takes no sample of {name!r}: {amounts[name]} of {len(sources[name])} samples",
                stacklevel=2,
            )
    parts = [
        sources[name].select(_take(len(sources[name]), count, seed, name))
        for name, count in counts.items()
        if count
    ]
    if not parts:
        raise ValueError(f"the mixture has no sample: {counts}")
    joined = datasets.concatenate_datasets(parts)
    order = np.random.default_rng([seed, len(joined)]).permutation(len(joined))
    return joined.select(order)


@dataclass(frozen=True)
class _Mixture:
    sources: dict[str, str]
    amounts: dict[str, float]
    by_share: bool
    samples: int | None


def _read_mixture(spec: Any, stage: str | None, name: str) -> _Mixture:
    if not isinstance(spec, Mapping):
        raise ValueError(f"{name}: must be a mapping with sources, got {type(spec).__name__}")
    _known(spec, ("sources", "stages", *_PARTS), name)
    sources = spec.get("sources")
    if not isinstance(sources, Mapping) or not sources:
        raise ValueError(f"{name}: sources must map names to folders, got {shown(sources)}")
    for source, folder in sources.items():
        if not isinstance(folder, (str, os.PathLike)):
            raise ValueError(f"{name}: sources.{source} must be a folder, got {shown(folder)}")
    parts, where = spec, name
    stages = spec.get("stages")
    if stages is not None:
        if not isinstance(stages, Mapping) or not stages:
            raise ValueError(f"{name}: stages must map names to parts, got {shown(stages)}")
        if any(part in spec for part in _PARTS):
            raise ValueError(f"{name}: give stages, or weights or shares for all of them, not both")
        if stage is None and len(stages) == 1:
            stage = next(iter(stages))
        if stage not in stages:
            raise ValueError(
                f"{name}: stages has no {stage!r}; there are {', '.join(map(str, stages))}"
            )
        parts, where = stages[stage], f"{name}: stages.{stage}"
        if not isinstance(parts, Mapping):
            raise ValueError(f"{where} must have weights or shares, got {shown(parts)}")
        _known(parts, _PARTS, where)
    if ("weights" in parts) == ("shares" in parts):
        raise ValueError(f"{where}: exactly one of weights and shares must be there")
    by_share = "shares" in parts
    field = "shares" if by_share else "weights"
    amounts = parts[field]
    if not isinstance(amounts, Mapping) or not amounts:
        raise ValueError(f"{where}: {field} must map sources to numbers, got {shown(amounts)}")
    for source, amount in amounts.items():
        if source not in sources:
            raise ValueError(
                f"{where}: {field}.{source} is not one of sources: {', '.join(sources)}"
            )
        _check_amount(f"{where}: {field}.{source}", amount)
    samples: Any = parts.get("samples")
    allowed = is_of(samples, int) and by_share and 1 <= samples <= _MOST_SAMPLES
    if samples is not None and not allowed:
        raise ValueError(
            f"{where}: samples must be an integer from 1 to {_MOST_SAMPLES} beside shares, got {shown(samples)}"
        )
    return _Mixture(dict(sources), {s: float(a) for s, a in amounts.items()}, by_share, samples)


def _check_amount(what: str, amount: Any) -> None:
    if not is_of(amount, float) or not 0 < amount <= _MOST:
        raise ValueError(f"{what} must be a positive number up to {_MOST:.0e}, got {shown(amount)}")


def _known(fields: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for field in fields:
        if field not in known:
            raise ValueError(f"{where}: unknown field {shown(field)}; there are {', '.join(known)}")


def _rounded(shares: Mapping[str, float], samples: int) -> dict[str, int]:
    """Whole numbers in these proportions that add up to `samples` (largest remainders first)."""
    counts = {name: math.floor(share * samples) for name, share in shares.items()}
    rest = samples - sum(counts.values())
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name] * samples)
    for name in by_remainder[:rest]:
        counts[name] += 1
    return counts


def _take(size: int, count: int, seed: int, name: str) -> np.ndarray:
    """`count` of `size` samples: all of them as often as that goes, then a random part."""
    digest = hashlib.sha256(name.encode()).digest()
    random = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    whole, part = divmod(count, size)
    return np.concatenate(
        [np.tile(np.arange(size), whole), np.sort(random.permutation(size)[:part])]
    )
