"""Numbers with their uncertainty: means and ratios over pictures, with standard errors clustered by prompt.

Pictures of one prompt resemble each other, so they are not independent observations; prompts are. With a_i and b_i the
numerator and denominator of picture i, c a cluster of pictures and C the number of clusters:

    R = sum_i a_i / sum_i b_i                                   (b_i = 1: the mean)
    t_c = sum_{i in c} (a_i - R b_i)
    SE(R)^2 = C / (C - 1) * sum_c t_c^2 / (sum_i b_i)^2

This is the linearised variance of a ratio (Cochran, Sampling Techniques, section 6.3) with clusters as sampling units. With clusters of
equal size and b_i = 1 it is the standard error of the mean of the clusters' means; with one picture per cluster, the usual one.

A value that could not be had is NaN (or None). It is left out of the estimate and counted in ``failed``, never taken for 0.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence, Sized
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sldcore.errors import ConfigurationError

Numbers: TypeAlias = NDArray[np.float64]
Clusters: TypeAlias = Sequence[Hashable]
"""For each picture what it is clustered by: its prompt, or anything that is equal for pictures of one prompt."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its standard error.

    ``value`` is NaN if nothing was measured, ``error`` if there are fewer than two clusters to learn it from. ``n`` pictures in ``clusters``
    clusters were measured; ``failed`` more could not be.
    """

    value: float
    error: float
    n: int
    clusters: int
    failed: int = 0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Normal confidence interval; NaN where the error is unknown."""
        reach = _quantile(level) * self.error
        return self.value - reach, self.value + reach


@dataclass(frozen=True, slots=True)
class Rate(Estimate):
    """A share of pictures, 0 to 1."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval on the effective number of pictures: value (1 - value) / error^2, at most ``n``.

        At a share of 0 or 1, or with a single cluster, the standard error says nothing; there, as many pictures count as there are
        clusters, which errs on the wide side. So no flag in 100 prompts is "0 to 0.037", not "0 to 0".
        """
        if not self.n:
            return math.nan, math.nan
        z, p = _quantile(level), self.value
        size = p * (1 - p) / self.error**2 if self.error > 0 else float(self.clusters)
        size = max(min(size, float(self.n)), 1.0)
        middle = (p + z * z / (2 * size)) / (1 + z * z / size)
        reach = z / (1 + z * z / size) * math.sqrt(p * (1 - p) / size + z * z / (4 * size * size))
        return max(middle - reach, 0.0), min(middle + reach, 1.0)


def mean(values: ArrayLike, clusters: Clusters) -> Estimate:
    """Mean over pictures.

    Args:
        values: One number per picture, [N]; NaN or None where there is none.
        clusters: What each picture is clustered by, [N].

    Raises:
        ConfigurationError: the lengths differ, or a value is infinite.
    """
    numbers = as_numbers(values, "values")
    return ratio(numbers, np.where(np.isnan(numbers), np.nan, 1.0), clusters)


def ratio(numerators: ArrayLike, denominators: ArrayLike, clusters: Clusters) -> Estimate:
    """Sum of the numerators by sum of the denominators, both [N]; a picture that lacks one of them is left out.

    Raises:
        ConfigurationError: the lengths differ, a value is infinite, or the denominators sum to nothing.
    """
    a, b = as_numbers(numerators, "numerators"), as_numbers(denominators, "denominators")
    same_length(numerators=a, denominators=b, clusters=clusters)
    there = ~(np.isnan(a) | np.isnan(b))
    failed = int((~there).sum())
    if not there.any():
        return Estimate(math.nan, math.nan, 0, 0, failed)
    a, b, numbers = a[there], b[there], cluster_numbers(clusters)[there]
    whole = float(b.sum())
    if whole == 0:
        raise ConfigurationError("the denominators sum to 0, so there is no ratio; leave such pictures out")
    value = float(a.sum()) / whole
    present = len(np.unique(numbers))
    residuals = np.bincount(numbers, weights=a - value * b)  # [C]; absent clusters add 0
    error = (
        math.sqrt(present / (present - 1) * float(residuals @ residuals)) / abs(whole)
        if present > 1
        else math.nan
    )
    return Estimate(value, error, int(there.sum()), present, failed)


def cluster_numbers(clusters: Clusters) -> NDArray[np.intp]:
    """The clusters numbered from 0 in order of appearance, [N]."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.intp)


def as_numbers(values: ArrayLike, what: str) -> Numbers:
    """Values as float64, [N]; None becomes NaN.

    Raises:
        ConfigurationError: they are no numbers, not one-dimensional, or infinite.
    """
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise ConfigurationError(f"{what} must be numbers, one per picture: {problem}") from None
    if numbers.ndim != 1:
        raise ConfigurationError(
            f"{what} must be one number per picture, got an array of shape {numbers.shape}"
        )
    if np.isinf(numbers).any():
        raise ConfigurationError(
            f"{what} must be finite, or NaN where there is none; number {int(np.isinf(numbers).argmax())} is infinite"
        )
    return numbers


def as_flags(flags: ArrayLike) -> Numbers:
    """Verdicts as 1 (flagged), 0 (not) and NaN (the detector failed), [N].

    Raises:
        ConfigurationError: something else is among them.
    """
    numbers = as_numbers(flags, "flags")
    odd = ~(np.isnan(numbers) | (numbers == 0) | (numbers == 1))
    if odd.any():
        raise ConfigurationError(
            f"flags must be True, False, or None where the detector failed; number {int(odd.argmax())} is {numbers[odd][0]:g}"
        )
    return numbers


def same_length(**parts: Sized) -> None:
    """Raise ``ConfigurationError`` unless all parts are equally long."""
    if len({len(part) for part in parts.values()}) > 1:
        sizes = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        raise ConfigurationError(f"each picture needs one of each, got {sizes}")


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ConfigurationError(f"level must lie between 0 and 1, got {level}; 0.95 is usual")
    return NormalDist().inv_cdf((1 + level) / 2)
