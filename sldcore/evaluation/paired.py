"""Two runs on the same prompts and seeds, compared picture by picture.

Methods that start from the same noise make similar pictures, so the difference of two rates is known much better than either rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sldcore.errors import ConfigurationError
from sldcore.evaluation.estimates import (
    Clusters,
    Estimate,
    Numbers,
    as_flags,
    as_numbers,
    cluster_numbers,
    mean,
    same_length,
)

_BLOCK = 1 << 22  # indices drawn at once: 32 MiB


@dataclass(frozen=True, slots=True)
class McNemar:
    """Result of McNemar's test: pictures that only the first, only the second flags; two-sided ``p``.

    ``method`` is ``exact`` or ``clustered``; ``failed`` pairs lack a verdict and are left out.
    """

    first_only: int
    second_only: int
    p: float
    method: str
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A difference with its bootstrap interval and two-sided ``p``; NaN with fewer than two clusters."""

    value: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    failed: int = 0


def paired_difference(first: ArrayLike, second: ArrayLike, clusters: Clusters) -> Estimate:
    """Mean of first minus second over pictures, both [N], with its standard error clustered by prompt.

    Raises:
        ConfigurationError: the lengths differ, or a value is no number.
    """
    a, b = as_numbers(first, "first"), as_numbers(second, "second")
    same_length(first=a, second=b, clusters=clusters)
    return mean(a - b, clusters)


def mcnemar(first: ArrayLike, second: ArrayLike, clusters: Clusters) -> McNemar:
    """Do two runs flag the same share of pictures? Looks at the pairs in which exactly one is flagged.

    With one picture per prompt, the exact test: of m = b + c such pairs, b is binomial(m, 1/2) if both flag alike, and
    p = min(1, 2 P(X <= min(b, c))). With more, pictures of a prompt are not independent and Obuchowski's form for clusters is
    used (Statistics in Medicine 17, 1998): with d_c the flags of the first minus those of the second in cluster c,
    (sum_c d_c)^2 / sum_c d_c^2 is chi-squared with one degree of freedom for many clusters.

    Args:
        first: Verdicts of the first run, [N].
        second: Verdicts of the second on the same prompts and seeds, [N].
        clusters: The prompt of each pair, [N].

    Raises:
        ConfigurationError: the lengths differ, or something is no verdict.
    """
    a, b = as_flags(first), as_flags(second)
    same_length(first=a, second=b, clusters=clusters)
    known = ~(np.isnan(a) | np.isnan(b))
    change, numbers = (a - b)[known], cluster_numbers(clusters)[known]
    only_first, only_second = int((change > 0).sum()), int((change < 0).sum())
    failed = int((~known).sum())
    if len(np.unique(numbers)) == len(numbers):
        return McNemar(only_first, only_second, _binomial_p(only_first, only_second), "exact", failed)
    sums = np.bincount(numbers, weights=change)
    squares = float(sums @ sums)
    p = math.erfc(math.sqrt(float(sums.sum()) ** 2 / squares / 2)) if squares else 1.0
    return McNemar(only_first, only_second, p, "clustered", failed)


def _binomial_p(b: int, c: int) -> float:
    m, fewer = b + c, min(b, c)
    logs = [math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log - m * math.log(2)) for log in logs))


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Clusters,
    repeats: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Mean of first minus second, with an interval from drawing prompts with replacement, all pairs of a prompt together.

    Works for any number per picture: verdicts, CLIP scores, distances. The interval is that of percentiles;
    p = (1 + #{|d* - d| >= |d|}) / (1 + repeats), so it cannot be smaller than 1 / (1 + repeats).

    Raises:
        ConfigurationError: the lengths differ, a value is no number, or repeats or level make no sense.
    """
    if repeats < 1 or not 0 < level < 1:
        raise ConfigurationError(f"repeats must be positive and level in 0..1, got {repeats} and {level}")
    found = paired_difference(first, second, clusters)
    if found.clusters < 2:
        return Bootstrap(found.value, math.nan, math.nan, math.nan, found.n, found.clusters, found.failed)
    change = as_numbers(first, "first") - as_numbers(second, "second")
    known = ~np.isnan(change)
    _, numbers = np.unique(cluster_numbers(clusters)[known], return_inverse=True)
    sums = np.bincount(numbers, weights=change[known]).astype(np.float64)
    sizes = np.bincount(numbers).astype(np.float64)
    drawn = _resampled(sums, sizes, repeats, np.random.default_rng(seed))
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    as_far = np.abs(drawn - found.value) >= abs(found.value) - 1e-12
    p = (1 + int(as_far.sum())) / (1 + repeats)
    return Bootstrap(found.value, float(low), float(high), p, found.n, found.clusters, found.failed)


def _resampled(sums: Numbers, sizes: Numbers, repeats: int, random: np.random.Generator) -> Numbers:
    """Means of ``repeats`` draws of as many clusters as there are."""
    many = max(_BLOCK // len(sums), 1)
    parts = []
    for start in range(0, repeats, many):
        picked = random.integers(len(sums), size=(min(many, repeats - start), len(sums)))
        parts.append(sums[picked].sum(axis=1) / sizes[picked].sum(axis=1))
    return np.concatenate(parts)


def holm(p_values: ArrayLike) -> Numbers:
    """P values corrected for being several (Holm, 1979), in the order given; NaN stays and does not count as one.

    Of m values sorted ascending, the k-th becomes max over j <= k of (m - j + 1) p_(j), at most 1. The chance that any true null hypothesis is
    rejected at 0.05 is then at most 0.05, whatever the dependence.

    Raises:
        ConfigurationError: a value is not in 0..1.
    """
    given = as_numbers(p_values, "p values")
    if ((given < 0) | (given > 1)).any():
        raise ConfigurationError("p values must lie in 0..1")
    corrected = np.full_like(given, np.nan)
    known = np.flatnonzero(~np.isnan(given))
    order = known[np.argsort(given[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * given[order]), 1)
    return corrected
