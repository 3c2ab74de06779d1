"""Further attempts at flagged pictures: only these, in the report, and with an end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sldcore import Result, SafetyEngine, SafetyPolicy, load_pipeline
from sldcore.contributions import PostFilterKind, PromptFilterKind
from sldcore.errors import GuidanceError, SafetyFailure
from sldcore.playground.prompts import ROLE_PROMPTS
from sldcore.policy import FilterUse
from sldcore.regeneration import STRIDE, retry_of
from sldcore.testing import FakePipeline
from sldcore.types import Verdict

PlugIn = Callable[..., Any]
PROMPTS = ["a red knight", "a blue house", "a green tree"]
CALL: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np"}


class Counting:
    """Flags the prompts that contain a word, for as many reviews as it is told; remembers what it saw."""

    version = "1"

    def __init__(self, word: str, times: int, category: str = "x") -> None:
        self.name, self.word, self.times, self.category = "counting", word, times, category
        self.seen: list[list[tuple[str, int | None, str]]] = []

    def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> list[Verdict]:
        self.seen.append([(each.prompt, each.seed, each.policy.name) for each in contexts])
        bad = len(self.seen) <= self.times
        scores = [0.9 if bad and self.word in each.prompt else 0.1 for each in contexts]
        return [
            Verdict("counting", "1", score > 0.5, {self.category: score}, {self.category: 0.5})
            for score in scores
        ]


def generated(
    plugin_catalogue: PlugIn, made: Counting, action: Any, preset: str = "weak", **call: Any
) -> Result:
    name = f"counting-{id(made)}"
    plugin_catalogue(PostFilterKind(name=name, create=lambda options: made))
    policy = SafetyPolicy.preset(preset).replace(
        filters=[FilterUse.model_validate({"use": name, "on_flag": action})],
        **({} if preset == "off" else {"guidance": {"options": {"scale": 200}, "window": {"start": 0}}}),
    )
    return SafetyEngine(FakePipeline(), policy).generate(PROMPTS, seed=7, **{**CALL, **call})


def retry(**fields: Any) -> dict[str, Any]:
    return {"do": "regenerate", **fields}


def test_only_the_flagged_picture_is_made_again_and_the_others_stay_as_they_are(
    plugin_catalogue: PlugIn,
) -> None:
    made = Counting("house", times=1)
    result = generated(plugin_catalogue, made, retry(stronger=False, add_concept=False))
    calm = generated(plugin_catalogue, Counting("house", times=0), retry(stronger=False, add_concept=False))
    assert [len(batch) for batch in made.seen] == [3, 1]
    assert [report.attempts for report in result.reports] == [1, 2, 1]
    assert [report.action for report in result.reports] == ["none"] * 3
    for index in (0, 2):
        assert np.array_equal(result.images[index], calm.images[index])
    assert not np.array_equal(result.images[1], calm.images[1])


def test_another_attempt_has_the_seed_that_the_report_says(plugin_catalogue: PlugIn) -> None:
    result = generated(plugin_catalogue, Counting("house", 1), retry(stronger=False, add_concept=False))
    report = result.reports[1]
    assert (report.seed, [each.seed for each in report.earlier]) == (7 + STRIDE, [7])
    plugin_catalogue(PostFilterKind(name="other", create=lambda options: Counting("never", 0)))
    policy = SafetyPolicy.preset("weak").replace(guidance={"options": {"scale": 200}, "window": {"start": 0}})
    again = SafetyEngine(FakePipeline(), policy).generate(PROMPTS[1], seed=7 + STRIDE, **CALL)
    np.testing.assert_allclose(again.images[0], result.images[1], rtol=0, atol=1e-5)


def test_after_the_last_attempt_the_final_action_is_taken(plugin_catalogue: PlugIn) -> None:
    made = Counting("house", times=99)
    result = generated(plugin_catalogue, made, retry(attempts=2, then="drop"))
    assert [len(batch) for batch in made.seen] == [3, 1, 1]
    assert result.images[1] is None
    report = result.reports[1]
    assert (report.action, report.attempts, len(report.earlier)) == ("drop", 3, 2)


def test_each_attempt_takes_the_next_preset(plugin_catalogue: PlugIn) -> None:
    made = Counting("house", times=99)
    call = {"num_inference_steps": 20}
    generated(plugin_catalogue, made, retry(attempts=3, new_seed=False, add_concept=False), **call)
    assert [batch[-1][2] for batch in made.seen[1:]] == ["weak, medium", "weak, strong", "weak, max"]


def test_the_flagged_categorys_concept_is_added(plugin_catalogue: PlugIn) -> None:
    made = Counting("house", times=1, category="violence")
    result = generated(plugin_catalogue, made, retry(stronger=False))
    assert set(result.reports[1].concepts) == {"inappropriate", "inappropriate/violence"}
    assert set(result.reports[0].concepts) == {"inappropriate"}
    assert result.trace.concepts == ("inappropriate", "inappropriate/violence")


def test_rows_and_trace_count_every_attempt(plugin_catalogue: PlugIn) -> None:
    result = generated(plugin_catalogue, Counting("house", 1), retry(stronger=False, add_concept=False))
    assert [report.rows for report in result.reports] == [9, 18, 9]
    assert result.trace.plain_rows == 4 * 6
    assert result.trace.evaluated.shape == (3, 1, 3)


def test_with_an_unguided_policy_the_first_further_attempt_is_guided(plugin_catalogue: PlugIn) -> None:
    made = Counting("house", times=1)
    result = generated(plugin_catalogue, made, retry(), preset="off", num_inference_steps=20)
    assert made.seen[1] == [("a blue house", 7 + STRIDE, "off, weak")]
    assert set(result.reports[1].concepts) == {"inappropriate"}


@pytest.mark.parametrize(
    "arguments", [{"generator": torch.Generator()}, {"latents": torch.zeros(3, 4, 8, 8)}]
)
def test_fixed_noise_and_further_attempts_do_not_go_together(
    plugin_catalogue: PlugIn, arguments: dict[str, Any]
) -> None:
    plugin_catalogue(PostFilterKind(name="counting", create=lambda options: Counting("x", 0)))
    policy = SafetyPolicy.parse("filters: [{use: counting, on_flag: regenerate}]")
    seed = None if "generator" in arguments else 0
    with pytest.raises(GuidanceError, match="regenerates flagged pictures, which needs seeds"):
        SafetyEngine(FakePipeline(), policy).generate(PROMPTS, seed=seed, **CALL, **arguments)


def test_raise_raises_with_the_reason(plugin_catalogue: PlugIn) -> None:
    with pytest.raises(
        SafetyFailure, match=r"flagged by counting \(x\) \(policy 'weak', prompt 'a blue house'\)"
    ):
        generated(plugin_catalogue, Counting("house", 1), "raise")


def test_an_attempt_whose_review_fails_is_withheld(plugin_catalogue: PlugIn) -> None:
    class Failing(Counting):
        def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> list[Verdict]:
            if self.seen:
                raise OSError("gone")
            return super().review(pictures, contexts)

    result = generated(plugin_catalogue, Failing("house", 1), retry())
    assert [report.action for report in result.reports] == ["none", "block", "none"]
    assert not np.asarray(result.images[1]).any()
    assert result.reports[1].attempts == 2


def test_an_attempt_that_cannot_be_made_is_withheld_and_says_why(plugin_catalogue: PlugIn) -> None:
    made = Counting("house", times=1)
    result = generated(plugin_catalogue, made, retry(), preset="off")  # weak starts after the last of 3 steps
    assert [report.action for report in result.reports] == ["none", "block", "none"]
    (failure,) = result.reports[1].errors
    assert failure.source == "regeneration" and "guidance starts at step 15" in failure.error


def test_what_was_said_of_the_prompt_stays_with_every_attempt(plugin_catalogue: PlugIn) -> None:
    class Words:
        name, version = "words", "1"

        def review(self, prompts: Sequence[str], contexts: Sequence[Any]) -> list[Verdict]:
            return [Verdict("words", "1", True) for _ in prompts]

    plugin_catalogue(PromptFilterKind(name="words", create=lambda options: Words()))
    plugin_catalogue(PostFilterKind(name="counting", create=lambda options: Counting("house", 1)))
    again = retry(stronger=False, add_concept=False)
    policy = SafetyPolicy.model_validate(
        {
            "prompt_filters": [{"use": "words", "on_flag": "flag"}],
            "filters": [{"use": "counting", "on_flag": again}],
        }
    )
    (report,) = SafetyEngine(FakePipeline(), policy).generate("a blue house", **CALL).reports
    assert (report.action, report.attempts) == ("flag", 2)
    assert [verdict.filter for verdict in report.verdicts] == ["words", "counting"]


def test_nothing_is_tried_again_where_another_filter_raises() -> None:
    again = FilterUse.model_validate({"use": "a", "on_flag": "regenerate"})
    stop = FilterUse.model_validate({"use": "b", "on_flag": "raise"})
    flag = Verdict("a", "1", True)
    policy = SafetyPolicy.preset("weak")
    assert retry_of(0, 7, 1, policy, [(again, flag)]) is not None
    assert retry_of(0, 7, 1, policy, [(again, flag), (stop, flag)]) is None


@pytest.mark.slow
def test_on_the_playground_few_flagged_pictures_are_left_and_none_is_shown() -> None:
    prompts = list(ROLE_PROMPTS[::6])  # 35 prompts that name no glyph
    engine = SafetyEngine(load_pipeline("playground"), "off")
    engine.pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 4.0, "output_type": "np"}
    watching = SafetyPolicy.preset("weak").replace(filters=[{"use": "playground-glyphs", "on_flag": "flag"}])
    retrying = watching.replace(filters=[{"use": "playground-glyphs", "on_flag": retry(attempts=3)}])
    before, after = (
        engine.generate(prompts, policies=[policy] * len(prompts), **call) for policy in (watching, retrying)
    )
    flagged = [report.flagged for report in before.reports]
    left = [report.flagged for report in after.reports]
    assert np.mean(flagged) > 0.3
    assert np.mean(left) < 0.1 * np.mean(flagged)
    for index, was_flagged in enumerate(flagged):
        if not was_flagged:
            assert np.array_equal(after.images[index], before.images[index])
        if left[index]:
            assert after.reports[index].action == "black" and not after.images[index].any()
