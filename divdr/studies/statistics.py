"""Means over seeds, and paired differences with their confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Values of several seeds.

    Attributes:
        n: how many.
        mean: their mean.
        std: sample standard deviation (n − 1); NaN for one value.
    """

    n: int
    mean: float
    std: float


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences.

    Attributes:
        n: pairs.
        mean: mean difference.
        low: lower end of the confidence interval; NaN for one pair.
        high: upper end.
    """

    n: int
    mean: float
    low: float
    high: float


def summarise(values: Sequence[float]) -> Summary:
    """Mean and standard deviation.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("nothing to summarise")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Summary(len(values), float(np.mean(values)), std)


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> Difference:
    """How much b exceeds a, by Student's t over the pairs' differences.

    Args:
        a: values of n pairs.
        b: values of the same pairs.
        confidence: of the two-sided interval.

    Raises:
        ValueError: there is no pair, or the numbers of values differ.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} values do not make pairs")
    differences = np.subtract(np.asarray(b, dtype=float), np.asarray(a, dtype=float))
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return Difference(1, mean, math.nan, math.nan)
    half = stats.sem(differences) * stats.t.ppf((1 + confidence) / 2, n - 1)
    return Difference(n, mean, float(mean - half), float(mean + half))
