"""Safe Denoiser against its equations, written once more as plain loops in float64, and its reference latents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from math import exp, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sldcore.errors import GuidanceError
from sldcore.families.noise import schedule_of
from sldcore.guidance import references, safe_denoiser
from sldcore.guidance.base import GuidedSample
from sldcore.guidance.kinds import KINDS, SafeDenoiserOptions
from sldcore.guidance.references import read_references, write_references
from sldcore.guidance.safe_denoiser import SafeDenoiser, SafeDenoiserRun
from sldcore.policy import GuidanceSpec, Options, SafetyPolicy
from sldcore.policy_parts import ConceptUse
from sldcore.session import guard
from sldcore.testing import GuidanceContract
from sldcore.testing.contracts.guided_runs import Combined
from sldcore.testing.contracts.tensors import Place
from sldcore.types import Guided, Predictions, Schedule

Array = NDArray[np.float64]
SHAPE = (2, 3, 3)
STEPS = 4
SIGMAS = (1.0, 0.9, 0.7, 0.3)
PLACE = Place()
FORMS = ("paper", "released")


def saved(path: Path, latents: Tensor, **more: Tensor) -> dict[str, Any]:
    """The options that name a new file."""
    save_file({"latents": latents, **more}, path)
    return {"references": str(path), "sha256": sha256(path.read_bytes()).hexdigest()}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestContract(GuidanceContract):
    (contribution,) = (kind for kind in KINDS if kind.name == "safe-denoiser")

    @pytest.fixture(autouse=True)
    def _prepared(self, tmp_path: Path, form: str) -> None:
        shapes = ((4, 4, 4), (3, 2, 6))
        files = [saved(tmp_path / f"{shape[2]}.safetensors", noise(6, *shape).float()) for shape in shapes]
        both = {"form": form, "noise_floor": 0.2}
        self.of_shape = {shape: {**both, **file} for shape, file in zip(shapes, files, strict=True)}
        self.options = self.of_shape[4, 4, 4]

    def walk(self, *arguments: Any, place: Place = PLACE, **fields: Any) -> list[Combined]:
        """With references of the shape that the run has."""
        self.options = self.of_shape[place.shape]  # type: ignore[index]
        return super().walk(*arguments, place=place, **fields)


# --- the oracle ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Parameters of one sample; ``amounts`` is how much of each concept is acting, at each step."""

    options: dict[str, Any] = field(default_factory=dict)
    amounts: tuple[tuple[float, ...], ...] = ((1.0,) * STEPS,)


@dataclass(frozen=True)
class Case:
    """A run: ``latents``, ``uncond``, ``cond`` [T, B, ...]; references [N, ...] of each sample by name of the file."""

    samples: tuple[Sample | None, ...]
    latents: Array
    uncond: Array
    cond: Array
    kind: str = "epsilon"
    scale: float | None = 5.0

    def mixture(self, step: int) -> tuple[float, float]:
        sigma = SIGMAS[step]
        return (1 - sigma if self.kind == "flow" else sqrt(1 - sigma**2)), sigma

    def factors(self, step: int) -> tuple[float, float]:
        """The a and b of x0."""
        a, s = self.mixture(step)
        if self.kind == "epsilon":
            return (1 / a, -s / a) if a else (0.0, 0.0)
        return (a, -s) if self.kind == "v" else (1.0, -s)

    @property
    def schedule(self) -> Schedule:
        steps = range(STEPS)
        factors = tuple(1.0 if self.kind == "epsilon" else self.mixture(step)[0] for step in steps)
        return Schedule(
            tuple(range(STEPS, 0, -1)),
            SIGMAS,
            factors,
            self.scale,
            tuple(self.factors(step) for step in steps),
        )


def oracle(case: Case, pictures: dict[int, Array]) -> Array:
    """Guided predictions [T, B, ...], number by number."""
    guided = case.cond.copy()
    for b, sample in enumerate(case.samples):
        if sample is None:
            continue
        options = SafeDenoiserOptions.model_validate(
            {"references": "-", "sha256": "0" * 64, **sample.options}
        )
        for t in range(STEPS):
            (a, b_factor), (signal, sigma) = case.factors(t), case.mixture(t)
            size = sqrt(signal**2 + sigma**2)
            amount = max(each[t] for each in sample.amounts)
            if b_factor == 0 or sigma / size < options.noise_floor or amount == 0:
                continue
            s = case.scale or options.pipeline_guidance_scale
            made = case.uncond[t, b] + s * (case.cond[t, b] - case.uncond[t, b])
            x0 = a * case.latents[t, b] + b_factor * made
            x_t = case.latents[t, b] / size
            moved = moved_x0(x_t, x0, pictures[b], signal / size, sigma / size, options)
            wanted = made + amount * (moved - x0) / b_factor  # what the pipeline is to make of it
            guided[t, b] = case.uncond[t, b] + (wanted - case.uncond[t, b]) / s
    return guided


def moved_x0(
    x_t: Array, x0: Array, pictures: Array, alpha: float, sigma: float, options: SafeDenoiserOptions
) -> Array:
    likelihoods, kernels, normed = [], [], []
    for y in pictures:
        likelihood = 1.0
        for at in np.ndindex(SHAPE):
            likelihood *= exp(-((x_t[at] - alpha * y[at]) ** 2) / (2 * sigma**2))
        likelihoods.append(likelihood)
        if options.form == "released":
            y = np.array([[[v / sqrt(sum(y[c, i, j] ** 2 for c in range(2))) for j, v in enumerate(row)]
                           for i, row in enumerate(channel)] for channel in y])  # fmt: skip
        normed.append(y)
        distance = sqrt(sum((x0[at] - y[at]) ** 2 for at in np.ndindex(SHAPE)))
        kernels.append(exp(-distance / (2 * options.bandwidth**2)))
    mass = sum(kernels)
    if options.form == "released":
        mean = sum((k * y for k, y in zip(kernels, normed, strict=True)), np.zeros(SHAPE)) / mass
        return x0 - options.scale * mean if mass > options.threshold else x0
    unsafe = sum((q * y for q, y in zip(likelihoods, pictures, strict=True)), np.zeros(SHAPE)) / sum(
        likelihoods
    )
    return x0 + options.scale * min(mass / options.threshold, 1.0) * (x0 - unsafe)


# --- running the method ----------------------------------------------------------------------------------------


def members(case: Case) -> list[GuidedSample]:
    return [
        GuidedSample(
            index=b,
            spec=GuidanceSpec(method="safe-denoiser", options=complete(sample.options)),
            concepts=tuple(range(len(sample.amounts))),
            weights=(1.0,) * len(sample.amounts),
            acting=(1.0,) * STEPS,
            concept_acting=sample.amounts,
        )
        for b, sample in enumerate(case.samples)
        if sample is not None
    ]


def complete(options: dict[str, Any]) -> Options:
    return Options(SafeDenoiserOptions.model_validate(options).model_dump())


def run(case: Case, dtype: torch.dtype = torch.float64) -> list[Guided | None]:
    state = SafeDenoiser().start(members(case), case.schedule)
    assert isinstance(state, SafeDenoiserRun)
    found = []
    for t in range(STEPS):
        step = case.schedule.step(t)
        assert state.rows(step) == ()
        found.append(state.combine(step, predictions(case, t, dtype)) if state.acts(step) else None)
    return found


def predictions(case: Case, t: int, dtype: torch.dtype = torch.float64) -> Predictions:
    uncond, cond, latents = (
        torch.tensor(part[t], dtype=dtype) for part in (case.uncond, case.cond, case.latents)
    )
    return Predictions(uncond, cond, cond[:0], (), latents)


def random_case(*samples: Sample | None, seed: int = 0, **fields: Any) -> Case:
    rng = np.random.default_rng(seed)
    latents, uncond, cond = (size * rng.normal(size=(STEPS, len(samples), *SHAPE)) for size in (1, 0.2, 0.2))
    return Case(samples, latents, uncond, cond, **fields)


@pytest.fixture
def mixed(tmp_path: Path, form: str) -> tuple[tuple[Sample | None, ...], dict[int, Array]]:
    """Samples that differ in references, options and windows, and the references of each."""
    few, many = noise(1, *SHAPE, seed=1), noise(7, *SHAPE, seed=2)
    one, two = saved(tmp_path / "few.safetensors", few), saved(tmp_path / "many.safetensors", many)
    base = {"form": form, "noise_floor": 0.2, "bandwidth": 2.0}
    samples = (
        Sample({**base, **two, "threshold": 1.0}),
        None,
        Sample(
            {**base, **one, "threshold": 0.2, "scale": 0.7}, ((0.0, 1.0, 0.5, 0.0), (0.0, 0.25, 1.0, 0.0))
        ),
        Sample({**base, **two, "threshold": 3.0, "noise_floor": 0.8}),
        Sample({**base, **two, "bandwidth": 0.3, "threshold": 0.01}),
    )
    return samples, {0: many.numpy(), 2: few.numpy(), 3: many.numpy(), 4: many.numpy()}


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow"])
@pytest.mark.parametrize("scale", [5.0, None])
def test_a_run_follows_the_equations_number_by_number(mixed: Any, kind: str, scale: float | None) -> None:
    samples, pictures = mixed
    case = random_case(*samples, kind=kind, scale=scale)
    expected = oracle(case, pictures)
    moved = np.abs(expected - case.cond).reshape(STEPS, len(samples), -1).max(axis=2)
    assert (moved[:, [0, 2]] > 1e-3).any(axis=0).all()  # the case says something
    for t, result in enumerate(run(case)):
        got = case.cond[t] if result is None else result.cond.numpy()
        np.testing.assert_allclose(got, expected[t], rtol=1e-9, atol=1e-10)


def test_a_sample_alone_is_as_in_a_batch_and_others_are_left_alone(mixed: Any) -> None:
    samples, _ = mixed
    case = random_case(*samples, seed=3)
    together = run(case, torch.float32)
    for b, sample in enumerate(samples):
        own = (part[:, b : b + 1] for part in (case.latents, case.uncond, case.cond))
        alone = run(Case((sample,), *own), torch.float32) if sample is not None else [None] * STEPS
        for t, (one, many) in enumerate(zip(alone, together, strict=True)):
            plain = torch.tensor(case.cond[t, b], dtype=torch.float32)
            expected = plain if one is None else one.cond[0]
            assert torch.equal(plain if many is None else many.cond[b], expected)
            assert many is None or (b in many.applied) == (one is not None)


def test_clean_latents_next_to_a_reference_move_away_from_it(tmp_path: Path) -> None:
    picture = noise(1, *SHAPE, seed=4)
    options = {**saved(tmp_path / "one.safetensors", picture), "noise_floor": 0.2, "threshold": 0.5}
    at = picture + 0.1 * noise(1, *SHAPE, seed=5)
    change = safe_denoiser.paper(0.6 * at, at, picture, 0.6, 0.8, 0.33, 3.15, 0.5)
    torch.testing.assert_close(change, 0.33 * (at - picture))
    assert (at + change - picture).norm() > (at - picture).norm()
    assert SafeDenoiserOptions.model_validate(options).form == "paper"


def test_far_references_hardly_count_in_the_papers_form_and_not_at_all_in_the_released_one() -> None:
    x0, far = noise(1, *SHAPE, seed=6), noise(5, *SHAPE, seed=7) + 300
    near, away = (safe_denoiser.paper(x0, x0, each, 0.6, 0.8, 0.33, 3.15, 0.9) for each in (x0 + 0.1, far))
    torch.testing.assert_close(near, torch.full_like(x0, -0.033))
    assert away.norm() < 1e-6 * far.norm()
    assert not safe_denoiser.released(x0, far, 0.33, 0.2, 1.6).any()


def test_distances_are_the_same_in_parts(mixed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, _ = mixed
    case = random_case(*samples, seed=8)
    whole = run(case)
    monkeypatch.setattr(safe_denoiser, "ELEMENTS", 40)  # two pictures at once
    for one, two in zip(whole, run(case), strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one.cond, two.cond, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_far_away_in_half_precision_stays_finite(mixed: Any, dtype: torch.dtype) -> None:
    """Likelihoods of latents in the hundreds are zero in any precision, but for their logarithms."""
    samples, _ = mixed
    case = random_case(*samples, seed=9)
    far = Case(samples, 300 * case.latents, case.uncond, case.cond)
    for result in run(far, dtype):
        if result is not None:
            assert result.cond.isfinite().all()
            assert result.cond.dtype == dtype


def test_nan_in_a_prediction_is_not_hidden(mixed: Any) -> None:
    samples, _ = mixed
    case = random_case(*samples, seed=10, kind="v")
    case.uncond[1, 0, 0, 0, 0] = np.nan
    result = run(case)[1]
    assert result is not None
    assert result.cond[0].isnan().any()
    assert result.cond[1:].isfinite().all()


def test_by_default_it_acts_at_the_first_fifth_of_stable_diffusions_timesteps(tmp_path: Path) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    scheduler.set_timesteps(50)
    told = schedule_of(scheduler, 50)
    options = complete(saved(tmp_path / "r.safetensors", noise(2, *SHAPE)))
    sample = GuidedSample(0, GuidanceSpec(method="safe-denoiser", options=options), (0,), (1.0,), (1.0,) * 50)
    state = SafeDenoiser().start([sample], told)
    acting = [told.timesteps[i] for i in range(50) if state.acts(told.step(i))]  # type: ignore[attr-defined]
    assert acting == [t for t in told.timesteps if 780 <= t <= 1000] and len(acting) == 11


# --- errors ----------------------------------------------------------------------------------------------------


def start(options: dict[str, Any], told: Schedule | None = None) -> SafeDenoiserRun:
    case = random_case(Sample({"noise_floor": 0.2, **options}))
    state = SafeDenoiser().start(members(case), told or case.schedule)
    assert isinstance(state, SafeDenoiserRun)
    return state


def test_a_window_without_a_noisy_step_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = saved(tmp_path / "r.safetensors", noise(2, *SHAPE))
    with pytest.raises(GuidanceError, match=r"of 0\.99 and more.*highest: 0\.9000\); lower noise_floor"):
        start({**file, "noise_floor": 0.99})


def test_a_schedule_that_does_not_tell_clean_latents_is_refused(tmp_path: Path) -> None:
    told = random_case(Sample()).schedule
    untold = Schedule(told.timesteps, told.noise_levels, told.epsilon_factors)
    with pytest.raises(GuidanceError, match="has to know the clean latents"):
        start(saved(tmp_path / "r.safetensors", noise(2, *SHAPE)), untold)


def test_references_of_another_size_are_refused_with_both_shapes(tmp_path: Path) -> None:
    case = random_case(Sample({"noise_floor": 0.2, **saved(tmp_path / "r.safetensors", noise(2, 2, 5, 5))}))
    with pytest.raises(GuidanceError, match=r"latents \[2, 5, 5\], and this run's are \[2, 3, 3\]"):
        run(case)


def test_latents_that_are_not_shown_are_missed(tmp_path: Path) -> None:
    case = random_case(Sample({"noise_floor": 0.2, **saved(tmp_path / "r.safetensors", noise(2, *SHAPE))}))
    state = SafeDenoiser().start(members(case), case.schedule)
    given = predictions(case, 1)
    with pytest.raises(GuidanceError, match="has to see the latents"):
        state.combine(case.schedule.step(1), Predictions(given.uncond, given.cond, given.concepts, ()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "abc"}, "sha256"),
        ({"references": ""}, "references"),
        ({"form": "other"}, "'paper' or 'released'"),
        ({"threshold": 0}, "greater than 0"),
        ({"eta": 0.1}, "unknown key 'eta'"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SafeDenoiserOptions.model_validate({"references": "r", "sha256": "0" * 64, **change})


def test_references_and_their_hash_have_to_be_given() -> None:
    with pytest.raises(ValidationError, match=r"(?s)references.*required.*sha256.*required"):
        SafeDenoiserOptions.model_validate({})


# --- reference latents -----------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_named_with_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(GuidanceError, match=r"none\.safetensors: No such file.*write_references"):
        read_references(str(tmp_path / "none.safetensors"), "0" * 64)


def test_a_file_with_another_hash_is_refused_with_both_hashes(tmp_path: Path) -> None:
    options = saved(tmp_path / "r.safetensors", noise(2, *SHAPE))
    with pytest.raises(GuidanceError, match=rf"have sha256 {options['sha256']}, not {'0' * 64}"):
        read_references(options["references"], "0" * 64)


def test_the_hash_is_that_of_what_is_read_and_its_digits_may_be_large(tmp_path: Path) -> None:
    options = saved(tmp_path / "r.safetensors", noise(2, *SHAPE))
    first = read_references(options["references"], options["sha256"].upper())
    assert torch.equal(first, noise(2, *SHAPE))
    assert read_references(options["references"], options["sha256"]) is first
    changed = saved(tmp_path / "r.safetensors", noise(2, *SHAPE, seed=1))
    assert torch.equal(read_references(changed["references"], changed["sha256"]), noise(2, *SHAPE, seed=1))


def test_a_relative_path_starts_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = saved(tmp_path / "r.safetensors", noise(2, *SHAPE))
    monkeypatch.chdir(tmp_path)
    assert len(read_references("r.safetensors", options["sha256"])) == 2
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(GuidanceError, match="cannot read the references"):
        read_references("r.safetensors", options["sha256"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": noise(2, *SHAPE)}, "one tensor named 'latents', and have: other"),
        ({"latents": noise(2, *SHAPE), "more": noise(1)}, "and have: latents, more"),
        ({"latents": torch.ones(2, *SHAPE, dtype=torch.int64)}, "int64; expected floating point"),
        ({"latents": noise(2, 3)}, r"\[2, 3\] of float64"),
        ({"latents": noise(0, *SHAPE)}, r"\[0, 2, 3, 3\].*at least one picture"),
        ({"latents": torch.full((1, *SHAPE), torch.inf)}, "NaN or Inf"),
    ],
)
def test_what_is_no_reference_latents_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    path = tmp_path / "r.safetensors"
    save_file(tensors, path)
    with pytest.raises(GuidanceError, match=message):
        read_references(str(path), sha256(path.read_bytes()).hexdigest())


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(GuidanceError, match="no safetensors file"):
        read_references(str(path), sha256(path.read_bytes()).hexdigest())


# --- making them -----------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[Any]:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=0.5, shift_factor=0.25,
    )  # fmt: skip
    yield SimpleNamespace(
        vae=vae.eval(),
        image_processor=VaeImageProcessor(vae_scale_factor=2),
        config={"_name_or_path": "somebody/a-model"},
    )


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8)) for _ in range(3)]


def test_references_are_the_modes_shifted_and_scaled_as_the_pipeline_does(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "r.safetensors"
    digest = write_references(pipe, pictures(), path)
    latents = read_references(str(path), digest)
    assert latents.shape == (3, 4, 8, 12) and latents.dtype == torch.float16
    for picture, found in zip(pictures(), latents, strict=True):
        pixels = torch.tensor(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            expected = (pipe.vae.encode(pixels).latent_dist.mode() - 0.25) * 0.5
        torch.testing.assert_close(found.float(), expected[0], rtol=1e-2, atol=1e-3)


def test_the_same_pictures_give_the_same_file_with_what_it_was_made_of(pipe: Any, tmp_path: Path) -> None:
    one, two = (write_references(pipe, pictures(), tmp_path / name) for name in ("one", "two"))
    assert one == two == sha256((tmp_path / "one").read_bytes()).hexdigest()
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["one", "two"]
    with safe_open(tmp_path / "one", "pt") as file:
        made = json.loads(file.metadata()["references"])
    assert (made["model"], made["pictures"], made["size"]) == ("somebody/a-model", 3, [16, 24])
    assert {"sldcore", "diffusers", "torch"} <= set(made)


def test_all_pictures_get_the_size_that_is_asked_for(pipe: Any, tmp_path: Path) -> None:
    mixed = [*pictures(), pictures()[0].resize((40, 40))]
    digest = write_references(pipe, mixed, tmp_path / "r", size=(32, 16))
    assert read_references(str(tmp_path / "r"), digest).shape == (4, 4, 16, 8)


def test_an_autoencoder_that_overflows_in_half_precision_is_used_in_single(pipe: Any, tmp_path: Path) -> None:
    pipe.vae.register_to_config(force_upcast=True)
    digests = []
    for dtype in (torch.float16, torch.float32, torch.float16):  # the first rounds the weights
        pipe.vae.to(dtype)
        digests.append(write_references(pipe, pictures(), tmp_path / "r"))
        assert pipe.vae.dtype == dtype
    assert len(set(digests)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae": None}, "it has no vae"),
        ({"_pack_latents": lambda: None}, "it packs its latents"),
    ],
)
def test_a_pipeline_whose_latents_are_others_is_refused(
    pipe: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    vars(pipe).update(change)
    with pytest.raises(GuidanceError, match=message):
        write_references(pipe, pictures(), tmp_path / "r")
    assert not list(tmp_path.iterdir())


def test_without_pictures_there_is_no_file(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(GuidanceError, match="no pictures"):
        write_references(pipe, [], tmp_path / "r")
    assert references.TENSOR == "latents"


# --- in a pipeline ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_in_a_pipeline_the_solver_is_told_the_moved_clean_latents(
    parts: dict[str, Any], tmp_path: Path, solver: Any, prediction: str
) -> None:
    """At the first call, where the latents are the same with and without."""
    digest = write_references(tiny_pipelines.pipeline(**parts), pictures(), tmp_path / "r", size=(32, 32))
    options = {"references": str(tmp_path / "r"), "sha256": digest, "bandwidth": 30.0}
    spec = GuidanceSpec(method="safe-denoiser", options=options)
    policy = SafetyPolicy(name="test", guidance=spec, concepts=(ConceptUse(text="pictures of noise"),))

    def first(guarded: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The solver's prediction and latents, and alpha_bar of the first call."""
        pipe = tiny_pipelines.pipeline(**parts)
        pipe.scheduler = solver.from_config(pipe.scheduler.config, prediction_type=prediction)
        solved, solve = [], pipe.scheduler.step

        def solving(made: Tensor, timestep: Any, latents: Tensor, **more: Any) -> Any:
            sigma = pipe.scheduler.sigmas[0].double() if hasattr(pipe.scheduler, "sigmas") else None
            alpha_bar = pipe.scheduler.alphas_cumprod[timestep] if sigma is None else 1 / (1 + sigma**2)
            scale = alpha_bar**0.5 if solver is EulerDiscreteScheduler else 1.0
            solved.append((made.double(), scale * latents.double(), alpha_bar))
            return solve(made, timestep, latents, **more)

        pipe.scheduler.step = solving
        with guard(pipe, policy) if guarded else nullcontext() as session:
            seed = torch.Generator().manual_seed(0)
            pipe("a cat", num_inference_steps=6, generator=seed, output_type="latent", guidance_scale=4.0)
        if session is not None:
            assert session.trace.rows == session.trace.plain_rows
        return solved[0]

    (plain, latents, alpha_bar), (made, same, _) = first(False), first(True)
    assert torch.equal(latents, same)
    alpha, sigma = float(alpha_bar) ** 0.5, float(1 - alpha_bar) ** 0.5
    a, b = (1 / alpha, -sigma / alpha) if prediction == "epsilon" else (alpha, -sigma)
    x0, moved = a * latents + b * plain, a * latents + b * made
    references = read_references(str(tmp_path / "r"), digest).double()
    weights = (-((latents - alpha * references) ** 2).flatten(1).sum(1) / (2 * sigma**2)).softmax(0)
    unsafe = (weights.view(-1, 1, 1, 1) * references).sum(0)
    mass = sum(exp(-float((x0 - each).norm()) / (2 * 30.0**2)) for each in references)
    expected = x0 + 0.33 * min(mass / 1.6, 1.0) * (x0 - unsafe)
    assert (expected - x0).abs().max() > 0.1
    torch.testing.assert_close(moved, expected, rtol=5e-3, atol=5e-3 * float(x0.abs().max()))
