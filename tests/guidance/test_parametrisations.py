"""Models that predict noise, v, x0 or a flow are guided along the same path.

The toy is the exact denoiser of Gaussian data: for x0 ~ N(m, tau^2) with a mean m for each text, the expected noise in
x = alpha x0 + sigma eps is sigma (x - alpha m) / (alpha^2 tau^2 + sigma^2), linear in x. The same denoiser is asked for its
prediction in six parametrisations, at equal ratios of noise to signal, and each is sampled by diffusers' scheduler for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor

from sldcore.encoding import ConceptRow, RunConcepts, UsedRow
from sldcore.families.base import DiffusersFamily
from sldcore.policy import ConceptUse, GuidanceSpec, SafetyPolicy, Window
from sldcore.resolution import resolve_policy
from sldcore.run import GuidedRun
from sldcore.types import Predictions

STEPS, START, GUIDANCE_SCALE, TAU = (
    10,
    3,
    4.0,
    0.3,
)  # steps that divide 1000: DDIM of diffusers counts back in whole timesteps
SLD = {"scale": 2.0, "threshold": 0.05, "momentum_scale": 0.4, "momentum_beta": 0.6}
TABLE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "timestep_spacing": "trailing",
}
SHAPE = (2, 3, 4, 4)
Array = NDArray[np.float64]


def noise(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(SHAPE)


START_NOISE = noise(0)
MEANS = {"uncond": 0.2 * noise(1), "cond": noise(2), "concept": noise(3)}


def levels() -> tuple[Array, Array]:
    """Alpha and sigma at every step and, without any noise, after the last."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - betas)
    timesteps = np.round(np.arange(1000, 0, -1000 / STEPS)).astype(int) - 1
    at = np.append(alpha_bar[timesteps], 1.0)
    return np.sqrt(at), np.sqrt(1 - at)


ALPHA, SIGMA = levels()


def eps_of(x: Any, mean: Any, step: int) -> Any:
    """The expected noise in x = alpha x0 + sigma eps."""
    alpha, sigma = ALPHA[step], SIGMA[step]
    return sigma * (x - alpha * mean) / (alpha**2 * TAU**2 + sigma**2)


# --- the known answer, written out in noise ----------------------------------------------------------------------


def closed_form() -> Array:
    """Guided x0 at every step, [STEPS, *SHAPE]: the paper's equations, then DDIM."""
    x = START_NOISE
    momentum, path = np.zeros(SHAPE), []
    for step in range(STEPS):
        e_u, e_p, e_s = (eps_of(x, MEANS[text], step) for text in ("uncond", "cond", "concept"))
        mu = np.where(e_p - e_s >= SLD["threshold"], 0.0, np.minimum(np.abs(e_p - e_s) * SLD["scale"], 1.0))
        gamma = mu * (e_s - e_u) + SLD["momentum_scale"] * momentum
        momentum = SLD["momentum_beta"] * momentum + (1 - SLD["momentum_beta"]) * gamma
        guided = e_u + GUIDANCE_SCALE * (e_p - e_u - (gamma if step >= START else 0.0))
        x0 = (x - SIGMA[step] * guided) / ALPHA[step]
        path.append(x0)
        x = ALPHA[step + 1] * x0 + SIGMA[step + 1] * guided
    return np.stack(path)


# --- the same in other parametrisations, by the real method and diffusers' schedulers ------------------------------


@dataclass(frozen=True)
class Parametrisation:
    """How a model predicts: ``predict(x0, eps, step)``, and the x0 in its guided prediction by ``clean(x, p, step)``.

    ``scale`` of x against the variance-preserving one: a flow's x = (1 - s) x0 + s eps is smaller by alpha + sigma.
    """

    scheduler: Callable[[], Any]
    predict: Callable[[Any, Any, int], Any]
    clean: Callable[[Any, Any, int], Any]
    scale: Callable[[int], float] = lambda step: 1.0
    sign: int = 1


def ddim(prediction_type: str) -> Callable[[], Any]:
    def make() -> Any:
        scheduler = DDIMScheduler(**TABLE, prediction_type=prediction_type)
        scheduler.alphas_cumprod = torch.from_numpy(
            np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
        )
        scheduler.set_timesteps(STEPS)
        return scheduler

    return make


def flow(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        scheduler = FlowMatchEulerDiscreteScheduler(**options)
        scheduler.set_timesteps(sigmas=NOISE_SHARE[:-1])
        exact = torch.from_numpy(1 - NOISE_SHARE if options else NOISE_SHARE)
        scheduler.sigmas = exact  # diffusers keeps them in float32
        return scheduler

    return make


NOISE_SHARE = SIGMA / (ALPHA + SIGMA)
"""The flow's sigma at the same ratio of noise to signal."""


def shrunk(step: int) -> float:
    return float(1 / (ALPHA[step] + SIGMA[step]))


PARAMETRISATIONS = {
    "epsilon": Parametrisation(
        ddim("epsilon"),
        lambda x0, eps, step: eps,
        lambda x, p, step: (x - SIGMA[step] * p) / ALPHA[step],
    ),
    "v": Parametrisation(
        ddim("v_prediction"),
        lambda x0, eps, step: ALPHA[step] * eps - SIGMA[step] * x0,
        lambda x, p, step: ALPHA[step] * x - SIGMA[step] * p,
    ),
    "x0": Parametrisation(ddim("sample"), lambda x0, eps, step: x0, lambda x, p, step: p),
    "flow": Parametrisation(
        flow(),
        lambda x0, eps, step: eps - x0,
        lambda x, p, step: x - NOISE_SHARE[step] * p,
        shrunk,
    ),
    "flow, negated by its pipeline": Parametrisation(
        flow(),
        lambda x0, eps, step: x0 - eps,
        lambda x, p, step: x + NOISE_SHARE[step] * p,
        shrunk,
        sign=-1,
    ),
    "flow with inverted sigmas": Parametrisation(
        flow(invert_sigmas=True),
        lambda x0, eps, step: x0 - eps,
        lambda x, p, step: x + NOISE_SHARE[step] * p,
        shrunk,
    ),
}


class Toy(DiffusersFamily):
    """A family, for the factors that families give."""

    name = "toy"


class NegatedToy(Toy):
    """The denoiser predicts the opposite of what the scheduler is handed."""

    sign = -1


def guided_run(
    kind: Parametrisation, scheduler: Any, factors: Callable[[float], float] = lambda factor: factor
) -> GuidedRun:
    spec = GuidanceSpec(method="sld", options=SLD, window=Window(start=START))
    policy = SafetyPolicy(name="toy", guidance=spec, concepts=(ConceptUse(text="anything"),))
    family = NegatedToy() if kind.sign < 0 else Toy()
    schedule = family.noise_schedule(scheduler, STEPS)
    schedule = replace(schedule, epsilon_factors=tuple(factors(each) for each in schedule.epsilon_factors))
    concepts = RunConcepts(
        (ConceptRow("toy", "toy", "anything"),), {policy: (UsedRow(0, 1.0, concept="toy"),)}, ({},)
    )
    device = torch.device("cpu")
    return GuidedRun(
        schedule, [policy] * SHAPE[0], {policy: resolve_policy(policy)}, concepts, (), True, device
    )


def sampled(name: str, factors: Callable[[float], float] = lambda factor: factor) -> Array:
    """Guided x0 at every step, [STEPS, *SHAPE], by one parametrisation."""
    kind = PARAMETRISATIONS[name]
    scheduler = kind.scheduler()
    run = guided_run(kind, scheduler, factors)
    x = torch.from_numpy(START_NOISE) * kind.scale(0)
    path = []
    for step, timestep in enumerate(scheduler.timesteps):

        def predicted(text: str, x: Tensor = x, step: int = step) -> Tensor:
            own = x / kind.scale(step)
            eps = eps_of(own, torch.from_numpy(MEANS[text]), step)
            return torch.as_tensor(kind.predict((own - SIGMA[step] * eps) / ALPHA[step], eps, step))

        plan = run.begin()
        rows = torch.stack([predicted("concept")[row.sample] for row in plan.rows])
        uncond, cond = run.finish(
            plan, Predictions(predicted("uncond"), predicted("cond"), rows, plan.rows, x)
        )
        guided = uncond + GUIDANCE_SCALE * (cond - uncond)
        path.append(kind.clean(x, guided, step).numpy())
        x = advance(scheduler, kind.sign * guided, timestep, x)
    return np.stack(path)


def advance(scheduler: Any, prediction: Tensor, timestep: Any, x: Tensor) -> Tensor:
    """One step of diffusers' scheduler, which for a flow computes in float32 unless the arithmetic is done here."""
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return torch.as_tensor(scheduler.step(prediction, timestep, x, return_dict=False)[0])
    rounded = scheduler.step(prediction, timestep, x, return_dict=False)[0]
    index = scheduler.step_index - 1
    exact = x + (scheduler.sigmas[index + 1] - scheduler.sigmas[index]) * prediction
    torch.testing.assert_close(rounded, exact, rtol=0, atol=1e-5, check_dtype=False)
    return exact


# --- what must hold ----------------------------------------------------------------------------------------------


TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def answer() -> Array:
    return closed_form()


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_every_parametrisation_is_guided_along_the_path_of_the_closed_form(name: str, answer: Array) -> None:
    np.testing.assert_allclose(sampled(name), answer, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [each for each in PARAMETRISATIONS if each != "epsilon"])
def test_two_parametrisations_agree_with_each_other(name: str) -> None:
    np.testing.assert_allclose(sampled(name), sampled("epsilon"), rtol=0, atol=TOLERANCE)


def test_guidance_is_felt_in_all_its_parts(answer: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer would be another one without the term, the clamp, the threshold or the momentum."""
    for key, value in (
        ("scale", 0.0),
        ("scale", 1e6),
        ("threshold", 10.0),
        ("threshold", -10.0),
        ("momentum_scale", 0.0),
        ("momentum_beta", 0.0),
    ):
        monkeypatch.setitem(SLD, key, value)
        assert np.abs(closed_form() - answer)[START:].max() > 100 * TOLERANCE, f"{key} = {value} is not felt"
        monkeypatch.undo()


@pytest.mark.parametrize("name", [each for each in PARAMETRISATIONS if each != "epsilon"])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda factor: 1.0,
        lambda factor: -factor,
        lambda factor: 0.9 * factor,
        lambda factor: abs(factor) ** 0.5,
    ],
    ids=["none", "wrong sign", "ten percent less", "its root"],
)
def test_a_wrong_factor_leaves_the_path(name: str, wrong: Callable[[float], float], answer: Array) -> None:
    assert np.abs(sampled(name, wrong) - answer)[START:].max() > 100 * TOLERANCE
