from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PerturbedAttentionGuidance,
    PNDMScheduler,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.guider_utils import GuiderOutput
from diffusers.hooks import LayerSkipConfig
from modular_reference import CAT, KNIGHT, Straight, concept_inputs, sld
from tiny_modular import TINY, Tiny

from sldcore.errors import ConfigurationError, GuidanceError, SafetyFailure, UnsupportedPipelineError
from sldcore.guider import SafetyGuider
from sldcore.modular import api
from sldcore.modular.runs import upcoming
from sldcore.policy import ConceptUse, SafetyPolicy
from sldcore.types import Predictions, Step

SD3 = TINY["sd3"]
BASES = {
    "cfg": lambda: ClassifierFreeGuidance(guidance_scale=5.0),
    "rescaled": lambda: ClassifierFreeGuidance(guidance_scale=5.0, guidance_rescale=0.7),
    "original": lambda: ClassifierFreeGuidance(guidance_scale=4.0, use_original_formulation=True),
    "apg": lambda: AdaptiveProjectedGuidance(guidance_scale=5.0, adaptive_projected_guidance_momentum=-0.5),
    "zero-star": lambda: ClassifierFreeZeroStarGuidance(guidance_scale=5.0, zero_init_steps=1),
    "tangential": lambda: TangentialClassifierFreeGuidance(guidance_scale=5.0),
    "slg": lambda: SkipLayerGuidance(
        guidance_scale=5.0,
        skip_layer_config=LayerSkipConfig([0], skip_attention=False, skip_ff=True),
        skip_layer_guidance_stop=1.0,
    ),
    "pag": lambda: PerturbedAttentionGuidance(
        guidance_scale=5.0,
        perturbed_guidance_config=LayerSkipConfig(
            [0], ATTENTION, skip_attention=False, skip_attention_scores=True, skip_ff=False
        ),
        perturbed_guidance_stop=1.0,
    ),
}
ATTENTION = "mid_block.attentions.0.transformer_blocks"
EVERY = pytest.mark.parametrize(
    ("base", "tiny"),
    [(base, TINY["sdxl"] if name == "pag" else SD3) for name, base in BASES.items()],
    ids=BASES,
)


def close(made: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def guided(base: Any, policy: Any, tiny: Tiny = SD3, **more: Any) -> tuple[torch.Tensor, SafetyGuider]:
    """The latents of a call with a SafetyGuider around ``base``."""
    pipe = tiny.build()
    guider = SafetyGuider.for_pipeline(pipe, policy, base=base)
    pipe.update_components(guider=guider)
    return tiny.run(pipe, [KNIGHT], **more), guider


def with_guider(guider: Any, tiny: Tiny = SD3, **more: Any) -> torch.Tensor:
    pipe = tiny.build()
    pipe.update_components(guider=guider)
    return tiny.run(pipe, [KNIGHT], **more)


def straight(base: Any, start: int = 0, tiny: Tiny = SD3) -> torch.Tensor:
    """What the straight reference around ``base`` makes of the same call."""
    pipe = tiny.build()
    pipe.guider = Straight(pipe, concept_inputs(tiny), start).around(base)
    return tiny.run(pipe, [KNIGHT], steps=6)


@EVERY
def test_with_policy_off_it_is_its_base_bit_for_bit(base: Any, tiny: Tiny) -> None:
    off, _ = guided(base(), "off", tiny, steps=6)
    assert torch.equal(off, with_guider(base(), tiny, steps=6))


@EVERY
def test_it_gives_its_base_a_safe_conditional_prediction_and_all_else_as_it_was(
    base: Any, tiny: Tiny
) -> None:
    made, _ = guided(base(), sld(start=1), tiny, steps=6)
    close(made, straight(base(), 1, tiny))
    assert (made - with_guider(base(), tiny, steps=6)).abs().max() > 1e-2


@EVERY
def test_saved_and_loaded_it_is_the_same_guider(base: Any, tiny: Tiny, tmp_path: Path) -> None:
    made, guider = guided(base(), sld(start=1), tiny, steps=6)
    guider.save_pretrained(tmp_path)
    loaded = SafetyGuider.from_pretrained(tmp_path)
    pipe = tiny.build()
    pipe.update_components(guider=loaded.bind(pipe))
    assert torch.equal(tiny.run(pipe, [KNIGHT], steps=6), made)
    assert type(loaded.base) is type(guider.base)


def test_a_layer_configuration_of_the_base_is_saved_with_it(tmp_path: Path) -> None:
    layers = LayerSkipConfig(indices=[0], fqn="transformer_blocks", skip_attention=False, skip_ff=True)
    guider = SafetyGuider("max", SkipLayerGuidance(skip_layer_config=layers, skip_layer_guidance_stop=0.5))
    guider.save_pretrained(tmp_path)
    (kept,) = SafetyGuider.from_pretrained(tmp_path).base.skip_layer_config
    assert kept == layers


def test_the_saved_policies_are_whole_and_there_may_be_several(tmp_path: Path) -> None:
    SafetyGuider([sld(start=2), "strong"]).save_pretrained(tmp_path)
    again = SafetyGuider.from_pretrained(tmp_path)
    assert again._policies == (sld(start=2), SafetyPolicy.preset("strong"))


def test_a_base_that_is_not_diffusers_own_is_given_when_loading(tmp_path: Path) -> None:
    SafetyGuider("max").save_pretrained(tmp_path)
    file = tmp_path / "guider_config.json"
    content = json.loads(file.read_text())
    content["base"]["_class_name"] = "BaseException"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="is none of diffusers"):
        SafetyGuider.from_pretrained(tmp_path)
    own = ClassifierFreeGuidance(guidance_scale=3.0)
    assert SafetyGuider.from_pretrained(tmp_path, base=own).base is own


def test_one_that_knows_no_pipeline_refuses_to_guide() -> None:
    with pytest.raises(GuidanceError, match=r"call guider\.bind\(pipe\)"):
        with_guider(SafetyGuider(sld()))


def test_one_that_knows_no_pipeline_and_has_nothing_to_do_is_its_base() -> None:
    assert torch.equal(with_guider(SafetyGuider("off", BASES["cfg"]())), with_guider(BASES["cfg"]()))


@pytest.mark.parametrize(
    "base",
    [
        lambda: ClassifierFreeGuidance(enabled=False),
        lambda: ClassifierFreeGuidance(guidance_scale=1.0),
        lambda: SkipLayerGuidance(
            guidance_scale=1.0, skip_layer_guidance_layers=[0], skip_layer_guidance_stop=1.0
        ),
    ],
    ids=["disabled", "scale-1", "skipped-layers-alone"],
)
def test_without_an_unconditional_prediction_a_guiding_policy_is_an_error(base: Any) -> None:
    with pytest.raises(GuidanceError, match="makes no unconditional prediction"):
        guided(base(), sld())
    off, _ = guided(base(), "off")
    assert torch.equal(off, with_guider(base()))


class Interval(ClassifierFreeGuidance):
    """Evaluates everything, and uses it at the first and the last third of six steps as if there were no guidance."""

    def forward(self, pred_cond: Any, pred_uncond: Any = None) -> Any:
        if 2 <= self._step < 4:
            return super().forward(pred_cond, pred_uncond)
        return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=pred_uncond)


def test_outside_the_range_of_its_base_the_policy_acts_as_it_says() -> None:
    interval = {"start": 0.34, "stop": 0.67}
    made, guider = guided(ClassifierFreeGuidance(guidance_scale=5.0, **interval), sld(), steps=6)
    assert guider.trace.applied[0, 0].tolist() == [False] + [True] * 5  # at pure noise nothing is known
    close(made, straight(Interval(guidance_scale=5.0)))


def test_outside_the_range_of_its_base_nothing_is_added_where_the_policy_does_not_act() -> None:
    pipe = SD3.build()
    calls: list[int] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    base = ClassifierFreeGuidance(guidance_scale=5.0, start=0.34, stop=0.67)
    pipe.guider = SafetyGuider.for_pipeline(pipe, sld(start=5, momentum_scale=0.0), base=base)
    SD3.run(pipe, [KNIGHT], steps=6)
    assert len(calls) == 1 + 1 + 2 + 2 + 1 + 3


def test_a_second_call_of_a_base_with_a_range_has_its_unconditional_texts() -> None:
    tiny = TINY["sdxl"]
    pipe = tiny.build()
    pipe.guider = SafetyGuider.for_pipeline(pipe, sld(), base=ClassifierFreeGuidance(stop=0.5))
    first = tiny.run(pipe, [KNIGHT])
    assert torch.equal(tiny.run(pipe, [KNIGHT]), first)


def test_a_weakened_denoiser_is_no_measure_so_the_unconditional_prediction_is_made_apart() -> None:
    layers = LayerSkipConfig([0], skip_attention=False, skip_ff=True)

    def weak() -> AutoGuidance:
        return AutoGuidance(guidance_scale=3.0, auto_guidance_config=layers)

    class Reference(AutoGuidance):
        """Beside what the weakened denoiser makes, the safe prediction of the whole one."""

        def prepare_inputs(self, data: Any) -> Any:
            cond, weakened = super().prepare_inputs(data)
            uncond = copy.copy(weakened)
            concept = api.new_batch({**api.fields(cond), **reference.concept(cond)}, "concept")
            return [cond, weakened, uncond, concept]

        def prepare_models(self, denoiser: Any) -> None:
            if self._count_prepared < 2:
                super().prepare_models(denoiser)
            else:
                self._count_prepared += 1

        def __call__(self, data: Any) -> Any:
            cond, weakened, uncond, concept = data
            cond.noise_pred = reference.safe(
                self._step, uncond.noise_pred, cond.noise_pred, concept.noise_pred
            )
            return super().__call__([cond, weakened])

    pipe = SD3.build()
    reference = Straight(pipe, concept_inputs(SD3))
    pipe.guider = Reference(guidance_scale=3.0, auto_guidance_config=layers)
    made, guider = guided(weak(), sld())
    close(made, SD3.run(pipe, [KNIGHT]))
    assert guider.trace.evaluated.all()


class Watcher:
    """A step hook that keeps what it sees."""

    name, version = "watcher", "1"

    def __init__(self) -> None:
        self.seen: list[Predictions] = []

    def before_guidance(self, step: Step, predictions: Predictions) -> None:
        self.seen.append(predictions)

    def after_guidance(self, step: Step, predictions: Predictions, guided: torch.Tensor) -> None:
        return None


@pytest.mark.parametrize("name", ["sdxl", "sd3", "qwen", "z-image"])
def test_step_hooks_see_the_predictions_and_the_latents(name: str) -> None:
    tiny, watcher = TINY[name], Watcher()
    pipe = tiny.build()
    pipe.guider = SafetyGuider.for_pipeline(pipe, sld(start=2, momentum_scale=0.0), step_hooks=[watcher])
    tiny.run(pipe, [KNIGHT])
    assert [len(each.concepts) for each in watcher.seen] == [0, 0, 1, 1]
    for each in watcher.seen:
        assert each.latents is not None
        assert each.latents.numel() == each.cond.numel()
        assert not torch.equal(each.cond, each.uncond)


class Doubling(Watcher):
    """A step hook that doubles what guidance made."""

    def after_guidance(self, step: Step, predictions: Predictions, guided: torch.Tensor) -> torch.Tensor:
        return guided * 2


def test_what_a_step_hook_gives_back_is_what_the_base_gets() -> None:
    pipe = SD3.build()
    pipe.guider = SafetyGuider.for_pipeline(pipe, "off", step_hooks=[Doubling()])
    made = SD3.run(pipe, [KNIGHT])

    class Reference(ClassifierFreeGuidance):
        def forward(self, pred_cond: Any, pred_uncond: Any = None) -> Any:
            return super().forward(pred_cond * 2, pred_uncond)

    close(made, with_guider(Reference(guidance_scale=pipe.guider.guidance_scale)))


class Breaking(Watcher):
    def after_guidance(self, step: Step, predictions: Predictions, guided: torch.Tensor) -> torch.Tensor:
        if step.index == 1:
            raise OSError("no")
        return guided


def test_a_failing_step_hook_raises_at_its_step() -> None:
    pipe = SD3.build()
    pipe.guider = SafetyGuider.for_pipeline(pipe, sld(), step_hooks=[Breaking()])
    with pytest.raises(SafetyFailure, match="watcher 1 failed at step 1: OSError: no"):
        SD3.run(pipe, [KNIGHT])


def test_a_prediction_that_is_no_number_raises() -> None:
    pipe = SD3.build()
    with torch.no_grad():
        pipe.transformer.proj_out.bias[0] = torch.nan
    pipe.guider = SafetyGuider.for_pipeline(pipe, sld())
    with pytest.raises(SafetyFailure, match="NaN or Inf in a prediction"):
        SD3.run(pipe, [KNIGHT])


def test_batches_for_concepts_come_last_and_are_named_apart() -> None:
    tiny = TINY["qwen"]
    pipe = tiny.build()
    two = sld().replace(
        concepts=(ConceptUse(text="blood"), ConceptUse(text="weapons, skull, nudity, violence"))
    )
    guider = pipe.guider = SafetyGuider.for_pipeline(pipe, two)
    seen: list[list[tuple[str, int, bool]]] = []
    conditional: list[bool] = []
    prepare, models = guider.prepare_inputs, guider.prepare_models

    def watch(data: Any) -> Any:
        made = prepare(data)
        seen.append([(api.identifier(each), each.encoder_hidden_states.shape[1]) for each in made])
        return made

    def note(denoiser: Any) -> None:
        models(denoiser)
        conditional.append(guider.is_conditional)

    guider.prepare_inputs, guider.prepare_models = watch, note
    tiny.run(pipe, [KNIGHT], steps=2)
    names = [name for name, _ in seen[0]]
    assert names == ["pred_cond", "pred_uncond", "pred_concept", "pred_concept_1"]
    assert seen[0][2][1] != seen[0][3][1]  # texts of different lengths are not padded to one
    assert seen[0] == seen[1]
    assert conditional == [True, False, True, True] * 2


def test_texts_of_one_shape_share_a_batch_across_pictures() -> None:
    tiny = TINY["sdxl"]
    pipe = tiny.build()
    policies = [sld(concept="blood"), sld(concept="weapons")]
    calls: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    pipe.guider = SafetyGuider.for_pipeline(pipe, policies)
    mixed = tiny.run(pipe, [KNIGHT, CAT], steps=3)
    assert calls == [2] * 3 * 3
    for number, policy in enumerate(policies):
        pipe.guider = SafetyGuider.for_pipeline(pipe, policy)
        close(mixed[number], tiny.run(pipe, [KNIGHT, CAT], steps=3)[number])


def test_policies_must_be_as_many_as_pictures() -> None:
    pipe = SD3.build()
    pipe.guider = SafetyGuider.for_pipeline(pipe, [sld(), "off"])
    with pytest.raises(GuidanceError, match="2 policies were given, but the pipeline generates 1 pictures"):
        SD3.run(pipe, [KNIGHT])


def test_options_of_the_text_encoder_are_given_to_a_guider_that_cannot_see_the_call() -> None:
    tiny = TINY["sdxl"]
    pipe = tiny.build()
    base = pipe.guider
    pipe.guider = SafetyGuider.for_pipeline(pipe, sld(), clip_skip=1)
    made = tiny.run(pipe, [KNIGHT], clip_skip=1)
    pipe.guider = Straight(pipe, concept_inputs(tiny, clip_skip=1)).around(base)
    close(made, tiny.run(pipe, [KNIGHT], clip_skip=1))


def test_a_second_guider_beside_it_shares_its_run() -> None:
    tiny = TINY["wan22"]
    pipe = tiny.build()
    bases = pipe.guider, pipe.guider_2
    pipe.guider = SafetyGuider.for_pipeline(pipe, sld())
    pipe.guider_2 = pipe.guider.beside(pipe.guider_2)
    made = tiny.run(pipe, [KNIGHT])
    assert pipe.guider.trace.evaluated.all()
    reference = Straight(pipe, concept_inputs(tiny))
    pipe.guider, pipe.guider_2 = (reference.around(base) for base in bases)
    close(made, tiny.run(pipe, [KNIGHT]))


def test_a_second_guider_that_shares_nothing_is_noticed() -> None:
    tiny = TINY["wan22"]
    pipe = tiny.build()
    for name in ("guider", "guider_2"):
        setattr(pipe, name, SafetyGuider.for_pipeline(pipe, sld(), base=getattr(pipe, name)))
    with pytest.raises(GuidanceError, match=r"SafetyGuider\.beside"):
        tiny.run(pipe, [KNIGHT])


def test_the_base_is_the_pipelines_own_guider_or_that_inside_a_safety_guider() -> None:
    pipe = SD3.build()
    own = pipe.guider
    pipe.guider = SafetyGuider.for_pipeline(pipe, "max")
    assert pipe.guider.base is own
    assert SafetyGuider.for_pipeline(pipe, "weak").base is own


def test_it_is_switched_off_and_scaled_through_its_base() -> None:
    guider = SafetyGuider("max", ClassifierFreeGuidance(guidance_scale=5.0))
    assert guider.num_conditions == 2
    guider.guidance_scale = 1.0
    assert (guider.base.guidance_scale, guider.num_conditions) == (1.0, 1)
    guider.disable()
    assert not guider.base._enabled
    guider.enable()
    assert guider.base._enabled


def test_new_makes_a_copy_with_something_else() -> None:
    pipe = SD3.build()
    guider = SafetyGuider.for_pipeline(pipe, sld(), base=ClassifierFreeGuidance(guidance_scale=3.0))
    pipe.guider = guider.new(policy="off")
    assert pipe.guider.base is not guider.base
    assert torch.equal(SD3.run(pipe, [KNIGHT]), with_guider(ClassifierFreeGuidance(guidance_scale=3.0)))


@pytest.mark.parametrize("base", [SafetyGuider, "cfg", 7.5], ids=str)
def test_a_base_that_is_no_guider_of_diffusers_is_refused(base: Any) -> None:
    given = SafetyGuider("max") if base is SafetyGuider else base
    with pytest.raises(ConfigurationError, match="it must be a guider of diffusers"):
        SafetyGuider("max", given)


def test_what_a_guider_cannot_serve_is_refused() -> None:
    policy = SafetyPolicy.parse(f"{sld().dump()}\nscheduler: ddim")
    with pytest.raises(GuidanceError, match="a guider only guides"):
        SafetyGuider.for_pipeline(SD3.build(), policy)


def test_an_empty_list_of_policies_is_refused() -> None:
    with pytest.raises(GuidanceError, match="empty list of policies"):
        SafetyGuider([])


def test_a_guider_that_lacks_what_is_used_of_it_is_refused() -> None:
    class Changed:
        set_state = prepare_inputs = num_conditions = is_conditional = _identifier_key = None

    with pytest.raises(
        UnsupportedPipelineError, match="have no cleanup_models, prepare_inputs_from_block_state"
    ):
        api.require_known(Changed)


def schedulers() -> dict[str, Any]:
    table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return {
        "ddim": DDIMScheduler(**table),
        "euler": EulerDiscreteScheduler(**table),
        "heun": HeunDiscreteScheduler(**table),
        "pndm": PNDMScheduler(**table, skip_prk_steps=True),
        "flow": FlowMatchEulerDiscreteScheduler(),
    }


@pytest.mark.parametrize("name", schedulers())
@pytest.mark.parametrize("skipped", [0, 3])
def test_the_calls_to_come_are_those_of_the_loop(name: str, skipped: int) -> None:
    scheduler = schedulers()[name]
    scheduler.set_timesteps(10)
    loop = scheduler.timesteps[skipped * scheduler.order :]
    if skipped and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped * scheduler.order)
    schedule = upcoming(scheduler, loop[0], 10 - skipped)
    assert schedule.timesteps == tuple(loop.tolist())


def test_the_calls_to_come_end_where_the_rest_is_left_to_another_model() -> None:
    scheduler = schedulers()["euler"]
    scheduler.set_timesteps(10)
    schedule = upcoming(scheduler, scheduler.timesteps[0], 6)
    assert schedule.timesteps == tuple(scheduler.timesteps[:6].tolist())
    assert len(schedule.noise_levels) == len(schedule.epsilon_factors) == 6


def test_a_timestep_that_the_scheduler_does_not_have_is_an_error() -> None:
    scheduler = schedulers()["ddim"]
    scheduler.set_timesteps(10)
    with pytest.raises(GuidanceError, match=r"begins at timestep 7\.5"):
        upcoming(scheduler, torch.tensor(7.5), 10)
