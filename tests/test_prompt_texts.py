"""The texts of a call, read from the call of a real pipeline in miniature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import tiny_images
import torch
from torch import Tensor

from sldcore.denoiser import DenoiserCall, forward_signature
from sldcore.encoding import ConceptEncoder, ConceptRow, RunConcepts
from sldcore.errors import GuidanceError
from sldcore.families import family_of
from sldcore.guidance.base import GuidedSample
from sldcore.guidance.kinds import SAFREEOptions
from sldcore.guidance.safree import SAFREE, SAFREERun
from sldcore.policy import ConceptUse, GuidanceSpec, Options, SafetyPolicy
from sldcore.prompt_texts import CallPrompts
from sldcore.testing.samples import schedule
from sldcore.types import ConceptEmbedding, OwnRow

PROMPTS = ["a red knight on a meadow", "a blue cat in the snow"]
STATES, POOLED = "encoder_hidden_states", "added_cond_kwargs.text_embeds"
POLICY = SafetyPolicy(
    name="knights",
    concepts=(ConceptUse(text="knight, obscene gestures"),),
    guidance=GuidanceSpec(method="safree"),
)


@dataclass
class Caught:
    """The first denoiser call of a pipeline call, and how the pipeline encoded its prompts."""

    pipe: Any
    call: DenoiserCall
    encoded: Mapping[str, Any]

    def prompts(self, policy: SafetyPolicy = POLICY, **changed: Any) -> CallPrompts:
        family = family_of(self.pipe)
        concepts = ConceptEncoder(self.pipe, family).prepare(
            [policy], family.text_options(self.pipe, self.encoded)
        )
        return CallPrompts(self.pipe, family, {**self.encoded, **changed}, self.call, concepts)


def caught(pipe: Any, parts: tuple[str, ...] = (), **arguments: Any) -> Caught:
    """Call the pipeline for one step and look at what reaches its denoiser."""
    family, found = family_of(pipe), {}
    encode = pipe.encode_prompt

    def listen(*args: Any, **kwargs: Any) -> Any:
        found["encoded"] = dict(signature(encode).bind(*args, **kwargs).arguments)
        return encode(*args, **kwargs)

    def look(module: Any, args: Any, kwargs: Any) -> None:
        own = parts or family.parts(pipe, found.get("encoded", {}))
        found.setdefault(
            "call", DenoiserCall.bind(family, forward_signature(module), args, kwargs, own).kept()
        )

    (denoiser,) = family.denoisers(pipe)
    handle = denoiser.register_forward_pre_hook(look, with_kwargs=True)
    pipe.encode_prompt = listen
    try:
        pipe(num_inference_steps=2, output_type="latent", **arguments)
    finally:
        handle.remove()
        del pipe.encode_prompt
    return Caught(pipe, found["call"], found["encoded"])


def states_of(pipe: Any, prompt: str) -> Tensor:
    states: Tensor = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    return states


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# --- which prompt is whose -------------------------------------------------------------------------------------


def test_all_pictures_of_a_prompt_stand_together(pipe: Any) -> None:
    prompts = caught(pipe, prompt=PROMPTS, num_images_per_prompt=2).prompts()
    assert [prompts.prompt(sample) for sample in range(4)] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2


def test_one_prompt_is_that_of_every_picture(pipe: Any) -> None:
    prompts = caught(pipe, prompt=PROMPTS[1], num_images_per_prompt=3).prompts()
    assert [prompts.prompt(sample) for sample in range(3)] == [PROMPTS[1]] * 3


def test_arguments_are_those_of_the_samples_own_conditional_row(pipe: Any) -> None:
    prompts = caught(pipe, prompt=PROMPTS, num_images_per_prompt=2, negative_prompt=["a boat"] * 2).prompts()
    for sample in range(4):
        assert prompts.arguments(sample).keys() == {STATES}
        close(prompts.arguments(sample)[STATES], states_of(pipe, PROMPTS[sample // 2]))


def test_arguments_of_two_encoders_and_within_others() -> None:
    xl = tiny_images.ALL["StableDiffusionXLPipeline"].build()
    prompts = caught(xl, prompt=PROMPTS, prompt_2=["a boat", "a flower"]).prompts()
    states, _, pooled, _ = xl.encode_prompt(
        PROMPTS[1], "a flower", device="cpu", do_classifier_free_guidance=False
    )
    arguments = prompts.arguments(1)
    close(arguments[STATES], states)
    close(arguments[POOLED], pooled)
    assert [len(space.vectors) for space in prompts.masked(1)] == [6, 2, 2]


def test_with_perturbed_attention_the_conditional_row_is_found_too() -> None:
    pag = tiny_images.ALL["StableDiffusionPAGPipeline"].build()
    found = caught(pag, prompt=PROMPTS, pag_scale=3.0)
    assert found.call.parts == ("uncond", "cond", "perturbed")
    close(found.prompts().arguments(1)[STATES], states_of(pag, PROMPTS[1]))


def test_video_texts_that_are_repeated_for_every_frame_are_one_row(pipe: Any) -> None:
    class Frames(type(family_of(pipe))):  # type: ignore[misc]
        def rows_per_sample(self, arguments: Mapping[str, Any]) -> int:
            return 3

    found = caught(pipe, prompt=PROMPTS)
    own = found.call.bound.arguments[STATES]
    found.call.bound.arguments[STATES] = own.repeat_interleave(3, dim=0)
    prompts = CallPrompts(pipe, Frames(), found.encoded, found.call, RunConcepts((), {}, ()))
    assert torch.equal(prompts.arguments(1)[STATES], own[3:4])


# --- what is encoded -------------------------------------------------------------------------------------------


def test_pictures_of_one_prompt_share_its_masked_rows(pipe: Any) -> None:
    prompts = caught(pipe, prompt=PROMPTS, num_images_per_prompt=2).prompts()
    assert prompts.text_rows == 0
    assert prompts.masked(0) is prompts.masked(1)
    assert prompts.masked(2) is not prompts.masked(1)
    assert prompts.pooled(["knight", "gore"]) is prompts.pooled(["knight", "gore"])
    tokens = [len(pipe.tokenizer(each).input_ids) - 2 for each in PROMPTS]
    assert prompts.text_rows == sum(tokens) + 2


def test_a_row_of_each_of_two_encoders_counts_and_a_pooled_vector_does_not() -> None:
    xl = tiny_images.ALL["StableDiffusionXLPipeline"].build()
    prompts = caught(xl, prompt=PROMPTS[0]).prompts()
    prompts.masked(0)
    assert prompts.text_rows == 2 * 6


def test_texts_are_encoded_as_the_call_encodes_its_prompts(pipe: Any) -> None:
    found = caught(pipe, prompt=PROMPTS[0])
    (plain,), (skipped,) = found.prompts().masked(0), found.prompts(clip_skip=1).masked(0)
    assert not torch.allclose(plain.vectors, skipped.vectors, atol=1e-3)


def test_concepts_are_texts_by_their_index(pipe: Any) -> None:
    assert caught(pipe, prompt=PROMPTS[0]).prompts().concept(0) == "knight, obscene gestures"


# --- what cannot be had ----------------------------------------------------------------------------------------


def test_a_call_with_embeddings_has_no_prompt(pipe: Any) -> None:
    states = states_of(pipe, PROMPTS[0])
    prompts = caught(pipe, prompt_embeds=states, negative_prompt_embeds=states).prompts()
    close(prompts.arguments(0)[STATES], states)
    for asked in (prompts.prompt, prompts.masked):
        with pytest.raises(GuidanceError, match=r"encode_prompt was given none .*give it prompt="):
            asked(0)


def test_a_pipeline_that_encodes_no_prompt_has_none(pipe: Any) -> None:
    found = caught(pipe, prompt=PROMPTS[0])
    prompts = CallPrompts(pipe, family_of(pipe), {}, found.call, RunConcepts((), {}, ()))
    with pytest.raises(GuidanceError, match="encode_prompt was given none"):
        prompts.prompt(0)


def test_prompts_that_do_not_divide_the_pictures_are_an_error(pipe: Any) -> None:
    prompts = caught(pipe, prompt=PROMPTS).prompts(prompt=[*PROMPTS, "a boat"])
    with pytest.raises(GuidanceError, match="2 pictures for 3 prompts"):
        prompts.prompt(0)


def test_a_concept_that_is_an_embedding_has_no_text(pipe: Any) -> None:
    embedding = ConceptEmbedding(Path("learned.safetensors"), "0", "tokens", "stable-diffusion", 32)
    concepts = RunConcepts((ConceptRow("pack/learned", "pack/learned", "", "", embedding),), {}, ())
    prompts = CallPrompts(pipe, family_of(pipe), {}, caught(pipe, prompt=PROMPTS[0]).call, concepts)
    with pytest.raises(
        GuidanceError, match=r"concept 'pack/learned' is the embedding learned\.safetensors.*a text"
    ):
        prompts.concept(0)


def test_a_family_that_cannot_mask_tokens_says_which_can() -> None:
    sd3 = tiny_images.ALL["StableDiffusion3Pipeline"].build()
    prompts = caught(sd3, prompt=PROMPTS[0]).prompts()
    assert prompts.prompt(0) == PROMPTS[0]
    message = r"family 'stable-diffusion-3' cannot encode \(families that can: .*stable-diffusion, stable-diffusion-xl\)"
    for asked in (lambda: prompts.masked(0), lambda: prompts.pooled(["gore"])):
        with pytest.raises(GuidanceError, match=message):
            asked()


def test_a_denoiser_that_is_called_apart_shows_no_prompt_in_its_first_call(pipe: Any) -> None:
    prompts = caught(pipe, parts=("uncond",), prompt=PROMPTS[0]).prompts()
    with pytest.raises(GuidanceError, match="calls its denoiser once for each part"):
        prompts.arguments(0)


def test_a_call_without_a_text_argument_is_an_error(pipe: Any) -> None:
    found = caught(pipe, prompt=PROMPTS[0])
    found.call.bound.arguments[STATES] = None
    with pytest.raises(GuidanceError, match="calls its denoiser without encoder_hidden_states"):
        found.prompts().arguments(0)


# --- SAFREE on a pipeline --------------------------------------------------------------------------------------


def safree(found: Caught, samples: tuple[int, ...], **options: Any) -> SAFREERun:
    spec = GuidanceSpec(method="safree", options=Options(SAFREEOptions(**options).model_dump()))
    members = [GuidedSample(sample, spec, (0,), (1.0,), (1.0,) * 10) for sample in samples]
    run = SAFREE().start_with_prompts(members, schedule(10), found.prompts())
    assert isinstance(run, SAFREERun)
    return run


def predicted(found: Caught, texts: Mapping[OwnRow, Mapping[str, Tensor]]) -> Tensor:
    """The denoiser's predictions [2B, ...] of the caught call, some rows with other texts."""
    (denoiser,) = family_of(found.pipe).denoisers(found.pipe)
    own = found.call.own_rows(frozenset(), texts)
    with torch.no_grad():
        output = found.call.evaluate(denoiser, None if own is None else found.call.only_own(own))
    return output[0] if isinstance(output, tuple) else output.sample


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_a_rewritten_prompt_changes_the_prediction_of_its_own_sample_alone(name: str, pipe: Any) -> None:
    used = pipe if name == "StableDiffusionPipeline" else tiny_images.ALL[name].build()
    found = caught(used, prompt=[*PROMPTS, "a boat and a flower"])
    run = safree(found, (1,), negative=False)
    texts = run.own_texts(schedule(10).step(0))
    assert texts.keys() == {OwnRow(1, "cond")}
    before, after = predicted(found, {}), predicted(found, texts)  # type: ignore[arg-type]
    changed = (after - before).abs().flatten(1).amax(1)
    assert changed[4] > 1e-3
    close(after[[0, 1, 2, 3, 5]], before[[0, 1, 2, 3, 5]])


def test_prompts_are_rewritten_in_a_batch_as_they_are_alone(pipe: Any) -> None:
    batch, alone = caught(pipe, prompt=PROMPTS), caught(pipe, prompt=PROMPTS[1])
    together, single = safree(batch, (0, 1)).rewritings[1], safree(alone, (0,)).rewritings[0]
    assert together[0].triggers == single[0].triggers
    assert together[0].beta == pytest.approx(single[0].beta, abs=1e-5)
    torch.testing.assert_close(together[0].texts[STATES], single[0].texts[STATES], rtol=1e-3, atol=1e-4)


def test_the_cost_of_a_prompt_is_one_text_row_for_each_of_its_tokens_and_each_phrase(pipe: Any) -> None:
    found = caught(pipe, prompt=PROMPTS, num_images_per_prompt=2)
    tokens = [len(pipe.tokenizer(each).input_ids) - 2 for each in PROMPTS]
    rows = {sample: tokens[sample // 2] + 2 for sample in range(4)}
    assert safree(found, (0, 1, 2, 3)).text_rows == rows
