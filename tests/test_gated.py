"""Gates in the engine: who is made again, what that costs, and what stays as it is without guidance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_gated import CALL, CLOSE, PROMPTS, STEPS, gated, made, pipeline

from sldcore import Result, SafetyEngine, guard
from sldcore.concepts import load_pack
from sldcore.contributions import ConceptProvider, GuidanceMethod, PostFilterKind
from sldcore.errors import GuidanceError, SafetyFailure
from sldcore.guidance.sld import SLD
from sldcore.policy import ConceptUse, FilterUse, Options
from sldcore.types import Verdict

CATEGORIES = 7


def between(result: Result) -> tuple[float, int]:
    """A threshold below which all samples but one lie, and that one."""
    highest = [max(report.probes[0].relevance.values()) for report in result.reports]
    order = np.argsort(highest)
    return (highest[order[-1]] + highest[order[-2]]) / 2, int(order[-1])


def test_where_nothing_is_found_the_pictures_are_those_without_guidance_to_the_bit() -> None:
    looked, off = made(gated(1.0)), made("off")
    assert np.array_equal(np.stack(looked.images), np.stack(off.images))
    for report in looked.reports:
        assert (report.rows, report.plain_rows) == (2 * STEPS + CATEGORIES, 2 * STEPS)
        assert [probe.guides for probe in report.probes] == [False]
        assert set(report.probes[0].relevance) == {
            f"inappropriate/{each.id.rpartition('/')[2]}" for each in load_pack("inappropriate").concepts
        }
    assert not looked.trace.applied.any()
    assert looked.trace.rows == sum(report.rows for report in looked.reports)


def test_what_is_found_is_made_again_as_the_method_makes_it_alone() -> None:
    found, alone = made(gated(-1.0)), made("max")
    assert np.abs(np.stack(found.images) - np.stack(alone.images)).max() < CLOSE
    for report in found.reports:
        first, second = 2 * 3 + CATEGORIES, 3 * STEPS
        assert (report.rows, report.plain_rows) == (first + second, 2 * STEPS)
        assert report.action == "none"
        assert report.errors == ()
        assert report.attempts == 1
        assert report.probes[0].restarts
        assert report.policy == "gated"
    assert found.trace.rows == sum(report.rows for report in found.reports)


def test_in_a_batch_only_what_is_found_is_made_again() -> None:
    threshold, chosen = between(made(gated(1.0)))
    mixed, off, alone = made(gated(threshold)), made("off"), made("max")
    for index, report in enumerate(mixed.reports):
        reference = alone if index == chosen else off
        assert np.abs(mixed.images[index] - reference.images[index]).max() < CLOSE
        again = 2 * 3 + CATEGORIES + 3 * STEPS
        assert report.rows == (again if index == chosen else 2 * STEPS + CATEGORIES)


def test_own_rows_of_a_picture_that_is_made_again_are_no_longer_evaluated() -> None:
    threshold, chosen = between(made(gated(1.0)))
    pipe = pipeline()
    sizes: list[int] = []
    forward = pipe.unet.forward

    def counted(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(sample))
        return forward(sample, *args, **kwargs)

    pipe.unet.forward = counted
    result = SafetyEngine(pipe, gated(threshold)).generate(PROMPTS, seed=7, **CALL)
    assert sizes == [6, 6, 6, 3 * CATEGORIES, 4, 4, 4, *[3] * STEPS]
    assert sum(sizes) == sum(report.rows for report in result.reports)
    assert result.reports[chosen].probes[0].restarts


def test_a_probe_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    own = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        if tensor.is_floating_point():
            waits.append(tensor.numel())
        return own(tensor)

    @contextmanager
    def counting() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "tolist", counted)
            yield

    pipe = pipeline()
    engine = SafetyEngine(pipe, gated(1.0, probes=(1, 3)))
    forward = pipe.unet.forward
    inside: list[list[int]] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        inside.append(list(waits))
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", watched)
    with counting():
        engine.generate(PROMPTS, seed=7, **CALL)
    between_first_and_last_step = len(waits) and waits[len(inside[0]) : len(inside[-1])]
    assert between_first_and_last_step == [3 * CATEGORIES] * 2


def test_guide_found_uses_the_concept_of_the_highest_relevance() -> None:
    result = made(gated(-1.0, guide="found"))
    for report in result.reports:
        highest = max(report.probes[0].relevance, key=lambda name: report.probes[0].relevance[name])
        assert list(report.concepts) == [highest]


def test_guide_both_adds_it_for_a_while() -> None:
    result = made(gated(-1.0, guide="both", found_until=0.5))
    for report in result.reports:
        assert "inappropriate" in report.concepts
        assert len(report.concepts) == 2
        assert report.rows == (2 * 3 + CATEGORIES) + 3 * STEPS + STEPS // 2


WHARF = """
id: wharf
version: "1"
title: What stands at a wharf
licence: MIT
concepts:
  - {id: cranes, text: "harbour cranes, cargo"}
"""


def test_a_concept_of_a_plugin_takes_part(plugin_catalogue: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "wharf.yaml").write_text(WHARF)
    plugin_catalogue(ConceptProvider(name="wharf", load=lambda: load_pack(tmp_path / "wharf.yaml")))
    gate = {"concepts": ("inappropriate/violence", "wharf/cranes")}
    report = made(gated(-1.0, **gate)).reports[0]
    assert set(report.probes[0].relevance) == {"inappropriate/violence", "wharf/cranes"}


def test_concepts_of_a_gate_that_cannot_be_had_are_an_error_before_anything_runs() -> None:
    with pytest.raises(GuidanceError.__mro__[1], match="nowhere"):
        made(gated(0.3, concepts=("nowhere/*",)))


def test_other_policies_of_the_batch_stay_what_they_are() -> None:
    engine = SafetyEngine(pipeline(), "off")
    mixed = engine.generate(PROMPTS, seed=7, policies=["max", gated(-1.0), "off"], **CALL)
    alone, off = made("max"), made("off")
    assert np.abs(mixed.images[0] - alone.images[0]).max() < CLOSE
    assert np.abs(mixed.images[1] - alone.images[1]).max() < CLOSE
    assert np.abs(mixed.images[2] - off.images[2]).max() < CLOSE
    assert [report.probes != () for report in mixed.reports] == [False, True, False]


def test_several_pictures_of_a_prompt_are_judged_each_by_itself() -> None:
    result = made(gated(1.0), PROMPTS[0], num_images=3)
    highest = [max(report.probes[0].relevance.values()) for report in result.reports]
    assert len({round(value, 6) for value in highest}) == 3


# --- what is not lost -----------------------------------------------------------------------------------------


def test_nothing_is_said_of_pictures_between_their_passes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="sldcore"):
        result = made(gated(-1.0).replace(on_error="raise"))
    assert [report.action for report in result.reports] == ["none"] * 3
    assert "withheld" not in caplog.text


def test_a_second_pass_that_fails_withholds_the_picture(plugin_catalogue: Callable[..., Any]) -> None:
    class Failing(SLD):
        name = "failing"

        def start(self, samples: Any, schedule: Any) -> Any:
            raise RuntimeError("no guidance today")

    plugin_catalogue(GuidanceMethod(name="failing", create=Failing))
    policy = gated(-1.0)
    assert policy.guidance is not None
    failing = policy.replace(
        guidance=policy.guidance.model_copy(update={"method": "failing", "options": Options({})})
    )
    result = made(failing)
    for report in result.reports:
        assert report.action == "block"
        assert any("no guidance today" in failure.error for failure in report.errors)
    assert not np.stack(result.images).any()


def test_pictures_are_reviewed_once_and_only_those_that_are_shown(
    plugin_catalogue: Callable[..., Any],
) -> None:
    seen: list[int] = []

    class Seeing:
        name, version = "seeing", "1"

        def review(self, pictures: Any, contexts: Any) -> list[Verdict]:
            seen.append(len(pictures))
            return [Verdict("seeing", "1", False) for _ in pictures]

    plugin_catalogue(PostFilterKind(name="seeing", create=lambda options: Seeing()))
    threshold, _ = between(made(gated(1.0)))
    result = made(gated(threshold).replace(filters=[FilterUse(use="seeing")]))
    assert seen == [2, 1]
    assert all(len(report.verdicts) == 1 for report in result.reports)


def test_another_attempt_at_a_flagged_picture_goes_without_the_gate(
    plugin_catalogue: Callable[..., Any],
) -> None:
    class Once:
        name, version = "once", "1"
        times = 0

        def review(self, pictures: Any, contexts: Any) -> list[Verdict]:
            self.times += 1
            return [Verdict("once", "1", self.times == 1, {"x": 1.0}, {"x": 0.5}) for _ in pictures]

    once = Once()
    plugin_catalogue(PostFilterKind(name="once", create=lambda options: once))
    policy = gated(1.0).replace(filters=[FilterUse.model_validate({"use": "once", "on_flag": "regenerate"})])
    report = made(policy, PROMPTS[:1]).reports[0]
    assert report.attempts == 2
    assert report.policy == "gated, without gate"
    assert report.rows == (2 * STEPS + CATEGORIES) + 3 * STEPS


def test_without_seeds_there_is_no_second_pass() -> None:
    with pytest.raises(GuidanceError, match="give seed"):
        SafetyEngine(pipeline(), gated(0.3)).generate(
            PROMPTS[0], seed=None, generator=torch.Generator().manual_seed(1), **CALL
        )


def test_a_call_that_is_not_ours_cannot_be_made_again() -> None:
    pipe = pipeline()
    with pytest.raises(GuidanceError, match="then: continue"), guard(pipe, gated(0.3)):
        pipe(PROMPTS[0], num_inference_steps=STEPS)


def test_in_a_call_that_is_not_ours_guidance_acts_from_the_probe_on() -> None:
    pipe = pipeline()
    with guard(pipe, gated(-1.0, then="continue")) as session:
        pipe(PROMPTS[0], num_inference_steps=STEPS, guidance_scale=4.0, output_type="np")
    acted = session.trace.applied[0].any(0)
    assert acted.tolist() == [False] * 3 + [True] * (STEPS - 3)
    with guard(pipe, gated(1.0, then="continue")) as session:
        pipe(PROMPTS[0], num_inference_steps=STEPS, guidance_scale=4.0, output_type="np")
    assert not session.trace.applied.any()


def test_a_probe_that_the_run_does_not_reach_is_an_error() -> None:
    with pytest.raises(GuidanceError, match="does not reach"):
        made(gated(0.3, probes=(STEPS,)))


def test_nan_at_a_probe_withholds(plugin_catalogue: Callable[..., Any]) -> None:
    pipe = pipeline()
    forward = pipe.unet.forward
    calls = []

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        calls.append(1)
        return (output[0] * float("nan"),) if len(calls) == 4 else output

    pipe.unet.forward = spoilt
    result = SafetyEngine(pipe, gated(0.3)).generate(PROMPTS, seed=7, **CALL)
    assert [report.action for report in result.reports] == ["block"] * 3
    with pytest.raises(SafetyFailure):
        calls.clear()
        SafetyEngine(pipe, gated(0.3).replace(on_error="raise")).generate(PROMPTS, seed=7, **CALL)


def test_text_of_ones_own_can_be_looked_for() -> None:
    report = made(gated(-1.0, guide="both", concepts=[{"text": "a red knight", "weight": 0.5}])).reports[0]
    assert list(report.concepts.values())[1] == ("a red knight",)


def test_weights_of_a_found_concept_are_those_of_its_use() -> None:
    uses = (ConceptUse(use=("inappropriate/violence",), weight=0.5),)
    full, half = (
        made(gated(-1.0, guide="found", concepts=("inappropriate/violence",))),
        made(gated(-1.0, guide="found", concepts=uses)),
    )
    assert not np.array_equal(np.stack(full.images), np.stack(half.images))
