"""The concept as negative prompt, alone and with SLD, against plain loops in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sld_reference import MAX, MEDIUM, Array, Story, drawn, safe, sample, term, walk
from tiny_pipelines import PROMPTS

from sldcore import SafetyEngine, SafetyPolicy
from sldcore.errors import GuidanceError
from sldcore.guidance.base import GuidanceRun, GuidedSample
from sldcore.guidance.kinds import KINDS
from sldcore.guidance.negative import Negative, NegativeSLD
from sldcore.policy import ConceptUse, GuidanceSpec
from sldcore.testing import GuidanceContract
from sldcore.testing.samples import guided_samples
from sldcore.types import Schedule

relaxed = settings(deadline=None)


def replaced(samples: list[GuidedSample], story: Story) -> list[dict[tuple[int, str], Any]]:
    """For each step, the texts that ``negative`` puts in place of others, having made sure that it adds no row."""
    run = Negative().start(samples, story.schedule)
    assert all(rows == () and guided is None for rows, guided in walk(run, story))
    return [dict(run.own_texts(story.schedule.step(t))) for t in range(story.steps)]  # type: ignore[attr-defined]


# --- negative ----------------------------------------------------------------------------------------------------


def test_the_concept_stands_in_the_unconditional_row_while_the_window_is_open() -> None:
    samples = [
        sample("negative", {}, (0, 1, 1, 0), index=2, concepts=(4,)),
        sample("negative", {}, (1, 1, 1, 1), index=0, concepts=(1,), concept_acting=((1, 1, 0, 1),)),
    ]
    assert replaced(samples, drawn(steps=4)) == [
        {(0, "uncond"): 1},
        {(0, "uncond"): 1, (2, "uncond"): 4},
        {(2, "uncond"): 4},
        {(0, "uncond"): 1},
    ]


def test_negative_leaves_predictions_as_they_are() -> None:
    story = drawn(steps=1)
    run = Negative().start([sample("negative", {}, (1,))], story.schedule)
    given = story.predictions(0, ())
    made = run.combine(story.schedule.step(0), given)
    assert made.cond is given.cond and made.applied == () and made.uncond is None
    assert made.terms.shape == given.concepts.shape


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"concepts": (0, 1)}, "has 2 concept rows .* write the concepts as one text"),
        ({"weights": (0.5,)}, "has no weight, and a concept of sample 1 has weight 0.5; leave it at 1"),
        ({"strengths": (2.0,)}, "has no strength, and a concept of sample 1 has strength 2; leave it at 1"),
        (
            {"concept_acting": ((1, 1, 0.5),)},
            "opens it by 0.5 at denoiser call 2; use a window without a ramp",
        ),
        ({"acting": (1, 0.25, 1)}, "opens it by 0.25 at denoiser call 1; use a window without a ramp"),
    ],
)
def test_what_a_text_cannot_express_is_refused(fields: dict[str, Any], message: str) -> None:
    given = {"acting": (1, 1, 1), **fields}
    with pytest.raises(GuidanceError, match=message):
        Negative().start([sample("negative", {}, index=1, **given)], drawn(steps=3).schedule)


def test_a_sample_without_concepts_has_its_own_negative_prompt() -> None:
    assert replaced([sample("negative", {}, (1, 1), concepts=())], drawn(steps=2)) == [{}, {}]


def test_in_a_window_that_is_always_open_it_is_the_pipelines_own_negative_prompt(pipe: Any) -> None:
    fast: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "np"}
    policy = SafetyPolicy(
        name="test",
        guidance=GuidanceSpec(method="negative"),
        concepts=(ConceptUse(text="nudity, blood"),),
    )
    made = SafetyEngine(pipe, policy).generate(list(PROMPTS[:2]), seed=[1, 2], **fast)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    own = pipe(list(PROMPTS[:2]), negative_prompt=["nudity, blood"] * 2, generator=generators, **fast).images
    np.testing.assert_array_equal(np.stack(made.images), own)
    assert [report.rows for report in made.reports] == [8, 8]


# --- sld+negative ------------------------------------------------------------------------------------------------


def reference(story: Story, samples: list[GuidedSample]) -> tuple[Array, Array]:
    """Safe conditional and unconditional predictions [T, B, ...] of samples with one concept each."""
    cond, uncond = story.cond.copy(), story.uncond.copy()
    for each in samples:
        options, b, k = each.spec.options, each.index, each.concepts[0]
        s_m, beta = float(options["momentum_scale"]), float(options["momentum_beta"])
        scale = float(options["scale"]) * (each.strengths or (1.0,))[0]
        nu = np.zeros_like(story.cond[0, 0])
        for t in range(story.steps):
            e_u, e_p, e_s = story.uncond[t, b], story.cond[t, b], story.concepts[t, b, k]
            factor = story.factors[t]
            opened = each.concept_acting[0][t] if each.concept_acting else 1.0
            if not opened:
                continue  # neither the row nor the momentum is looked at
            own = each.weights[0] * opened * term(e_u, e_p, e_s, scale, float(options["threshold"]), factor)
            gamma = own + s_m * nu
            nu = beta * nu + (1 - beta) * gamma
            if factor:
                cond[t, b] = e_p - each.acting[t] * gamma / factor
            share = each.acting[t] * opened
            uncond[t, b] = (1 - share) * e_u + share * e_s
    return cond, uncond


def both(
    samples: list[GuidedSample], story: Story, dtype: torch.dtype = torch.float32
) -> tuple[Array, Array]:
    """What ``sld+negative`` hands to the pipeline: conditional and unconditional predictions [T, B, ...]."""
    steps = walk(NegativeSLD().start(samples, story.schedule), story, dtype)
    uncond = [
        story.uncond[t] if guided is None or guided.uncond is None else guided.uncond.double().numpy()
        for t, (_, guided) in enumerate(steps)
    ]
    return safe(steps, story), np.stack(uncond)


OPENINGS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0]), min_size=5, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    members=st.lists(
        st.tuples(
            OPENINGS,
            OPENINGS,
            st.sampled_from([MAX, MEDIUM, {**MEDIUM, "momentum_scale": 0.0}]),
            st.sampled_from([0.5, 1.0]),
            st.sampled_from([1.0, 1.5]),
        ),
        min_size=1,
        max_size=3,
    ),
    factor=st.sampled_from([1.0, 0.5, -2.0]),
    shape=st.sampled_from([(2, 3, 3), (4, 6), (2, 2, 2, 3)]),
)
def test_sld_with_negative_follows_the_equations(
    seed: int, members: list[Any], factor: float, shape: tuple[int, ...]
) -> None:
    story = drawn(seed, shape=shape, factors=(factor, 0.0, 1.0, factor, 1.0))
    samples = [
        sample(
            "sld+negative",
            options,
            acting,
            index=index,
            concepts=(index,),
            weights=(weight,),
            strengths=(strength,),
            concept_acting=(tuple(opening),),
        )
        for index, (acting, opening, options, weight, strength) in enumerate(members)
    ]
    for got, expected in zip(both(samples, story), reference(story, samples), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_in_an_open_window_the_concept_itself_is_the_unconditional_prediction(dtype: torch.dtype) -> None:
    story = drawn(steps=3)
    samples = [
        sample("sld+negative", MEDIUM, (0, 1, 1), index=0),
        sample("sld+negative", MEDIUM, (1, 0.5, 1), index=2),
    ]
    run = NegativeSLD().start(samples, story.schedule)
    (_, first), (_, second), (rows, third) = walk(run, story, dtype)
    given = story.predictions(2, rows, dtype)
    assert third is not None and third.uncond is not None and third.applied == (0, 2)
    assert torch.equal(third.uncond[[0, 2]], given.concepts) and third.uncond.dtype == dtype
    for guided, untouched, t in ((first, (0, 1), 0), (second, (1,), 1), (third, (1,), 2)):
        assert guided is not None and guided.uncond is not None
        assert torch.equal(
            guided.uncond[list(untouched)], story.predictions(t, (), dtype).uncond[list(untouched)]
        )


def test_slds_part_is_that_of_the_true_unconditional_prediction() -> None:
    """By hand: gamma is mu (e_S - e_u) with mu = 1, whatever stands for e_u afterwards."""
    ones = np.ones((1, 1, 1, 1, 1))
    story = Story(0.25 * ones, 2 * ones, 4 * ones[:, :, None], (1.0,))
    cond, uncond = both([sample("sld+negative", MAX, (1,))], story)
    assert (cond.item(), uncond.item()) == (2 - (4 - 0.25), 4)


@relaxed
@given(
    start=st.integers(0, 4),
    stop=st.integers(1, 5),
    scale=st.sampled_from([0.0, 1000.0]),
    momentum=st.sampled_from([0.0, 0.3]),
)
def test_one_row_is_evaluated_at_every_step_of_the_window(
    start: int, stop: int, scale: float, momentum: float
) -> None:
    story = drawn()
    acting = tuple(float(start <= t < stop) for t in range(5))
    options = {**MEDIUM, "scale": scale, "momentum_scale": momentum}
    asked = walk(NegativeSLD().start([sample("sld+negative", options, acting)], story.schedule), story)
    builds = scale * momentum > 0 and any(acting)
    expected = [1 if act or (builds and t < start) else 0 for t, act in enumerate(acting)]
    assert [len(rows) for rows, _ in asked] == expected
    assert [bool(guided and guided.applied) for _, guided in asked] == [bool(act) for act in acting]


def test_without_a_term_only_the_unconditional_prediction_changes() -> None:
    story = drawn(batch=1, steps=2)
    cond, uncond = both([sample("sld+negative", {**MEDIUM, "scale": 0.0}, (1, 1))], story)
    np.testing.assert_array_equal(cond, story.cond)
    np.testing.assert_array_equal(uncond, story.concepts[:, :, 0])


def test_a_sample_in_a_batch_is_as_alone() -> None:
    story = drawn(seed=4, batch=4)
    members = [
        sample("sld+negative", options, acting, index=index, concepts=(index % 3,))
        for index, options, acting in (
            (0, MAX, (1, 1, 1, 0.5, 0)),
            (1, MEDIUM, (0, 0, 1, 1, 1)),
            (3, {**MEDIUM, "scale": 0.0}, (1, 1, 1, 1, 1)),
        )
    ]
    together = both(members, story)
    for each in members:
        alone = sample("sld+negative", dict(each.spec.options), each.acting, index=0, concepts=each.concepts)
        for one, many in zip(both([alone], story.of([each.index])), together, strict=True):
            np.testing.assert_array_equal(one[:, 0], many[:, each.index])
    np.testing.assert_array_equal(together[1][:, 2], story.uncond[:, 2])


def test_sld_with_negative_refuses_several_rows() -> None:
    with pytest.raises(GuidanceError, match=r"method 'sld\+negative' .* sample 0 has 3 concept rows"):
        NegativeSLD().start(
            [sample("sld+negative", MEDIUM, (1,), concepts=(0, 1, 2))], drawn(steps=1).schedule
        )


class TestNegativeSLD(GuidanceContract):
    """The contract, with the first concept of each sample."""

    subject = next(kind for kind in KINDS if kind.name == "sld+negative")

    def start(self, method: Any, batch: Any, own: Any, plan: Schedule, **fields: Any) -> GuidanceRun:
        options = self.checked_options.model_dump()
        several = ("concepts", "weights", "strengths", "concept_acting")
        samples = [
            GuidedSample(
                each.index,
                each.spec,
                acting=each.acting,
                **{name: getattr(each, name)[:1] for name in several},
            )
            for each in guided_samples(self.subject.name, options, own, len(plan), batch=batch, **fields)
        ]
        return method.start(samples, plan)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["negative", "sld+negative"])
def test_policies_find_the_methods_by_name(name: str) -> None:
    found = {method.name: method for method in KINDS}[name]
    assert found.create().name == name
