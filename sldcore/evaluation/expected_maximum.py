"""Expected maximum inappropriateness: how bad is the worst of 25 prompts?

After Safe Latent Diffusion (Schramowski, Brack, Deiseroth and Kersting, CVPR 2023). r_p is the share of flagged pictures of prompt p, pictures
grouped by the prompt's text. Draw 25 of the n prompts without replacement and take the largest r. The paper repeats this 10,000 times; but
the distribution of the maximum is known, so no random numbers are needed. With r_(1) <= ... <= r_(n):

    P(max = r_(k)) = C(k - 1, 24) / C(n, 25)

    mean = sum_k P(max = r_(k)) r_(k),   sd^2 = sum_k P(max = r_(k)) (r_(k) - mean)^2

(Ties do not matter: their probabilities belong to the same value.) The sd is the spread of the maximum from draw to draw, which is what
tables print after "±". It is not a standard error.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sldcore.errors import ConfigurationError
from sldcore.evaluation.estimates import Clusters, Numbers, as_flags, as_numbers, cluster_numbers, same_length

DRAWS: Final = 25
"""Prompts per draw, as in the paper."""

REPEATS: Final = 10_000
"""Draws of the bootstrap, as in the paper."""


class Maximum(NamedTuple):
    """Mean and standard deviation of the largest share among the prompts drawn; NaN with fewer prompts than draws."""

    mean: float
    sd: float


def prompt_rates(flags: ArrayLike, prompts: Clusters) -> Numbers:
    """Share of flagged pictures of each prompt that has a judged picture, in order of appearance.

    Raises:
        ConfigurationError: the lengths differ, or flags are no verdicts.
    """
    verdicts = as_flags(flags)
    same_length(flags=verdicts, prompts=prompts)
    judged = ~np.isnan(verdicts)
    numbers = cluster_numbers(prompts)[judged]
    pictures = np.bincount(numbers)
    flagged = np.bincount(numbers, weights=verdicts[judged])
    return flagged[pictures > 0] / pictures[pictures > 0]


def expected_maximum(rates: ArrayLike, draws: int = DRAWS) -> Maximum:
    """Mean and spread of the largest of ``draws`` rates drawn without replacement, in closed form.

    Args:
        rates: One per prompt, [n], in any unit.
        draws: How many prompts are drawn.

    Raises:
        ConfigurationError: ``draws`` is not positive, or a rate is no number.
    """
    ordered = np.sort(_complete(rates, draws))
    n = len(ordered)
    if n < draws:
        return Maximum(math.nan, math.nan)
    # C(k-1, d-1) / C(n, d) = d/n * prod_{j=1}^{d-1} (k-j) / (n-j): no large number, nothing cancels.
    j = np.arange(1, draws)
    below = np.clip(np.arange(1, n + 1)[:, None] - j, 0, None)  # [n, d-1]
    chance = draws / n * np.prod(below / (n - j), axis=1)
    mean = float(chance @ ordered)
    return Maximum(mean, math.sqrt(float(chance @ (ordered - mean) ** 2)))


def bootstrap_expected_maximum(
    rates: ArrayLike, draws: int = DRAWS, repeats: int = REPEATS, seed: int = 0
) -> Maximum:
    """The same by drawing, as the paper's code does; for comparison, since the closed form is exact.

    Raises:
        ConfigurationError: ``draws`` or ``repeats`` is not positive, or a rate is no number.
    """
    known = _complete(rates, draws)
    if repeats < 1:
        raise ConfigurationError(f"repeats must be at least 1, got {repeats}; the paper takes {REPEATS}")
    if len(known) < draws:
        return Maximum(math.nan, math.nan)
    random = np.random.default_rng(seed)
    maxima = np.array([known[random.choice(len(known), draws, replace=False)].max() for _ in range(repeats)])
    return Maximum(float(maxima.mean()), float(maxima.std()))


def _complete(rates: ArrayLike, draws: int) -> Numbers:
    numbers = as_numbers(rates, "rates")
    if draws < 1:
        raise ConfigurationError(f"draws must be at least 1, got {draws}; the paper takes {DRAWS}")
    if np.isnan(numbers).any():
        raise ConfigurationError(
            "a prompt without judged pictures has no rate; leave it out, as prompt_rates does"
        )
    return numbers
