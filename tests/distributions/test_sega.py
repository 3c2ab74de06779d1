"""SEGA against diffusers' SemanticStableDiffusionPipeline, the authors' own port, with the editing direction reversed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import sld_guidance_sega
import tiny_pipelines
import torch
from pydantic import ValidationError
from sld_guidance_sega import SEGAOptions
from sld_guidance_sega.plan import guidance_scale
from sld_guidance_sega.sega import SEGA, edit_term
from torch import Tensor

from sldcore import SafetyEngine, SafetyPolicy
from sldcore.errors import GuidanceError
from sldcore.guidance.base import GuidedSample
from sldcore.policy import ConceptUse, GuidanceSpec, Options, Window
from sldcore.testing import predictions, schedule
from sldcore.types import Guided, Predictions, Row

STEPS = 16
GUIDANCE_SCALE = 4.0
PROMPTS = tiny_pipelines.PROMPTS[:2]
CONCEPTS = ("sexual, nudity", "blood, weapons", "hate")


@dataclass(frozen=True)
class Case:
    """Parameters in diffusers' words, a value for each concept."""

    warmup: tuple[int, ...]
    cooldown: tuple[int, ...]
    threshold: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    momentum_scale: float = 0.3
    momentum_beta: float = 0.6

    @property
    def semantic_arguments(self) -> dict[str, Any]:
        return {
            "editing_prompt": list(CONCEPTS[: len(self.warmup)]),
            "reverse_editing_direction": [True] * len(self.warmup),
            "edit_warmup_steps": list(self.warmup),
            "edit_cooldown_steps": list(self.cooldown),
            "edit_threshold": list(self.threshold),
            "edit_guidance_scale": list(self.scale),
            "edit_weights": list(self.weights),
            "edit_momentum_scale": self.momentum_scale,
            "edit_mom_beta": self.momentum_beta,
        }

    @property
    def policy(self) -> SafetyPolicy:
        return SafetyPolicy(
            concepts=tuple(
                ConceptUse(
                    text=text, weight=weight, strength=scale / 5, window=Window(start=start, stop=stop)
                )
                for text, weight, scale, start, stop in zip(
                    CONCEPTS, self.weights, self.scale, self.warmup, self.cooldown, strict=False
                )
            ),
            guidance=GuidanceSpec(method="sega", options=self.options),
        )

    @property
    def options(self) -> Options:
        return Options(
            {
                "scale": 5.0,
                "threshold": ", ".join(map(str, self.threshold)),
                "momentum_scale": self.momentum_scale,
                "momentum_beta": self.momentum_beta,
                "pipeline_guidance_scale": 9.0,  # ignored: the run knows its own
            }
        )


ONE = Case((3,), (STEPS,), (0.9,), (5.0,), (1.0,))
CASES = {
    "one concept": ONE,
    "no momentum": replace(ONE, momentum_scale=0.0, cooldown=(11,)),
    "different in everything": Case((3, 6), (12, STEPS), (0.9, 0.75), (5.0, 7.5), (1.0, 0.5)),
    "three at once": Case((2,) * 3, (STEPS,) * 3, (0.95,) * 3, (5.0,) * 3, (1.0,) * 3),
    "everything above the threshold": replace(ONE, threshold=(0.0,)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def semantic(parts: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated as a whole
        from diffusers import SemanticStableDiffusionPipeline

        return tiny_pipelines.pipeline(SemanticStableDiffusionPipeline, **parts)


def pictures(pipe: Any, **arguments: Any) -> Any:
    return pipe(
        list(PROMPTS),
        latents=tiny_pipelines.latents(len(PROMPTS)),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        output_type="np",
        **arguments,
    ).images


def samples_of(case: Case, batch: int) -> list[GuidedSample]:
    windows = [
        tuple(float(start <= step < stop) for step in range(STEPS))
        for start, stop in zip(case.warmup, case.cooldown, strict=True)
    ]
    return [
        GuidedSample(
            index=index,
            spec=GuidanceSpec(method="sega", options=case.options),
            concepts=tuple(range(len(windows))),
            weights=case.weights,
            acting=(1.0,) * STEPS,
            strengths=tuple(scale / 5 for scale in case.scale),
            concept_acting=tuple(windows),
        )
        for index in range(batch)
    ]


def run_sample(
    steps: int = STEPS, *, options: Mapping[str, Any] | None = None, **fields: Any
) -> GuidedSample:
    given = Options({**SEGAOptions().model_dump(), **(options or {})})
    defaults = {"concepts": (0,), "weights": (1.0,), "acting": (1.0,) * steps}
    return GuidedSample(
        **{"index": 0, "spec": GuidanceSpec(method="sega", options=given), **defaults, **fields}
    )


def walk(samples: Sequence[GuidedSample], steps: int = STEPS) -> list[tuple[Predictions, Guided] | None]:
    plan = schedule(steps)
    run = SEGA().start(samples, plan)
    found: list[tuple[Predictions, Guided] | None] = []
    for step in map(plan.step, range(steps)):
        rows = run.rows(step)
        given = predictions(step, rows, ["knight"] * len(samples))
        found.append((given, run.combine(step, given)) if rows else None)
    return found


def test_the_safety_term_is_diffusers_at_every_step(semantic: Any, case: Case) -> None:
    pictures(semantic, **case.semantic_arguments)
    plan = replace(schedule(STEPS), guidance_scale=GUIDANCE_SCALE)
    run = SEGA().start(samples_of(case, len(PROMPTS)), plan)
    strongest = 0.0
    for step in map(plan.step, range(STEPS)):
        rows = run.rows(step)
        uncond, cond = semantic.uncond_estimates[step.index], semantic.text_estimates[step.index]
        expected = semantic.sem_guidance[step.index]
        edit = torch.zeros_like(cond)
        if rows:
            concepts = torch.stack(
                [semantic.edit_estimates[step.index, row.concept, row.sample] for row in rows]
            )
            guided = run.combine(step, Predictions(uncond, cond, concepts, rows))
            edit = GUIDANCE_SCALE * (guided.cond - cond)
        torch.testing.assert_close(edit, expected, rtol=0, atol=2e-6)
        strongest = max(strongest, float(expected.abs().max()))
    assert strongest > 0.1, "guidance does not act, so agreement would say nothing"


def test_pictures_are_those_of_diffusers(
    semantic: Any, case: Case, pipe: Any, plugin_catalogue: Callable[..., None]
) -> None:
    plugin_catalogue(*sld_guidance_sega.sld_guidance_methods())
    reference = pictures(semantic, **case.semantic_arguments)
    effect = np.abs(reference - pictures(pipe)).max(axis=(1, 2, 3))
    assert effect.min() > 1e-2, "guidance does not act, so agreement would say nothing"
    ours = SafetyEngine(pipe, case.policy).generate(
        list(PROMPTS),
        latents=tiny_pipelines.latents(len(PROMPTS)),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        output_type="np",
    )
    assert [report.errors for report in ours.reports] == [(), ()]
    np.testing.assert_allclose(np.stack(ours.images), reference, rtol=0, atol=1e-4)


def test_nothing_is_applied_after_the_last_concept_has_cooled_down() -> None:
    acting = tuple(float(3 <= step < 9) for step in range(STEPS))
    found = walk([run_sample(acting=acting, options={"momentum_scale": 0.5})])
    assert all(each is not None and each[1].applied == (0,) for each in found[3:9])
    assert found[9:] == [None] * (STEPS - 9)


def test_momentum_is_built_during_warm_up_and_not_applied() -> None:
    acting = tuple(float(step >= 4) for step in range(STEPS))
    late = walk([run_sample(acting=acting)])
    assert all(each is not None and each[1].cond.equal(each[0].cond) for each in late[:4])
    without = walk([run_sample(acting=acting, options={"momentum_scale": 0.0})])
    assert late[4] is not None and without[4] is not None
    assert not torch.allclose(late[4][1].cond, without[4][1].cond)


def test_without_momentum_only_rows_that_act_are_evaluated() -> None:
    acting = tuple(float(5 <= step < 9) for step in range(STEPS))
    found = walk([run_sample(acting=acting, options={"momentum_scale": 0.0})])
    assert [step for step, each in enumerate(found) if each is not None] == [5, 6, 7, 8]


def test_while_some_concepts_are_warm_their_weights_sum_to_one() -> None:
    late, always = tuple(float(step >= 8) for step in range(STEPS)), (1.0,) * STEPS
    fields: dict[str, Any] = {"options": {"momentum_scale": 0.0}, "weights": (0.25, 1.0), "concepts": (0, 1)}
    both = walk([run_sample(**fields, concept_acting=(always, late))])
    first = walk([run_sample(options={"momentum_scale": 0.0})])
    assert both[4] is not None and first[4] is not None
    assert torch.allclose(both[4][1].cond, first[4][1].cond)


@pytest.mark.parametrize("strength", [0.5, 0.1])
def test_a_window_s_strength_scales_what_is_applied(strength: float) -> None:
    whole, part = walk([run_sample()]), walk([run_sample(acting=(strength,) * STEPS)])
    for one, two in zip(whole, part, strict=True):
        assert one is not None and two is not None
        full, weak = one[1].cond - one[0].cond, two[1].cond - two[0].cond
        torch.testing.assert_close(weak, strength * full, rtol=1e-4, atol=1e-5)


def test_the_term_of_a_model_that_predicts_v_is_the_same_in_noise() -> None:
    factor, row = 0.5, (Row(0, 0),)
    plan = schedule(2)
    noise = predictions(plan.step(0), row, ["knight"])
    uncond, cond, concepts = (part / factor for part in (noise.uncond, noise.cond, noise.concepts))
    flat = replace(plan, epsilon_factors=(factor, factor))
    guided = SEGA().start([run_sample(2)], plan).combine(plan.step(0), noise)
    in_v = SEGA().start([run_sample(2)], flat).combine(flat.step(0), Predictions(uncond, cond, concepts, row))
    torch.testing.assert_close(in_v.cond * factor, guided.cond)
    torch.testing.assert_close(in_v.terms, guided.terms)


def test_the_threshold_is_a_quantile_over_the_positions_of_each_channel() -> None:
    psi = torch.arange(-6.0, 12.0).view(1, 2, 3, 3)
    kept = edit_term(psi, torch.full((1, 1, 1, 1), 2.0), torch.tensor([0.5]))
    expected = torch.zeros(1, 2, 3, 3)
    expected[0, 0].view(-1)[:4] = 2 * torch.tensor(
        [-6.0, -5.0, -4.0, -3.0]
    )  # |psi|: 6 5 4 3 2 1 0 1 2, median 2
    expected[0, 0].view(-1)[[4, 8]] = 2 * torch.tensor([-2.0, 2.0])
    expected[0, 1].view(-1)[4:] = 2 * torch.arange(7.0, 12.0)
    assert kept.equal(expected)


def test_quantiles_are_torch_s_own() -> None:
    psi = torch.randn(5, 4, 7, 9, generator=torch.Generator().manual_seed(0))
    for quantile in (0.0, 0.3, 0.9, 0.99, 1.0):
        eta = torch.quantile(psi.abs().flatten(2), quantile, dim=2)[:, :, None, None]
        expected = psi.masked_fill(psi.abs() < eta, 0)
        assert edit_term(psi, torch.ones(5, 1, 1, 1), torch.full((5,), quantile)).equal(expected)


def test_a_spoilt_prediction_is_not_taken_for_one_below_the_threshold() -> None:
    psi = torch.randn(1, 1, 4, 4)
    psi[0, 0, 1, 1] = torch.nan
    assert edit_term(psi, torch.ones(1, 1, 1, 1), torch.tensor([0.9])).isnan().any()


def test_the_run_s_guidance_scale_comes_before_the_option_s() -> None:
    options, plan = SEGAOptions(pipeline_guidance_scale=9.0), schedule(2)
    assert guidance_scale(replace(plan, guidance_scale=3.0), options) == 3.0
    assert guidance_scale(replace(plan, guidance_scale=None), options) == 9.0


def test_a_sample_without_guidance_of_its_own_is_not_changed() -> None:
    plan = schedule(2)
    given = predictions(plan.step(0), (Row(1, 0),), ["knight", "cat"])
    guided: Tensor = SEGA().start([run_sample(2, index=1)], plan).combine(plan.step(0), given).cond
    assert guided[0].equal(given.cond[0])
    assert not guided[1].equal(given.cond[1])


def test_the_wrong_number_of_thresholds_is_an_error_before_the_first_step() -> None:
    sample = run_sample(2, options={"threshold": "0.9, 0.8"})
    with pytest.raises(GuidanceError, match="2 thresholds for 1 concept rows"):
        SEGA().start([sample], schedule(2))


@pytest.mark.parametrize(
    "wrong",
    [{"threshold": 1.5}, {"threshold": "high"}, {"threshold": "0.9, -1"}, {"scale": 0}, {"scale": True}],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SEGAOptions(**wrong)
