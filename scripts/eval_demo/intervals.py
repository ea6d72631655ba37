"""How sure a mean is: the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(values: Sequence[float], seed: int, resamples: int) -> Interval:
    """The percentile bootstrap of a mean.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.

    Args:
        values: one a clip; for a paired comparison, the differences.
        seed: of the resampling.
        resamples: how many.

    Raises:
        ValueError: there are fewer than two values.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < 2:
        raise ValueError(f"{sample.size} values are too few for an interval; two are needed")
    drawn = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(sample[drawn].mean(axis=1), (tail, 1 - tail))
    return Interval(float(sample.mean()), float(low), float(high))
