from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_modular
import torch
from diffusers import ClassifierFreeGuidance
from modular_reference import CAT, CONCEPT, KNIGHT, Straight, concept_inputs, sld
from tiny_modular import TINY, Tiny

from sldcore.errors import GuidanceError, SafetyFailure, SessionError, UnsupportedPipelineError
from sldcore.families.base import NO_OPTIONS
from sldcore.guider import SafetyGuider
from sldcore.modular.guarding import guarding
from sldcore.modular.texts import ModularTexts
from sldcore.policy import SafetyPolicy
from sldcore.session import guard

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
OFF = SafetyPolicy.preset("off")
EVERY = pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)


def close(made: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def reference(tiny: Tiny, prompts: list[str], start: int = 0, **more: Any) -> torch.Tensor:
    """What a call gives with the straight reference in place of the pipeline's guiders."""
    pipe = tiny.build()
    straight = Straight(pipe, concept_inputs(tiny), start)
    for name in ("guider", "guider_2"):
        if hasattr(pipe, name):
            setattr(pipe, name, straight.around(getattr(pipe, name)))
    return tiny.run(pipe, prompts, **more)


@EVERY
def test_policy_off_changes_no_bit(tiny: Tiny) -> None:
    pipe = tiny.build()
    plain = tiny.run(pipe, [KNIGHT])
    with guarding(pipe, [OFF]) as session:
        off = tiny.run(pipe, [KNIGHT])
    assert torch.equal(plain, off)
    assert session.trace.rows == 2 * 4


@EVERY
def test_guidance_is_that_of_the_straight_reference(tiny: Tiny) -> None:
    pipe = tiny.build()
    with guarding(pipe, [sld(start=1)]):
        made = tiny.run(pipe, [KNIGHT])
    close(made, reference(tiny, [KNIGHT], start=1))
    assert (made - tiny.run(pipe, [KNIGHT])).abs().max() > 1e-2


@EVERY
def test_a_batch_of_two_prompts_and_two_pictures_is_that_of_the_reference(tiny: Tiny) -> None:
    pipe = tiny.build()
    two = {tiny.pictures: 2} if tiny.pictures else {}
    with guarding(pipe, [sld()]) as session:
        made = tiny.run(pipe, [KNIGHT, CAT], **two)
    assert made.shape[0] == (4 if tiny.pictures else 2)
    assert session.trace.evaluated.shape == (made.shape[0], 1, 4)
    close(made, reference(tiny, [KNIGHT, CAT], **two))


@EVERY
def test_every_picture_of_a_batch_follows_its_own_policy(tiny: Tiny) -> None:
    pipe = tiny.build()
    with guarding(pipe, [sld(), OFF]) as session:
        mixed = tiny.run(pipe, [KNIGHT, CAT])
    assert session.trace.evaluated.sum(axis=(1, 2)).tolist() == [4, 0]
    close(mixed[1:], tiny.run(pipe, [KNIGHT, CAT])[1:])
    close(mixed[:1], reference(tiny, [KNIGHT, CAT])[:1])


class Counting:
    """Counts the rows that a pipeline's denoisers evaluate."""

    def __init__(self, pipe: Any) -> None:
        self.rows: list[int] = []
        for name in tiny_modular.DENOISERS:
            if hasattr(pipe, name):
                getattr(pipe, name).register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: Any, args: Any, kwargs: Any) -> None:
        latents = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
        self.rows.append(len(latents))


@EVERY
def test_concepts_are_evaluated_only_when_they_are_needed(tiny: Tiny) -> None:
    pipe = tiny.build()
    counting = Counting(pipe)
    with guarding(pipe, [sld(start=2, momentum_scale=0.0)]) as session:
        tiny.run(pipe, [KNIGHT])
    assert counting.rows == [1] * (4 * 2 + 2)
    assert session.trace.rows == sum(counting.rows)
    assert session.trace.evaluated[0, 0].tolist() == [False, False, True, True]


@EVERY
def test_the_map_of_where_guidance_acted_has_the_shape_of_the_picture(tiny: Tiny) -> None:
    pipe = tiny.build()
    with guarding(pipe, [sld()]) as session:
        tiny.run(pipe, [KNIGHT])
    assert session.trace.heat.shape == (1, *tiny.latent)
    assert session.trace.heat.max() > 0


@EVERY
def test_nothing_stays(tiny: Tiny) -> None:
    pipe = tiny.build()
    before = state_of(pipe)
    with guarding(pipe, [sld()]):
        tiny.run(pipe, [KNIGHT])
        assert isinstance(pipe.guider, SafetyGuider)
    assert state_of(pipe) == before


def state_of(pipe: Any) -> list[Any]:
    """What a session puts something on."""
    hooks = [
        len(getattr(pipe, name)._forward_pre_hooks) for name in tiny_modular.DENOISERS if hasattr(pipe, name)
    ]
    blocks = [id(block) for block in tiny_modular.blocks_of(pipe._blocks)]
    guiders = [id(getattr(pipe, name, None)) for name in ("guider", "guider_2", "scheduler")]
    return [hooks, blocks, guiders, sorted(vars(pipe))]


@pytest.mark.parametrize("error", [RuntimeError("the loop"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_nothing_stays_when_a_step_is_cut_off(error: BaseException) -> None:
    tiny = TINY["sdxl"]
    pipe = tiny.build()
    before = state_of(pipe)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    pipe.unet.forward = fail
    with pytest.raises(type(error)), guarding(pipe, [sld()]):
        tiny.run(pipe, [KNIGHT])
    assert state_of(pipe) == before


SHAPES = pytest.mark.parametrize(
    ("prompts", "pictures"),
    [([KNIGHT, CAT], 1), ([KNIGHT], 2), ([KNIGHT, CAT], 2)],
    ids=["2x1", "1x2", "2x2"],
)


@SHAPES
@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_classic_under_guard_and_modular_give_the_same_picture(
    name: str, prompts: list[str], pictures: int
) -> None:
    if name == "sdxl" and len(prompts) > 1 and pictures > 1:
        pytest.skip("diffusers' modular SDXL gives such pictures the pooled text of another prompt")
    tiny = TINY[name]
    classic = tiny_modular.classic(name)
    pipe = tiny.build()
    scale = 5.0
    pipe.guider = ClassifierFreeGuidance(guidance_scale=scale)
    shape = (len(prompts) * pictures, 4 if name == "sdxl" else 16, 16, 16)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    negative = ["a boat", "snow"][: len(prompts)]
    call = {"num_inference_steps": 5, "height": 32, "width": 32, "negative_prompt": negative}
    policy = SafetyPolicy.preset("max")
    with guard(classic, policy) as session:
        expected = classic(
            prompt=prompts,
            guidance_scale=scale,
            num_images_per_prompt=pictures,
            latents=latents.clone(),
            output_type="pt",
            **call,
        ).images
    with guard(pipe, policy) as other:
        made = pipe(
            prompt=prompts,
            num_images_per_prompt=pictures,
            latents=latents.clone(),
            output_type="pt",
            output="images",
            **call,
        )
    close(made, expected)
    for name in ("norm", "heat"):  # of few elements, or near a threshold
        np.testing.assert_allclose(
            getattr(other.trace, name), getattr(session.trace, name), rtol=2e-3, atol=1e-3
        )


def test_concepts_are_encoded_as_the_call_encodes_its_prompts() -> None:
    tiny = TINY["sdxl"]
    pipe = tiny.build()
    with guarding(pipe, [sld()]):
        tiny.run(pipe, [KNIGHT])
        made = tiny.run(pipe, [KNIGHT], clip_skip=1)
        again = tiny.run(pipe, [KNIGHT])
    other = tiny.build()
    other.guider = Straight(other, concept_inputs(tiny, clip_skip=1)).around(other.guider)
    close(made, tiny.run(other, [KNIGHT], clip_skip=1))
    close(again, reference(tiny, [KNIGHT]))


def test_a_pipeline_is_guarded_once() -> None:
    pipe = TINY["sdxl"].build()
    with (
        guarding(pipe, [sld()]),
        pytest.raises(SessionError, match="guarded by another session"),
        guarding(pipe, [sld()]),
    ):
        pytest.fail("guarded twice")


def test_a_pipeline_with_a_safety_guider_of_its_own_is_not_guarded_again() -> None:
    pipe = TINY["sdxl"].build()
    pipe.update_components(guider=SafetyGuider.for_pipeline(pipe, sld()))
    with pytest.raises(SessionError, match=r"guider=guider\.base"), guarding(pipe, [sld()]):
        pytest.fail("guarded twice")


def test_a_guider_replaced_inside_the_session_is_noticed_before_the_picture() -> None:
    tiny = TINY["sdxl"]
    pipe = tiny.build()
    own = pipe.guider
    with pytest.raises(SafetyFailure, match="was replaced inside guard"), guarding(pipe, [sld()]):
        pipe.guider = ClassifierFreeGuidance()
        tiny.run(pipe, [KNIGHT])
    assert pipe.guider is own


def test_two_pipelines_of_the_same_blocks_are_guarded_apart() -> None:
    tiny = TINY["sdxl"]
    one, other = tiny.build(), tiny.build()
    other._blocks = one._blocks
    plain = tiny.run(other, [KNIGHT], clip_skip=1)
    with guarding(one, [sld()]) as session, guarding(other, [OFF]):
        made = tiny.run(one, [KNIGHT])
        assert torch.equal(tiny.run(other, [KNIGHT], clip_skip=1), plain)
    close(made, reference(tiny, [KNIGHT]))
    assert session.trace.evaluated.all()


def test_a_policys_scheduler_is_used_and_taken_away_again() -> None:
    tiny = TINY["sdxl"]
    pipe = tiny.build()
    own = pipe.scheduler
    with guarding(pipe, [SafetyPolicy.parse(f"{sld().dump()}\nscheduler: ddim")]) as session:
        tiny.run(pipe, [KNIGHT])
        assert type(pipe.scheduler).__name__ == session.scheduler == "DDIMScheduler"
    assert pipe.scheduler is own


def test_a_pipeline_without_a_guider_is_refused() -> None:
    pipe = tiny_modular.diffusers.FluxAutoBlocks().init_pipeline()
    with pytest.raises(UnsupportedPipelineError, match="has no guider"), guarding(pipe, [sld()]):
        pytest.fail("guarded")


def test_a_pipeline_without_its_text_block_is_refused() -> None:
    pipe = TINY["sdxl"].build()
    del pipe._blocks.sub_blocks["text_encoder"]
    with (
        pytest.raises(UnsupportedPipelineError, match="no block named 'text_encoder'"),
        guarding(pipe, [sld()]),
    ):
        pytest.fail("guarded")


@pytest.mark.parametrize("name", ["sdxl", "sd3", "wan", "qwen", "flux2", "z-image", "hunyuan-video-1.5"])
def test_a_concept_too_long_for_the_text_encoder_is_split(name: str) -> None:
    pipe = TINY[name].build()
    long = ", ".join(f"weapons {number}" for number in range(400))
    with guarding(pipe, [sld(concept=long)]) as session:
        rows = [row.text for row in session.concepts.rows]
    assert ", ".join(rows) == long
    assert last_word_matters(pipe, rows[0])
    assert not last_word_matters(pipe, f"{rows[0]}, {rows[1]}")


def last_word_matters(pipe: Any, text: str) -> bool:
    """Whether the text block still sees the last word of a text."""
    texts = ModularTexts(pipe)
    one, other = texts.encode(pipe, [text, text[:-3] + "boat"], NO_OPTIONS)
    narrowest = [name for name in one if name.startswith("pooled")] or list(one)  # of SD3's encoders, CLIP
    return any(not torch.equal(one[name], other[name]) for name in narrowest)


def test_a_window_that_the_call_makes_narrower_splits_concepts() -> None:
    tiny = TINY["wan"]
    pipe = tiny.build()
    with guarding(pipe, [sld(concept="blood, weapons, violence, sexual, nudity")]) as session:
        tiny.run(pipe, [KNIGHT], max_sequence_length=8)
        assert len(session.concepts.rows) > 1
        tiny.run(pipe, [KNIGHT])
        assert len(session.concepts.rows) == 1


def test_a_call_without_an_unconditional_text_is_an_error() -> None:
    tiny = TINY["sd3"]
    pipe = tiny.build()
    with guarding(pipe, [sld()]), pytest.raises(GuidanceError, match="call it with a negative_prompt"):
        pipe(prompt=KNIGHT, num_inference_steps=2, height=32, width=32)


@pytest.mark.parametrize("end", [0.5, 1.0])
def test_timesteps_that_are_left_to_a_refiner_are_no_part_of_the_run(end: float) -> None:
    tiny = TINY["sdxl"]
    pipe = tiny.build()
    with guarding(pipe, [sld()]) as session:
        tiny.run(pipe, [KNIGHT], steps=8, denoising_end=end)
    assert session.run is not None
    assert session.run.finished
    assert len(session.trace.timesteps) == 8 * end


def test_a_picture_to_start_from_leaves_out_the_first_timesteps() -> None:
    tiny = TINY["sdxl"]
    pipe = tiny.build()
    with guarding(pipe, [sld()]) as session:
        tiny.run(pipe, [KNIGHT], steps=8, image=tiny_modular.tiny_images.picture(), strength=0.5)
    assert session.run is not None
    assert session.run.finished
    assert session.trace.timesteps == tuple(pipe.scheduler.timesteps[4:].tolist())


CLASSIC = {
    "hunyuan-video-1.5": (tiny_modular.classic_hunyuan_video_15, {"num_frames": 5}),
    "hunyuan-image": (tiny_modular.classic_hunyuan_image, {}),
}


@pytest.mark.parametrize("prompt", [KNIGHT, 'a red knight "sword"'], ids=["plain", "with-letters"])
@pytest.mark.parametrize(("build", "more"), CLASSIC.values(), ids=CLASSIC)
def test_a_classic_pipeline_that_has_guiders_is_guided_too(build: Any, more: Any, prompt: str) -> None:
    call = {"prompt": [prompt], "negative_prompt": [""], "num_inference_steps": 4, "height": 32, "width": 32}

    def run(pipe: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(**call, **more, generator=generator, output_type="latent")[0]

    pipe, other = build(), build()
    own, plain = pipe.guider, run(pipe)
    with guarding(pipe, [sld(start=1)]) as session:
        made = run(pipe)
    assert pipe.guider is own
    assert session.trace.evaluated.all()
    assert session.trace.heat.shape == (1, 8, 8)
    names = (
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
    )
    texts = dict(zip(names, other.encode_prompt(CONCEPT, batch_size=1), strict=True))
    straight = Straight(other, texts, start=1)
    for name in ("guider", "ocr_guider"):
        if hasattr(other, name):
            setattr(other, name, straight.around(getattr(other, name)))
    close(made, run(other))
    assert (made - plain).abs().max() > 1e-2
