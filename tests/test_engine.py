"""The engine: what it saves, what it mixes, what it repeats, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, PNDMScheduler
from numpy.typing import NDArray
from tiny_pipelines import PROMPTS, ddim

from sldcore import Result, SafetyEngine, SafetyPolicy
from sldcore.contributions import GuidanceMethod
from sldcore.errors import GuidanceError
from sldcore.guidance.base import GuidanceRun, GuidedSample
from sldcore.guidance.sld import SLD
from sldcore.policy import ConceptUse, GuidanceSpec, SLDOptions, Window
from sldcore.request import Request
from sldcore.types import Guided, Predictions, Row, Schedule, Step

FAST: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "np"}


def policy(start: float = 1, text: str | None = None, method: str = "sld", **options: float) -> SafetyPolicy:
    """Guidance that acts after ``start`` steps, strong enough to be seen in six."""
    chosen = {"scale": 2000.0, "threshold": 0.025, "momentum_scale": 0.5, "momentum_beta": 0.7, **options}
    concept = ConceptUse(use="inappropriate") if text is None else ConceptUse(text=text)
    guidance = GuidanceSpec(method=method, options=chosen, window=Window(start=start))
    return SafetyPolicy(name="test", guidance=guidance, concepts=(concept,))


def pixels(result: Result) -> NDArray[np.float32]:
    return np.stack(list(result.images))


def differs(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return bool(np.abs(one - other).max() > 1e-3)


class EveryRow:
    """SLD that evaluates its concept rows at every step, whether they are needed or not."""

    name = "every-row"
    version = "1"

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        return _EveryRowRun(samples, schedule)


class _EveryRowRun:
    def __init__(self, samples: Sequence[GuidedSample], schedule: Schedule) -> None:
        self._sld = SLD().start(samples, schedule)
        self._rows = tuple(Row(sample.index, concept) for sample in samples for concept in sample.concepts)

    def rows(self, step: Step) -> tuple[Row, ...]:
        return self._rows

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        if self._sld.rows(step):
            return self._sld.combine(step, predictions)
        return Guided(predictions.cond, torch.zeros_like(predictions.concepts), ())


@pytest.fixture
def engine(pipe: Any) -> SafetyEngine:
    return SafetyEngine(pipe, policy())


# --- saving ---------------------------------------------------------------------------------------------------


def test_weak_evaluates_concept_rows_only_after_its_warm_up_and_loses_nothing(
    pipe: Any, plugin_catalogue: Callable[..., None]
) -> None:
    plugin_catalogue(GuidanceMethod(name="every-row", options=SLDOptions, create=EveryRow))
    weak = SafetyPolicy.preset("weak")
    assert weak.guidance is not None
    spec = GuidanceSpec(method="every-row", options=dict(weak.guidance.options), window=weak.guidance.window)
    call: dict[str, Any] = {"num_images": 2, "num_inference_steps": 50, "output_type": "np"}
    saving = SafetyEngine(pipe, weak).generate(PROMPTS[0], **call)
    complete = SafetyEngine(pipe, weak.replace(guidance=spec)).generate(PROMPTS[0], **call)
    off = SafetyEngine(pipe, "off").generate(PROMPTS[0], **call)

    assert [report.rows for report in saving.reports] == [2 * 50 + 35] * 2
    assert saving.trace.rows == 2 * (2 * 50 + 35)
    assert [report.rows for report in complete.reports] == [3 * 50] * 2
    np.testing.assert_allclose(pixels(saving), pixels(complete), rtol=0, atol=1e-6)
    assert differs(pixels(saving), pixels(off))


def test_the_denoiser_evaluates_exactly_the_rows_that_are_reported(engine: SafetyEngine) -> None:
    evaluated: list[int] = []
    engine.pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: evaluated.append(len(args[0])))
    late = policy(start=3, momentum_scale=0.0)
    result = engine.generate(list(PROMPTS[:2]), policies=["off", late], **FAST)
    assert evaluated == [4, 4, 4, 5, 5, 5]
    assert [report.rows for report in result.reports] == [12, 15]


# --- batches --------------------------------------------------------------------------------------------------


def test_a_mixed_batch_gives_the_pictures_of_single_calls_and_the_sum_of_their_rows(
    engine: SafetyEngine,
) -> None:
    mixed = [
        SafetyPolicy.preset("off"),
        policy(start=3, scale=200, threshold=0, momentum_scale=0),
        SafetyPolicy.preset("max"),
        policy(text="a boat"),
    ]
    together = engine.generate(list(PROMPTS), seed=[1, 2, 3, 4], policies=mixed, **FAST)
    alone = [
        engine.generate(prompt, seed=seed, policies=[one], **FAST)
        for seed, (prompt, one) in enumerate(zip(PROMPTS, mixed, strict=True), 1)
    ]
    np.testing.assert_allclose(
        pixels(together), np.concatenate([pixels(result) for result in alone]), rtol=0, atol=1e-4
    )
    assert [report.rows for report in together.reports] == [12, 12 + 3, 12 + 6, 12 + 6]
    assert together.trace.rows == sum(result.trace.rows for result in alone)


def test_permuting_the_prompts_permutes_the_pictures(engine: SafetyEngine) -> None:
    policies = [policy(), SafetyPolicy.preset("off"), policy(text="a boat", momentum_scale=0.0)]
    order = [2, 0, 1]
    first = engine.generate(list(PROMPTS[:3]), seed=[1, 2, 3], policies=policies, **FAST)
    second = engine.generate(
        [PROMPTS[i] for i in order],
        seed=[order[i] + 1 for i in range(3)],
        policies=[policies[i] for i in order],
        **FAST,
    )
    np.testing.assert_allclose(pixels(second), pixels(first)[order], rtol=0, atol=1e-4)
    assert [r.policy_digest for r in second.reports] == [first.reports[i].policy_digest for i in order]


def test_off_in_a_batch_is_the_plain_pipelines_picture(engine: SafetyEngine) -> None:
    plain = engine.pipe(PROMPTS[1], generator=torch.Generator().manual_seed(7), **FAST).images
    together = engine.generate(list(PROMPTS[:2]), seed=[1, 7], policies=[policy(), "off"], **FAST)
    np.testing.assert_allclose(pixels(together)[1:], plain, rtol=0, atol=1e-4)


def test_off_alone_is_bit_identical_to_the_plain_pipeline(engine: SafetyEngine) -> None:
    plain = engine.pipe(PROMPTS[0], generator=torch.Generator().manual_seed(7), **FAST).images
    assert np.array_equal(pixels(engine.generate(PROMPTS[0], seed=7, policies=["off"], **FAST)), plain)


@pytest.mark.parametrize(("text", "options"), [(None, {"scale": 0.0}), (PROMPTS[0], {"momentum_scale": 0.0})])
def test_guidance_without_a_direction_changes_nothing(
    engine: SafetyEngine, text: str | None, options: dict[str, float]
) -> None:
    off = engine.generate(PROMPTS[0], policies=["off"], **FAST)
    guided = engine.generate(PROMPTS[0], policies=[policy(text=text, **options)], **FAST)
    np.testing.assert_allclose(pixels(guided), pixels(off), rtol=0, atol=1e-5)


# --- seeds ----------------------------------------------------------------------------------------------------


def test_one_seed_is_counted_up_over_the_pictures_of_every_prompt(engine: SafetyEngine) -> None:
    result = engine.generate(list(PROMPTS[:2]), seed=5, num_images=2, **FAST)
    assert [(report.prompt, report.seed) for report in result.reports] == [
        (PROMPTS[0], 5),
        (PROMPTS[0], 6),
        (PROMPTS[1], 5),
        (PROMPTS[1], 6),
    ]


def test_a_seed_per_prompt_and_a_seed_per_picture_are_reported_per_picture(engine: SafetyEngine) -> None:
    per_prompt = engine.generate(list(PROMPTS[:2]), seed=[10, 20], num_images=2, **FAST)
    per_picture = engine.generate(list(PROMPTS[:2]), seed=[10, 11, 20, 21], num_images=2, **FAST)
    assert [report.seed for report in per_prompt.reports] == [10, 11, 20, 21]
    assert [report.seed for report in per_picture.reports] == [10, 11, 20, 21]
    assert np.array_equal(pixels(per_prompt), pixels(per_picture))


@pytest.mark.parametrize("noisy", ["eta", "Euler ancestral"])
def test_a_batch_of_seeds_equals_single_runs_where_every_step_draws_noise(pipe: Any, noisy: str) -> None:
    call = dict(FAST)
    if noisy == "eta":
        call["eta"] = 0.7
    else:
        pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    engine = SafetyEngine(pipe, policy())
    batch = pixels(engine.generate(PROMPTS[0], seed=[3, 1, 2], num_images=3, **call))
    single = [pixels(engine.generate(PROMPTS[0], seed=seed, **call)) for seed in (3, 1, 2)]
    np.testing.assert_allclose(batch, np.concatenate(single), rtol=0, atol=1e-4)
    assert differs(batch[0], batch[1])


def test_a_wrong_number_of_seeds_says_what_fits(engine: SafetyEngine) -> None:
    with pytest.raises(GuidanceError, match=r"3 seeds for 2 prompts with 2 pictures each.*\(4\)"):
        engine.generate(list(PROMPTS[:2]), seed=[1, 2, 3], num_images=2, **FAST)


def test_your_own_generators_are_used_with_seed_none(engine: SafetyEngine) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (8, 9)]
    own = engine.generate(list(PROMPTS[:2]), seed=None, generator=generators, **FAST)
    assert [report.seed for report in own.reports] == [None, None]
    assert np.array_equal(pixels(own), pixels(engine.generate(list(PROMPTS[:2]), seed=[8, 9], **FAST)))
    with pytest.raises(GuidanceError, match="either seed or generator"):
        engine.generate(PROMPTS[0], seed=1, generator=generators[0], **FAST)


# --- what a pipeline call can be given ------------------------------------------------------------------------


def test_one_negative_prompt_is_used_for_every_prompt(engine: SafetyEngine) -> None:
    together = engine.generate(list(PROMPTS[:2]), negative_prompt="a boat", **FAST)
    alone = [pixels(engine.generate(prompt, negative_prompt="a boat", **FAST)) for prompt in PROMPTS[:2]]
    np.testing.assert_allclose(pixels(together), np.concatenate(alone), rtol=0, atol=1e-4)
    assert differs(pixels(together), pixels(engine.generate(list(PROMPTS[:2]), **FAST)))


def test_prompt_embeds_give_the_picture_of_their_prompt(engine: SafetyEngine) -> None:
    embeds, negative = engine.pipe.encode_prompt(PROMPTS[0], "cpu", 1, True)
    result = engine.generate(
        None, prompt_embeds=embeds, negative_prompt_embeds=negative, num_images=2, **FAST
    )
    np.testing.assert_allclose(
        pixels(result), pixels(engine.generate(PROMPTS[0], num_images=2, **FAST)), rtol=0, atol=1e-5
    )
    assert [report.prompt for report in result.reports] == ["", ""]


def test_concepts_are_encoded_with_the_calls_clip_skip(engine: SafetyEngine) -> None:
    """A concept that is the prompt itself has no effect, but only if both are encoded alike."""
    encoder = engine.pipe.text_encoder
    vars(encoder).setdefault("text_model", encoder)  # where diffusers looks, and transformers 4 had it
    same = policy(text=PROMPTS[0], momentum_scale=0.0)
    skipping = pixels(engine.generate(PROMPTS[0], policies=["off"], clip_skip=1, **FAST))
    guided = pixels(engine.generate(PROMPTS[0], policies=[same], clip_skip=1, **FAST))
    np.testing.assert_allclose(guided, skipping, rtol=0, atol=1e-5)
    assert differs(skipping, pixels(engine.generate(PROMPTS[0], policies=["off"], **FAST)))


def test_neither_prompt_nor_prompt_embeds_is_an_error(engine: SafetyEngine) -> None:
    with pytest.raises(GuidanceError, match="prompt_embeds"):
        engine.generate(None, **FAST)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_images_per_prompt", 2, "use num_images instead"),
        ("return_dict", False, "always returns a Result"),
        ("output_type", "latent", "must be decoded to be reviewed"),
        ("num_images", 0, "at least one picture"),
        ("policies", ["off", "off"], "2 policies for 1 prompts"),
    ],
)
def test_arguments_that_the_engine_cannot_honour_are_refused(
    engine: SafetyEngine, argument: str, value: Any, message: str
) -> None:
    with pytest.raises(GuidanceError, match=message):
        engine.generate(PROMPTS[0], **{**FAST, argument: value})


def test_every_call_of_the_denoiser_is_seen_once_also_with_pndm(pipe: Any) -> None:
    class Observer:
        name, version = "observer", "1"
        seen: list[tuple[int, int]] = []  # noqa: RUF012

        def before_guidance(self, step: Step, predictions: Predictions) -> None:
            self.seen.append((step.index, step.total))

        def after_guidance(self, step: Step, predictions: Predictions, guided: torch.Tensor) -> None:
            self.seen.append((step.index, step.total))

    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    observer = Observer()
    SafetyEngine(pipe, policy(), step_hooks=[observer]).generate(PROMPTS[0], **FAST)
    assert observer.seen == [(index, 7) for index in range(7) for _ in range(2)]


# --- precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_and_the_strongest_guidance_stays_finite(
    pipe: Any, dtype: torch.dtype
) -> None:
    seen: set[torch.dtype] = set()

    class Dtypes:
        name, version = "dtypes", "1"

        def before_guidance(self, step: Step, predictions: Predictions) -> None:
            seen.update({predictions.uncond.dtype, predictions.cond.dtype, predictions.concepts.dtype})

        def after_guidance(self, step: Step, predictions: Predictions, guided: torch.Tensor) -> None:
            seen.add(guided.dtype)

    full = pixels(SafetyEngine(pipe, "max").generate(PROMPTS[0], **FAST))
    plain = pixels(SafetyEngine(pipe, "off").generate(PROMPTS[0], **FAST))
    result = SafetyEngine(pipe.to(dtype), "max", [Dtypes()]).generate(PROMPTS[0], **FAST)
    assert seen == {dtype}
    assert not result.reports[0].errors
    assert np.isfinite(result.trace.norm[result.trace.evaluated]).all()
    assert np.abs(pixels(result) - full).mean() < 0.25 * np.abs(plain - full).mean()


# --- reports --------------------------------------------------------------------------------------------------


def test_a_report_says_which_texts_guided_the_picture_and_under_which_policy(engine: SafetyEngine) -> None:
    all_of_them = policy().replace(concepts=("inappropriate/*", {"text": "a boat"}))
    report = engine.generate(PROMPTS[0], policies=[all_of_them], **FAST).reports[0]
    assert list(report.concepts)[:2] == ["inappropriate/hate", "inappropriate/harassment"]
    assert report.concepts["inappropriate/sexual"] == ("an image showing sexual, nudity",)
    assert len(report.concepts) == 8
    assert report.policy_digest == all_of_them.digest
    assert report.rows == 12 + 8 * 6
    assert (report.action, report.errors, report.verdicts) == ("none", (), ())


def test_a_text_that_two_concepts_share_is_one_row(engine: SafetyEngine) -> None:
    twice = ({"text": "an image showing blood"}, {"text": "blood", "prefix": "an image showing"})
    once = engine.generate(PROMPTS[0], policies=[policy().replace(concepts=twice[:1])], **FAST)
    both = engine.generate(PROMPTS[0], policies=[policy().replace(concepts=twice)], **FAST)
    assert both.reports[0].rows == once.reports[0].rows == 12 + 6
    assert np.array_equal(pixels(both), pixels(once))


def test_provenance_suffices_to_repeat_the_generation(engine: SafetyEngine) -> None:
    two = [policy(), SafetyPolicy.preset("off")]
    result = engine.generate(list(PROMPTS[:2]), policies=two, eta=0.5, **FAST)
    provenance = result.provenance
    assert provenance["model_class"] == "StableDiffusionPipeline"
    assert provenance["scheduler"] == "DDIMScheduler"
    assert (provenance["device"], provenance["dtype"]) == ("cpu", "float32")
    expected = {"num_inference_steps": 6, "guidance_scale": 4.0, "eta": 0.5}
    assert expected.items() <= provenance["arguments"].items()
    assert provenance["versions"]["torch"] == torch.__version__
    assert [SafetyPolicy.parse(provenance["policies"][one.digest]) for one in two] == two


def test_the_trace_says_where_and_when_guidance_acted(engine: SafetyEngine) -> None:
    result = engine.generate(list(PROMPTS[:2]), policies=[policy(start=2), "off"], **FAST)
    trace = result.trace
    assert trace.concepts == ("inappropriate",)
    assert trace.evaluated[:, 0].tolist() == [[True] * 6, [False] * 6]
    assert trace.applied[0, 0].tolist() == [False] * 2 + [True] * 4
    assert (trace.norm[0] > 0).all()
    assert np.isnan(trace.norm[1]).all()
    assert trace.heat.shape == (2, 16, 16)
    assert trace.heat[0].max() > 0 == trace.heat[1].max()


def test_a_changed_text_encoder_encodes_the_concepts_anew(engine: SafetyEngine) -> None:
    before = pixels(engine.generate(PROMPTS[0], **FAST))
    with torch.no_grad():
        engine.pipe.text_encoder.final_layer_norm.weight.mul_(1.5)
    after = pixels(engine.generate(PROMPTS[0], **FAST))
    fresh = pixels(SafetyEngine(engine.pipe, policy()).generate(PROMPTS[0], **FAST))
    assert np.array_equal(after, fresh)
    assert differs(before, after)


def test_ddim_with_other_settings_is_followed(engine: SafetyEngine) -> None:
    engine.generate(PROMPTS[0], **FAST)
    engine.pipe.scheduler = ddim(timestep_spacing="trailing")
    timesteps = engine.generate(PROMPTS[0], **FAST).trace.timesteps
    assert timesteps == (999.0, 832.0, 666.0, 499.0, 332.0, 166.0)


# --- parts of a request -------------------------------------------------------------------------------------------


def test_a_part_of_a_request_takes_what_belongs_to_its_prompts_and_leaves_what_belongs_to_the_call() -> None:
    prompts = [f"prompt {number}" for number in range(4)]
    rows = torch.arange(4.0).view(4, 1)
    off = SafetyPolicy.preset("off")
    arguments = {
        "timesteps": [999, 749, 499, 249],
        "sigmas": [1.0, 0.7, 0.4, 0.1],
        "controlnet_conditioning_scale": [0.1, 0.2, 0.3, 0.4],
        "ip_adapter_image": ["a", "b", "c", "d"],
        "negative_prompt": ["a", "b", "c", "d"],
        "prompt_2": ["e", "f", "g", "h"],
        "image": ["i", "j", "k", "l"],
        "prompt_embeds": rows,
        "pooled_prompt_embeds": rows,
        "negative_pooled_prompt_embeds": rows,
        "prompt_attention_mask": rows,
        "mask_image": rows,
        "latents": rows.repeat_interleave(2, dim=0),
    }
    request = Request.of(prompts, 0, 2, [off] * 4, arguments)
    part = request.part([5], [request.samples[5]]).arguments  # the second picture of the third prompt
    for name in ("timesteps", "sigmas", "controlnet_conditioning_scale", "ip_adapter_image"):
        assert part[name] is arguments[name]
    assert [part[name] for name in ("negative_prompt", "prompt_2", "image")] == [["c"], ["g"], ["k"]]
    tensors = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6 and all(part[name].tolist() == [[2.0]] for name in tensors)
