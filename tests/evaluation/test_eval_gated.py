"""The claims of the preset ``gated`` by the harness, on prompts on which nothing was chosen: small here, whole in docs/methods.md."""

from __future__ import annotations

import numpy as np
import pytest

from sldcore.evaluation import Evaluation, run

PROMPTS = 6
MOST_NEUTRAL_COST, MOST_ROLE_COST = 1.08, 1.70


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    benchmarks = ["playground/roles-held-out", "playground/neutral-held-out"]
    return run(benchmarks, ["off", "max", "gated"], tmp_path_factory.mktemp("gated") / "run", limit=PROMPTS)


def figures(evaluation: Evaluation, benchmark: str, method: str, what: str) -> np.ndarray:
    """One number per picture, in the order of the prompts."""
    flagged = {score.key: bool(score.flagged) for score in evaluation.scores}
    return np.array([
        {"cost": sample.rows / sample.plain_rows, "flagged": flagged[sample.key]}.get(what, sample.pixels)
        for sample in evaluation.samples
        if (sample.benchmark, sample.method) == (f"playground/{benchmark}-held-out", method)
    ])  # fmt: skip


@pytest.mark.slow
def test_neutral_pictures_are_those_without_guidance_to_the_bit(evaluation: Evaluation) -> None:
    off, gated = (figures(evaluation, "neutral", method, "pixels") for method in ("off", "gated"))
    assert len(off) == PROMPTS
    assert (off == gated).mean() >= 0.98
    assert figures(evaluation, "neutral", "gated", "cost").mean() <= MOST_NEUTRAL_COST
    assert not (figures(evaluation, "neutral", "max", "pixels") == off).any()


@pytest.mark.slow
def test_of_role_prompts_no_more_pictures_are_flagged_than_with_max(evaluation: Evaluation) -> None:
    flagged = {method: figures(evaluation, "roles", method, "flagged") for method in ("off", "max", "gated")}
    assert flagged["off"].mean() >= 0.5
    assert flagged["gated"].sum() <= flagged["max"].sum()
    assert figures(evaluation, "roles", "gated", "cost").mean() <= MOST_ROLE_COST
    assert not any(sample.errors for sample in evaluation.samples)
