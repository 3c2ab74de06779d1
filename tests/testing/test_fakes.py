"""The fake pipeline is guided like a real one: what the engine promises holds on it too."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from sldcore.engine import SafetyEngine
from sldcore.policy import ConceptUse, GuidanceSpec, SafetyPolicy, Window
from sldcore.session import guard
from sldcore.testing.fakes import WINDOW, FakePipeline, FakeTokenizer, count_tokens

PROMPT = "a red knight on a meadow"


def policy(**changes: Any) -> SafetyPolicy:
    options = {"scale": 5000, "threshold": 1.0, "momentum_scale": 0.5, "momentum_beta": 0.7}
    given = {"guidance": GuidanceSpec(options=options), "concepts": (ConceptUse(text="blood"),), **changes}
    return SafetyPolicy(**given)


def pixels(result: Any) -> Any:
    return np.stack([np.asarray(image) for image in result.images])


def test_the_engine_guides_it() -> None:
    engine = SafetyEngine(FakePipeline(), policy())
    guided = engine.generate(PROMPT, seed=1, num_inference_steps=6, output_type="np")
    plain = engine.generate(PROMPT, seed=1, num_inference_steps=6, output_type="np", policies=["off"])
    assert guided.reports[0].errors == ()
    assert guided.trace.evaluated.sum() == 6
    assert np.abs(pixels(guided) - pixels(plain)).max() > 1e-3


def test_a_prompt_gives_the_same_picture_alone_and_in_a_batch() -> None:
    engine = SafetyEngine(FakePipeline(), policy())
    both = pixels(engine.generate([PROMPT, "a blue cat"], seed=3, num_inference_steps=6, output_type="np"))
    alone = pixels(engine.generate("a blue cat", seed=3, num_inference_steps=6, output_type="np"))
    np.testing.assert_allclose(both[1], alone[0], atol=1e-5)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another() -> None:
    pictures = [
        FakePipeline()(PROMPT, generator=torch.Generator().manual_seed(seed), output_type="np").images
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_the_prompt_decides_what_is_drawn() -> None:
    pictures = [
        FakePipeline()(text, generator=torch.Generator().manual_seed(0), output_type="np").images
        for text in ("a cat", "a boat")
    ]
    assert np.abs(pictures[0] - pictures[1]).max() > 0.01


def test_a_policy_of_presets_can_be_split_to_its_window() -> None:
    result = SafetyEngine(FakePipeline(), "max").generate(PROMPT, num_inference_steps=3)
    assert result.reports[0].errors == ()
    assert result.images[0].size == (16, 16)


def test_guard_raises_without_classifier_free_guidance() -> None:
    pipe = FakePipeline()
    with guard(pipe, policy()), pytest.raises(ValueError, match="guidance_scale > 1"):
        pipe(PROMPT, guidance_scale=1.0)


def test_a_failure_interrupts_the_loop() -> None:
    class Raises:
        name, version = "raises", "1.0"
        calls = 0

        def before_guidance(self, step: Any, predictions: Any) -> None:
            Raises.calls += 1
            raise RuntimeError("no")

        def after_guidance(self, step: Any, predictions: Any, guided: Any) -> None:
            return None

    result = SafetyEngine(FakePipeline(), policy(), [Raises()]).generate(PROMPT, num_inference_steps=6)
    assert result.reports[0].action == "block"
    assert Raises.calls == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_computes_in_the_type_that_is_asked_for(dtype: torch.dtype) -> None:
    latents = FakePipeline(dtype=dtype)(PROMPT, num_inference_steps=3, output_type="latent").images
    assert latents.dtype == dtype
    assert latents.shape == (1, 4, 8, 8)


def test_another_scheduler_and_size_can_be_used() -> None:
    pipe = FakePipeline(EulerDiscreteScheduler())
    with guard(pipe, policy(guidance=GuidanceSpec(window=Window(unit="noise", start=0.9)))) as session:
        images = pipe([PROMPT, "a cat"], num_inference_steps=8, height=32, width=24, output_type="np").images
    assert images.shape == (2, 32, 24, 3)
    assert 0 < session.trace.applied.sum() < 16


def test_pictures_are_asked_for_per_prompt_and_prompts_may_be_states() -> None:
    pipe = FakePipeline()
    states, _ = pipe.encode_prompt(PROMPT, torch.device("cpu"), 1, False)
    made = [
        pipe(
            **given, num_images_per_prompt=2, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images
        for given in ({"prompt": PROMPT}, {"prompt_embeds": states})
    ]
    assert made[0].shape == (2, 16, 16, 3)
    np.testing.assert_allclose(made[0], made[1], atol=1e-6)


def test_a_negative_prompt_changes_the_picture() -> None:
    pipe = FakePipeline()
    made = [
        pipe(
            PROMPT, negative_prompt=negative, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images
        for negative in (None, "a red knight")
    ]
    assert np.abs(made[0] - made[1]).max() > 1e-3


def test_tokens_are_words_and_signs_and_are_cut_only_on_demand() -> None:
    long = "word " * 100
    assert count_tokens("a red knight, a cat") == 2 + 6
    assert len(FakeTokenizer()(long).input_ids) == 102
    assert len(FakeTokenizer()(long, truncation=True).input_ids) == WINDOW


def test_a_word_means_the_same_in_any_process() -> None:
    states, _ = FakePipeline().encode_prompt("blood", torch.device("cpu"), 1, False)
    assert states.shape == (1, 77, 8)
    torch.testing.assert_close(states[0, 1, :2], torch.tensor([0.93845, 0.30075]), atol=1e-4, rtol=0)


def test_a_denoiser_call_is_quick() -> None:
    pipe = FakePipeline()
    text = pipe.encode_prompt([PROMPT] * 2, torch.device("cpu"), 1, False)[0]
    latents = torch.zeros(2, 4, 8, 8)
    pipe.unet(latents, 1.0, text)
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        pipe.unet(latents, 1.0, text)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.005  # some 100 microseconds on an idle core
