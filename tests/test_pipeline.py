"""The original project's calls on :class:`sldcore.SLDPipeline`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sldcore import Concept, SLDPipeline
from sldcore.concepts import load_pack
from sldcore.errors import ConceptError, ConfigurationError, GuidanceError

PROMPT = "a red knight on a meadow"
FAST: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "np"}
STRONG = {"sld_warmup_steps": 1, "sld_guidance_scale": 2000, "sld_threshold": 0.025, "sld_mom_beta": 0.7}


@pytest.fixture(scope="module")
def loaded() -> SLDPipeline:
    pipe = SLDPipeline.from_pretrained("playground").to("cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(loaded: SLDPipeline) -> Iterator[SLDPipeline]:
    concept = loaded.safety_concept
    yield loaded
    loaded.safety_concept = concept


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_the_originals_parameters_keep_their_names_order_and_defaults() -> None:
    parameters = list(inspect.signature(SLDPipeline.__call__).parameters.values())[1:]
    names = [parameter.name for parameter in parameters]
    assert names[:5] == ["prompt", "height", "width", "num_inference_steps", "guidance_scale"]
    defaults = {p.name: p.default for p in parameters if p.name.startswith("sld_")}
    assert defaults == {
        "sld_guidance_scale": 1000,
        "sld_warmup_steps": 10,
        "sld_threshold": 0.01,
        "sld_momentum_scale": 0.3,
        "sld_mom_beta": 0.4,
    }


def test_the_default_concept_is_the_reference_text(pipe: SLDPipeline) -> None:
    whole: Concept = load_pack("inappropriate").whole()
    assert pipe.safety_concept == whole.text
    assert pipe(PROMPT, **FAST, **STRONG).applied_safety_concept == whole.text


def test_a_new_concept_guides_the_next_call(pipe: SLDPipeline) -> None:
    before = pipe(PROMPT, generator=seeded(), **FAST, **STRONG).images
    pipe.safety_concept = "a sword"
    after = pipe(PROMPT, generator=seeded(), **FAST, **STRONG)
    assert after.applied_safety_concept == "a sword"
    assert np.abs(before - after.images).max() > 0.01


@pytest.mark.parametrize("concept", ["", "  ", None])
def test_an_empty_concept_is_refused_because_it_would_do_nothing(pipe: SLDPipeline, concept: Any) -> None:
    with pytest.raises(ConceptError, match="sld_guidance_scale=0"):
        pipe.safety_concept = concept


def test_guidance_scale_zero_switches_guidance_off_and_says_so(pipe: SLDPipeline) -> None:
    with pytest.warns(UserWarning, match="safety guidance is off"):
        off = pipe(PROMPT, generator=seeded(), sld_guidance_scale=0, **FAST)
    plain = pipe.plain_call(PROMPT, generator=seeded(), **FAST).images
    assert off.applied_safety_concept is None
    assert off.reports[0].policy == "off"
    assert np.array_equal(off.images, plain)


def test_without_a_checker_nothing_is_said_about_nsfw_content(pipe: SLDPipeline) -> None:
    output = pipe(PROMPT, **FAST, **STRONG)
    assert output.nsfw_content_detected is None
    assert output.unsafe_images is None


def test_return_dict_false_gives_the_originals_tuple(pipe: SLDPipeline) -> None:
    images, nsfw, concept, unsafe = pipe(PROMPT, return_dict=False, **FAST, **STRONG)
    assert images.shape == (1, 64, 64, 3)
    assert (nsfw, unsafe) == (None, None)
    assert concept == pipe.safety_concept


def test_the_originals_callback_is_called_every_so_many_steps(pipe: SLDPipeline) -> None:
    seen: list[int] = []
    pipe(PROMPT, callback=lambda step, _t, _latents: seen.append(step), callback_steps=2, **FAST, **STRONG)
    assert seen == [0, 2, 4]


def test_warm_up_longer_than_the_run_is_an_error_not_a_no_op(pipe: SLDPipeline) -> None:
    with pytest.raises(GuidanceError, match="only 6 denoiser calls"):
        pipe(PROMPT, sld_warmup_steps=10, **FAST)


def test_latents_cannot_be_had_unreviewed(pipe: SLDPipeline) -> None:
    with pytest.raises(ConfigurationError, match="use pil or np"):
        pipe(PROMPT, **{**FAST, "output_type": "latent"}, **STRONG)


def test_a_saved_pipeline_comes_back_with_its_concept(pipe: SLDPipeline, tmp_path: Path) -> None:
    pipe.safety_concept = "swords and blood"
    pipe.save_pretrained(tmp_path / "saved")
    again = SLDPipeline.from_pretrained(str(tmp_path / "saved"))
    assert again.safety_concept == "swords and blood"


def test_without_prompt_and_embeddings_there_is_one_clear_error(pipe: SLDPipeline) -> None:
    with pytest.raises(ConfigurationError, match="there is no prompt; give a text"):
        pipe(num_inference_steps=2)


def test_prompt_embeddings_stand_in_for_prompts(pipe: SLDPipeline) -> None:
    embeds, negative = pipe.encode_prompt(["a red knight"], "cpu", 1, True)
    call: dict[str, Any] = {"num_inference_steps": 3, "sld_warmup_steps": 0, "output_type": "np"}
    by_text = pipe("a red knight", generator=torch.Generator().manual_seed(0), **call)
    by_embeds = pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        generator=torch.Generator().manual_seed(0),
        **call,
    )
    np.testing.assert_allclose(by_embeds.images, by_text.images, rtol=0, atol=1e-6)
