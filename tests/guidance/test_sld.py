"""SLD against the paper's equations, written once more as plain loops over single numbers in float64.

Predictions are whole multiples of a power of two and thresholds lie on that grid or half-way between, so that every
comparison with lambda comes out the same in float32 and in float64, exact ties included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sldcore.guidance.base import GuidedSample
from sldcore.guidance.sld import SLD, safety_term
from sldcore.guidance.windows import acting_steps
from sldcore.policy import GuidanceSpec, SafetyPolicy, Window
from sldcore.types import Guided, Predictions, Row, Schedule

Array = NDArray[np.float64]
DTYPES = (torch.float16, torch.bfloat16)
relaxed = settings(deadline=None)  # the first example pays for loading


# --- the oracle -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Parameters of one sample of a batch; the window is in steps."""

    scale: float = 1000.0
    threshold: float = 0.0
    momentum_scale: float = 0.0
    momentum_beta: float = 0.0
    weights: tuple[float, ...] = (1.0,)
    start: int = 0
    stop: int | None = None

    def acts(self, step: int) -> bool:
        return step >= self.start and (self.stop is None or step < self.stop)


@dataclass(frozen=True)
class Case:
    """A run: T steps of a batch. ``uncond``, ``cond`` [T, B, ...]; ``concepts`` [T, B, K, ...]; guided or not."""

    samples: tuple[Sample | None, ...]
    uncond: Array
    cond: Array
    concepts: Array
    factors: tuple[float, ...] = field(default=())

    @property
    def steps(self) -> int:
        return len(self.uncond)

    @property
    def schedule(self) -> Schedule:
        total = self.steps
        levels = tuple(1 - index / total for index in range(total))
        return Schedule(
            tuple(float(999 - index) for index in range(total)), levels, self.factors or (1.0,) * total
        )


def oracle(case: Case) -> tuple[Array, Array]:
    """Equations 3, 4 and 6 to 8, one element at a time: guided predictions [T, B, ...], terms [T, B, K, ...]."""
    guided, terms = case.cond.copy(), np.zeros_like(case.concepts)
    for b, sample in enumerate(case.samples):
        if sample is None:
            continue
        for element in np.ndindex(case.cond.shape[2:]):
            nu = 0.0
            for t in range(case.steps):
                factor = case.schedule.epsilon_factors[t]
                gamma = sample.momentum_scale * nu
                for k, weight in enumerate(sample.weights):
                    e_u, e_p = case.uncond[t, b][element], case.cond[t, b][element]
                    e_s = case.concepts[t, b, k][element]
                    mu = min(abs(factor * (e_p - e_s)) * sample.scale, 1.0)
                    if factor * (e_p - e_s) >= sample.threshold:
                        mu = 0.0
                    term = weight * mu * factor * (e_s - e_u)
                    terms[t, b, k][element] = term
                    gamma += term
                nu = sample.momentum_beta * nu + (1 - sample.momentum_beta) * gamma
                if sample.acts(t) and factor != 0:
                    guided[t, b][element] -= gamma / factor
    return guided, terms


# --- running the method ----------------------------------------------------------------------------------------


def spec(sample: Sample) -> GuidanceSpec:
    names = ("scale", "threshold", "momentum_scale", "momentum_beta")
    window = Window(start=sample.start, stop=sample.stop)
    return GuidanceSpec(options={name: getattr(sample, name) for name in names}, window=window)


def member(
    index: int, spec: GuidanceSpec, concepts: tuple[int, ...], weights: tuple[float, ...], schedule: Schedule
) -> GuidedSample:
    return GuidedSample(index, spec, concepts, weights, acting_steps(spec.window, schedule))


def members(samples: Sequence[Sample | None], schedule: Schedule) -> list[GuidedSample]:
    """What a run is started with; sample b has concepts 0 to its number of weights."""
    return [
        member(b, spec(sample), tuple(range(len(sample.weights))), sample.weights, schedule)
        for b, sample in enumerate(samples)
        if sample is not None
    ]


def run(case: Case, dtype: torch.dtype = torch.float32) -> list[tuple[tuple[Row, ...], Guided | None]]:
    """The rows that the method asks for at each step, and what it makes of exactly these rows."""
    state = SLD().start(members(case.samples, case.schedule), case.schedule)
    steps: list[tuple[tuple[Row, ...], Guided | None]] = []
    for t in range(case.steps):
        step = case.schedule.step(t)
        rows = state.rows(step)
        steps.append((rows, state.combine(step, predictions(case, t, rows, dtype)) if rows else None))
    return steps


def predictions(case: Case, t: int, rows: tuple[Row, ...], dtype: torch.dtype = torch.float32) -> Predictions:
    chosen = [torch.tensor(case.concepts[t, row.sample, row.concept]) for row in rows]
    uncond, cond = torch.tensor(case.uncond[t]), torch.tensor(case.cond[t])
    return Predictions(uncond.to(dtype), cond.to(dtype), torch.stack(chosen).to(dtype), rows)


def guided(case: Case, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The guided predictions of a whole run [T, B, ...]."""
    return torch.stack(
        [
            torch.tensor(case.cond[t]).to(dtype) if result is None else result.cond
            for t, (_, result) in enumerate(run(case, dtype))
        ]
    )


def close(actual: NDArray[Any], expected: Array, case: Case) -> None:
    """Equal to a few units of float32 at the size of the largest number involved."""
    largest = max(float(np.abs(part).max()) for part in (case.uncond, case.cond, case.concepts, expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * max(largest, 1e-30))


def random_case(
    *samples: Sample | None, steps: int = 4, shape: tuple[int, ...] = (2, 3, 3), seed: int = 0
) -> Case:
    """Predictions on the grid of 1/64, as different from each other as trained models' are."""
    rng = np.random.default_rng(seed)
    concepts = max(len(sample.weights) for sample in samples if sample is not None)

    def draw(*sizes: int) -> Array:
        return rng.integers(-64, 65, size=(steps, len(samples), *sizes, *shape)) / 64

    return Case(samples, draw(), draw(), draw(concepts))


# --- equations -------------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> Case:
    shape = draw(
        st.one_of(
            st.just((1, 1, 1)),
            st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
            st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
        )
    )
    batch, steps = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    unit = draw(st.sampled_from([2.0**-27, 1 / 64, 1.0, 10_000 / 64]))
    on_the_grid = st.integers(-4, 4).map(lambda half: half * unit / 2)  # exact ties with every second one

    def sample() -> Sample:
        start = draw(st.integers(0, steps - 1))
        return Sample(
            scale=draw(st.sampled_from([0.0, 1.0, 20.0, 1000.0, 5000.0])),
            threshold=draw(on_the_grid),
            momentum_scale=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
            momentum_beta=draw(st.sampled_from([0.0, 0.4, 0.7])),
            weights=tuple(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=3))),
            start=start,
            stop=draw(st.one_of(st.none(), st.integers(start + 1, steps + 1))),
        )

    samples = [sample() if draw(st.integers(0, 3)) else None for _ in range(batch)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def numbers(*sizes: int) -> Array:
        return rng.integers(-3, 4, size=(steps, batch, *sizes, *shape)) * unit

    factor = st.sampled_from([1.0, 1.0, 0.5, 0.25, -2.0, 0.0])  # powers of two keep ties exact
    factors = tuple(draw(factor) for _ in range(steps))
    return Case(tuple(samples), numbers(), numbers(), numbers(3), factors)


@settings(max_examples=120, deadline=None)
@given(cases())
def test_a_run_follows_the_equations_element_by_element(case: Case) -> None:
    expected_cond, expected_terms = oracle(case)
    for t, (rows, result) in enumerate(run(case)):
        if result is None:
            np.testing.assert_array_equal(expected_cond[t], case.cond[t])
            continue
        close(result.cond.numpy(), expected_cond[t], case)
        close(
            result.terms.numpy(), np.stack([expected_terms[t, row.sample, row.concept] for row in rows]), case
        )


@settings(max_examples=60, deadline=None)
@given(cases())
def test_samples_count_as_applied_where_their_window_is_open(case: Case) -> None:
    for t, (rows, result) in enumerate(run(case)):
        acting = {
            row.sample
            for row in rows
            if (sample := case.samples[row.sample]) is not None
            and sample.acts(t)
            and case.schedule.epsilon_factors[t] != 0
        }
        assert set(result.applied if result else ()) == acting


@pytest.mark.parametrize("threshold", [-0.3, 0.0, 0.01, 1.0])
def test_huge_tiny_and_zero_predictions_in_every_combination(threshold: float) -> None:
    values = (0.0, 1e-8, -1e-8, 1.0, -1.0, 1e4, -1e4)
    e_u, e_p, e_s = np.array(list(product(values, repeat=3))).T.reshape(3, 1, 1, 7, 7, 7)
    at_a_tie = (np.abs(e_p - e_s - threshold) < 1e-6) & (e_p != e_s)
    e_s = np.where(at_a_tie, 5.0, e_s)  # 1 - 1e-8 is 1 in float32: exact ties are tested on the grid
    sample = Sample(scale=2000.0, threshold=threshold)
    case = Case((sample,), e_u, e_p, e_s[:, :, None])
    expected, _ = oracle(case)
    np.testing.assert_allclose(guided(case)[0].numpy(), expected[0], rtol=1e-6, atol=2e-3)
    small = (np.abs([e_u, e_p, e_s]).max(0) < 2)[0]
    np.testing.assert_allclose(guided(case)[0].numpy()[small], expected[0][small], rtol=1e-6, atol=1e-7)


def test_a_difference_equal_to_lambda_is_left_alone_and_one_just_below_is_guided() -> None:
    e_p = torch.tensor([0.25, 0.25 - 2**-20]).view(1, 1, 1, 2)
    term = safety_term(torch.zeros_like(e_p), e_p, torch.zeros_like(e_p) - 0.25, 1000.0, 0.5)
    assert term.flatten().tolist() == [0.0, -0.25]


def test_mu_grows_with_the_difference_up_to_one() -> None:
    e_s = torch.tensor([0.25, 0.5, 1.0, 2.0]).view(1, 1, 1, 4)
    term = safety_term(torch.zeros_like(e_s), torch.zeros_like(e_s), e_s, 2.0, 0.0)
    assert term.flatten().tolist() == [0.5 * 0.25, 1.0 * 0.5, 1.0, 2.0]


def test_momentum_is_built_during_warm_up_from_the_sum_of_all_concepts() -> None:
    """By hand: gamma is 1 + 3 before momentum at each step; nu is 2 after the first, and 2 + 2 * (4 + 2) / 4 ..."""
    ones = np.ones((3, 1, 1, 1, 1))
    sample = Sample(
        scale=5000.0, threshold=10.0, momentum_scale=0.5, momentum_beta=0.5, weights=(1.0, 3.0), start=2
    )
    case = Case((sample,), 0 * ones, 2 * ones, np.stack([ones, ones], axis=2))
    nu_1 = 0.5 * 4
    nu_2 = 0.5 * nu_1 + 0.5 * (4 + 0.5 * nu_1)
    assert guided(case).flatten().tolist() == [2.0, 2.0, 2.0 - (4 + 0.5 * nu_2)]


# --- which rows are evaluated ----------------------------------------------------------------------------------


def steps_of(count: int) -> Schedule:
    return Schedule(
        tuple(float(count - index) for index in range(count)), tuple(np.linspace(1, 0, count)), (1.0,) * count
    )


def counted(policy: SafetyPolicy, steps: int) -> int:
    assert policy.guidance is not None
    schedule = steps_of(steps)
    state = SLD().start([member(0, policy.guidance, (0,), (1.0,), schedule)], schedule)
    return sum(len(state.rows(schedule.step(index))) for index in range(steps))


@pytest.mark.parametrize(
    ("preset", "rows"), [("weak", 35), ("weak-diffusers", 35), ("medium", 50), ("strong", 50), ("max", 50)]
)
def test_concept_rows_of_each_preset_over_fifty_steps(preset: str, rows: int) -> None:
    assert counted(SafetyPolicy.preset(preset), 50) == rows


@relaxed
@given(
    start=st.integers(0, 5),
    length=st.integers(1, 5),
    momentum_scale=st.sampled_from([0.0, 0.1, 1.0]),
    stops=st.booleans(),
)
def test_rows_are_needed_before_the_window_only_for_momentum_and_never_after_it(
    start: int, length: int, momentum_scale: float, stops: bool
) -> None:
    schedule = steps_of(10)
    sample = Sample(momentum_scale=momentum_scale, start=start, stop=start + length if stops else None)
    state = SLD().start(members([sample], schedule), schedule)
    asked = [bool(state.rows(schedule.step(index))) for index in range(10)]
    first = 0 if momentum_scale else start
    assert asked == [first <= index < (start + length if stops else 10) for index in range(10)]


def test_each_sample_asks_for_its_own_concepts_only() -> None:
    schedule = steps_of(4)
    samples = [
        member(1, spec(Sample(start=2)), (4, 0), (1.0, 0.5), schedule),
        member(3, spec(Sample(momentum_scale=0.3, start=1, stop=3)), (2,), (1.0,), schedule),
    ]
    state = SLD().start(samples, schedule)
    asked = [set(state.rows(schedule.step(index))) for index in range(4)]
    assert asked == [{(3, 2)}, {(3, 2)}, {(1, 4), (1, 0), (3, 2)}, {(1, 4), (1, 0)}]


@pytest.mark.parametrize("idle", [Sample(scale=0.0), Sample(weights=(0.0, 0.0), momentum_scale=0.5)])
def test_a_sample_without_strength_needs_no_rows_and_stays_bit_identical(idle: Sample) -> None:
    case = random_case(idle, Sample(weights=(1.0, 2.0)), seed=3)
    for t, (rows, result) in enumerate(run(case)):
        assert {row.sample for row in rows} == {1}
        assert result is not None
        assert torch.equal(result.cond[0], torch.tensor(case.cond[t, 0]).float())


def test_a_sample_that_acts_at_another_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="acts at 5 of 7 steps"):
        SLD().start([GuidedSample(0, spec(Sample()), (0,), (1.0,), (1.0,) * 5)], steps_of(7))


# --- strengths and windows of concepts -------------------------------------------------------------------------


def combined(sample: GuidedSample, seed: int = 5, steps: int = 1) -> list[Guided | None]:
    """What SLD makes of a batch of one with two concepts, at each step."""
    case = random_case(Sample(weights=(1.0, 1.0)), seed=seed)
    state, results = SLD().start([sample], steps_of(steps)), list[Guided | None]()
    for t in range(steps):
        step = steps_of(steps).step(t)
        rows = state.rows(step)
        results.append(state.combine(step, predictions(case, t, rows)) if rows else None)
    return results


def test_a_strength_scales_the_methods_scale_and_a_weight_the_term() -> None:
    weak, strong = spec(Sample(scale=0.05, threshold=9.0)), spec(Sample(scale=0.1, threshold=9.0))
    (twice,) = combined(GuidedSample(0, weak, (0,), (1.0,), (1.0,), strengths=(2.0,)))
    (plain,) = combined(GuidedSample(0, strong, (0,), (1.0,), (1.0,)))
    (weighted,) = combined(GuidedSample(0, strong, (0,), (0.5,), (1.0,)))
    assert twice is not None and plain is not None and weighted is not None
    torch.testing.assert_close(twice.terms, plain.terms)
    torch.testing.assert_close(weighted.terms, 0.5 * plain.terms)


def test_a_ramp_subtracts_that_part_of_the_term() -> None:
    full = spec(Sample(scale=1000.0, threshold=9.0))
    (whole,) = combined(GuidedSample(0, full, (0,), (1.0,), (1.0,)))
    (part,) = combined(GuidedSample(0, full, (0,), (1.0,), (0.25,)))
    assert whole is not None and part is not None
    case = random_case(Sample(weights=(1.0, 1.0)), seed=5)
    cond = torch.tensor(case.cond[0]).float()
    torch.testing.assert_close(cond - part.cond, 0.25 * (cond - whole.cond), rtol=0, atol=1e-6)


def test_a_concept_outside_its_own_window_needs_no_row() -> None:
    acting = (1.0,) * 4
    sample = GuidedSample(
        0, spec(Sample()), (0, 1), (1.0, 1.0), acting, concept_acting=(acting, (0.0, 1.0, 1.0, 0.0))
    )
    state = SLD().start([sample], steps_of(4))
    asked = [[row.concept for row in state.rows(steps_of(4).step(t))] for t in range(4)]
    assert asked == [[0], [0, 1], [0, 1], [0]]


# --- properties ------------------------------------------------------------------------------------------------


@relaxed
@given(
    momentum=st.sampled_from([0.0, 0.5]), threshold=st.sampled_from([-0.5, 0.0, 1.0]), seed=st.integers(0, 99)
)
def test_a_concept_that_is_the_prompt_itself_changes_nothing(
    momentum: float, threshold: float, seed: int
) -> None:
    case = random_case(Sample(scale=5000.0, threshold=threshold, momentum_scale=momentum), seed=seed)
    same = replace(case, concepts=case.cond[:, :, None])
    assert torch.equal(guided(same), torch.tensor(case.cond).float())


@relaxed
@given(lower=st.floats(-1, 1), higher=st.floats(-1, 1), seed=st.integers(0, 99))
def test_raising_lambda_only_adds_active_elements(lower: float, higher: float, seed: int) -> None:
    lower, higher = sorted((lower, higher))
    e_u, e_p, e_s = torch.randn(3, 2, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    few, many = safety_term(e_u, e_p, e_s, 1000.0, lower), safety_term(e_u, e_p, e_s, 1000.0, higher)
    assert torch.equal(few, torch.where(few != 0, many, 0.0))
    assert (many != 0).sum() >= (few != 0).sum()


@relaxed
@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
def test_permuting_the_batch_permutes_the_result_exactly(order: list[int], seed: int) -> None:
    samples = (
        Sample(scale=5000.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7),
        None,
        Sample(scale=200.0, start=2),
        Sample(threshold=0.01, momentum_scale=0.3, momentum_beta=0.4, weights=(0.7, 1.3, 0.1), start=1),
        Sample(weights=(1.0, 0.3), stop=2),
    )
    case = random_case(*samples, seed=seed)
    permuted = Case(
        tuple(samples[index] for index in order),
        *(part[:, order] for part in (case.uncond, case.cond, case.concepts)),
    )
    assert torch.equal(guided(permuted), guided(case)[:, order])


def test_a_sample_is_guided_in_a_mixed_batch_as_it_is_alone() -> None:
    strong = Sample(scale=2000.0, threshold=0.025, momentum_scale=0.5, momentum_beta=0.7, start=1)
    case = random_case(Sample(), strong, None, Sample(scale=20.0, start=3), steps=5)
    alone = Case((strong,), *(part[:, 1:2] for part in (case.uncond, case.cond, case.concepts)))
    torch.testing.assert_close(guided(case)[:, 1:2], guided(alone), rtol=0, atol=1e-6)
    assert torch.equal(guided(case)[:, 2], torch.tensor(case.cond[:, 2]).float())


def test_two_runs_of_one_method_object_share_no_state() -> None:
    method, case = SLD(), random_case(Sample(momentum_scale=0.5, momentum_beta=0.7))
    one, other = (method.start(members(case.samples, case.schedule), case.schedule) for _ in range(2))
    for t in range(case.steps):
        step = case.schedule.step(t)
        results = [state.combine(step, predictions(case, t, state.rows(step))).cond for state in (one, other)]
        assert torch.equal(*results)


# --- half precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_predictions_are_guided_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    case = random_case(
        Sample(scale=5000.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7),
        Sample(scale=200.0, start=2),
    )
    for half, full in zip(run(case, dtype), run(case), strict=True):
        assert half[1] is not None and full[1] is not None
        assert half[1].cond.dtype == dtype
        assert torch.equal(half[1].cond, full[1].cond.to(dtype))
        assert torch.equal(half[1].terms, full[1].terms)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_strongest_scale_does_not_overflow_half_precision(dtype: torch.dtype) -> None:
    """The difference 1,000 times the scale 5,000 is 5e6, and float16 ends at 65,504; so does 60,000 twice."""
    sample = Sample(scale=5000.0, threshold=1e6, momentum_scale=0.5, momentum_beta=0.5)
    shape = (3, 1, 1, 1, 2)
    e_u, e_p, e_s = (np.broadcast_to(np.array(pair), shape) for pair in ((0, 6e4), (1e3, 0), (0, -6e4)))
    case = Case((sample,), *(torch.tensor(e).to(dtype).double().numpy() for e in (e_u, e_p)), e_s[:, :, None])
    case = replace(case, concepts=torch.tensor(case.concepts).to(dtype).double().numpy())
    _, result = run(case, dtype)[0]
    assert result is not None
    assert result.terms.isfinite().all()
    close(result.terms.numpy(), oracle(case)[1][0, :, 0], case)
    assert result.cond[..., 0].item() == case.cond[0, ..., 0].item()


# --- other parametrisations ------------------------------------------------------------------------------------


def toy(parametrisation: str) -> tuple[Case, Any]:
    """One linear denoiser, its noise predictions expressed as the parametrisation's, and the way back to x0.

    Returns the case and a function from guided predictions [T, B, ...] to clean samples of the same shape.
    """
    sample = Sample(scale=20.0, threshold=1 / 128, momentum_scale=0.5, momentum_beta=0.7, start=1)
    base = random_case(sample, replace(sample, scale=500.0, start=0, weights=(1.0, 0.5)), steps=6, seed=7)
    x = np.random.default_rng(8).normal(size=base.cond.shape)
    sigma = np.array([0.97, 0.85, 0.7, 0.5, 0.3, 0.15])
    signal = 1 - sigma if parametrisation == "flow" else np.sqrt(1 - sigma**2)

    def by_step(values: Array, like: Array) -> Array:
        return values.reshape(-1, *(1,) * (like.ndim - 1))

    def of_noise(noise: Array) -> Array:
        a, s = by_step(signal, noise), by_step(sigma, noise)
        at = x if noise.ndim == x.ndim else x[:, :, None]
        clean = (at - s * noise) / a
        return {
            "epsilon": noise,
            "v_prediction": a * noise - s * clean,
            "sample": clean,
            "flow": noise - clean,
        }[parametrisation]

    def to_clean(prediction: Array) -> Array:
        a, s = by_step(signal, prediction), by_step(sigma, prediction)
        return {
            "epsilon": (x - s * prediction) / a,
            "v_prediction": a * x - s * prediction,
            "sample": prediction,
            "flow": x - s * prediction,
        }[parametrisation]

    factors = {"epsilon": 1 + 0 * sigma, "v_prediction": signal, "sample": -signal / sigma, "flow": 1 - sigma}
    case = Case(
        base.samples,
        *(of_noise(part) for part in (base.uncond, base.cond, base.concepts)),
        tuple(factors[parametrisation].tolist()),
    )
    return case, to_clean


def guided_clean(parametrisation: str) -> tuple[Array, Array]:
    case, to_clean = toy(parametrisation)
    return to_clean(guided(case).double().numpy()), to_clean(case.cond)


@pytest.mark.parametrize("parametrisation", ["v_prediction", "sample"])
def test_the_guided_x0_does_not_depend_on_what_the_model_predicts(parametrisation: str) -> None:
    expected, unguided = guided_clean("epsilon")
    clean, _ = guided_clean(parametrisation)
    assert np.abs(expected - unguided).max() > 0.1
    np.testing.assert_allclose(clean, expected, rtol=0, atol=1e-5)


def test_the_guided_x0_of_rectified_flow_is_that_of_its_noise_prediction() -> None:
    """Flow has other coefficients than variance-preserving models, so the noise is guided by the oracle here."""
    case, to_clean = toy("flow")
    noise, _ = toy("epsilon")
    expected_noise, _ = oracle(noise)
    sigma = 1 - np.array(case.factors).reshape(-1, 1, 1, 1, 1)
    x = to_clean(0 * case.cond)
    np.testing.assert_allclose(
        to_clean(guided(case).double().numpy()), (x - sigma * expected_noise) / (1 - sigma), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("factor", [0.0, 1e-7])
def test_a_step_that_says_nothing_about_the_noise_is_left_as_it_is(factor: float) -> None:
    case = random_case(Sample(scale=5000.0, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7))
    case = replace(case, factors=(factor, 1.0, factor, 1.0))
    results = [result for _, result in run(case)]
    for t in (0, 2):
        result = results[t]
        assert result is not None and result.applied == ()
        assert torch.equal(result.cond, torch.tensor(case.cond[t]).float())
        assert not result.terms.any()
    assert guided(case).isfinite().all()
    close(guided(case).numpy(), oracle(replace(case, factors=(0.0, 1.0, 0.0, 1.0)))[0], case)


def test_v_prediction_at_zero_terminal_snr_starts_without_nan() -> None:
    levels = np.array([1.0, 0.9, 0.5])
    case = replace(
        random_case(Sample(scale=5000.0, threshold=1.0, momentum_scale=0.5), steps=3),
        factors=tuple(sqrt(1 - level**2) for level in levels),
    )
    result = guided(case)
    assert result.isfinite().all()
    assert torch.equal(result[0], torch.tensor(case.cond[0]).float())
    assert not torch.equal(result[1], torch.tensor(case.cond[1]).float())
