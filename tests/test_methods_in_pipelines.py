"""Every guidance method of the core in a real pipeline: what it costs, whom it touches, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image

from sldcore import Result, SafetyEngine, SafetyPolicy, guard
from sldcore.errors import GuidanceError
from sldcore.guidance.kinds import KINDS
from sldcore.guidance.references import write_references

PARTS = tiny_pipelines.parts()
PROMPTS = ["a red knight on a meadow", "a blue cat in the snow", "a boat and a flower"]
STEPS = 6
CALL: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "np"}
CLOSE = 5e-4
CATEGORIES = 7
ONE_CONCEPT = ("sld", "negative", "sld+negative", "dng", "safree", "safe-denoiser")
ROWS = {
    "sld": 3 * STEPS,
    "negative": 2 * STEPS,
    "sld+negative": 3 * STEPS,
    "casg": (2 + CATEGORIES) * STEPS,
    "dng": 3 * STEPS,
    "safree": 2 * STEPS,
    "safe-denoiser": 2 * STEPS,
}
"""What each method costs for one picture, from its paper: parts and concept rows of every step."""


def pipeline() -> Any:
    return tiny_pipelines.pipeline(**PARTS)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("references") / "latents.safetensors"
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return path, write_references(pipeline(), [Image.fromarray(each) for each in noise], path)


@pytest.fixture
def options(references: tuple[Path, str]) -> dict[str, dict[str, Any]]:
    """Options under which a method acts on a model in miniature."""
    path, digest = references
    return {
        "safe-denoiser": {
            "references": str(path), "sha256": digest, "noise_floor": 0.1, "bandwidth": 30.0, "threshold": 0.01,
        },
        "sld": {"scale": 5000, "threshold": 1.0},
        "sld+negative": {"scale": 5000, "threshold": 1.0},
    }  # fmt: skip


def policy(method: str, options: dict[str, dict[str, Any]], **fields: Any) -> SafetyPolicy:
    concepts = ("inappropriate",) if method in ONE_CONCEPT else ("inappropriate/*",)
    guidance = {"method": method, "options": options.get(method, {}), **fields}
    return SafetyPolicy.model_validate({"name": method, "concepts": concepts, "guidance": guidance})


def made(policies: list[Any], prompts: list[str] = PROMPTS, pipe: Any = None, seed: int = 7) -> Result:
    engine = SafetyEngine(pipe or pipeline(), "off")
    return engine.generate(prompts, seed=seed, policies=policies, **CALL)


def test_what_every_method_costs_is_written_down() -> None:
    assert set(ROWS) == {kind.name for kind in KINDS}


@pytest.mark.parametrize("method", ROWS)
def test_the_rows_of_a_report_are_those_that_the_denoiser_evaluates(
    method: str, options: dict[str, dict[str, Any]]
) -> None:
    pipe, evaluated = pipeline(), []
    forward = pipe.unet.forward

    def counted(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        evaluated.append(len(sample))
        return forward(sample, *args, **kwargs)

    pipe.unet.forward = counted
    result = made([policy(method, options)] * 3, pipe=pipe)
    assert [report.rows for report in result.reports] == [ROWS[method]] * 3
    assert [report.plain_rows for report in result.reports] == [2 * STEPS] * 3
    assert sum(evaluated) == 3 * ROWS[method] == result.trace.rows


@pytest.mark.parametrize("method", ROWS)
def test_a_method_changes_its_own_pictures_and_no_others(
    method: str, options: dict[str, dict[str, Any]]
) -> None:
    off = made(["off"] * 3)
    mixed = made(["off", policy(method, options), "off"])
    assert [report.action for report in mixed.reports] == ["none"] * 3
    for index in (0, 2):
        assert np.abs(mixed.images[index] - off.images[index]).max() < CLOSE
    assert np.abs(mixed.images[1] - off.images[1]).max() > 10 * CLOSE
    assert mixed.trace.applied[1].any()
    assert not mixed.trace.applied[[0, 2]].any()


@pytest.mark.parametrize("method", ROWS)
def test_a_picture_is_the_same_alone_and_in_a_batch(method: str, options: dict[str, dict[str, Any]]) -> None:
    own = policy(method, options)
    together = made([own, "max", own])
    for index in (0, 2):
        alone = made([own], PROMPTS[index : index + 1])
        assert np.abs(together.images[index] - alone.images[0]).max() < CLOSE


@pytest.mark.parametrize("method", ROWS)
def test_outside_its_window_a_method_does_nothing(method: str, options: dict[str, dict[str, Any]]) -> None:
    window = {"start": 2, "stop": 4}
    result = made([policy(method, options, window=window)], PROMPTS[:1])
    acted = result.trace.applied[0].any(0)
    assert acted[2:4].any()
    assert not acted[:2].any()
    assert not acted[4:].any()


def test_the_negative_method_is_the_pipelines_own_negative_prompt() -> None:
    own = policy("negative", {})
    (text,) = made([own], PROMPTS[:1]).reports[0].concepts["inappropriate"]
    plain = SafetyEngine(pipeline(), "off").generate(PROMPTS, seed=7, negative_prompt=[text] * 3, **CALL)
    assert np.array_equal(np.stack(made([own] * 3).images), np.stack(plain.images))


def test_sld_with_a_negative_prompt_is_no_negative_prompt_alone(options: dict[str, dict[str, Any]]) -> None:
    both, alone = made([policy("sld+negative", options)] * 3), made([policy("negative", options)] * 3)
    assert np.abs(np.stack(both.images) - np.stack(alone.images)).max() > 10 * CLOSE


def test_safree_acts_in_a_call_of_ones_own(options: dict[str, dict[str, Any]]) -> None:
    engine = made([policy("safree", options)], PROMPTS[:1])
    pipe = pipeline()
    with guard(pipe, policy("safree", options)) as session:
        images = pipe(PROMPTS[0], generator=torch.Generator().manual_seed(7), **CALL).images
    assert np.abs(images[0] - engine.images[0]).max() < CLOSE
    assert session.trace.applied.any()


def test_safree_needs_to_know_the_prompt(options: dict[str, dict[str, Any]]) -> None:
    pipe = pipeline()
    embeds, negative = pipe.encode_prompt(PROMPTS[0], "cpu", 1, True)
    engine = SafetyEngine(pipe, policy("safree", options))
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    with pytest.raises(GuidanceError, match="give it prompt="):
        engine.generate(None, seed=7, **given, **CALL)


def test_a_method_with_several_concepts_in_place_of_one_is_refused(
    options: dict[str, dict[str, Any]],
) -> None:
    two = policy("negative", options).replace(concepts=("inappropriate/hate", "inappropriate/violence"))
    with pytest.raises(GuidanceError, match="one text"):
        made([two], PROMPTS[:1])


@pytest.mark.parametrize(("every", "rows"), [(1, 3 * STEPS), (2, 2 * STEPS + 3), (3, 2 * STEPS + 2)])
def test_fewer_concept_rows_are_counted_as_fewer(
    every: int, rows: int, options: dict[str, dict[str, Any]]
) -> None:
    saving = policy("sld", options, savings={"concept_every": every})
    result, exact = made([saving], PROMPTS[:1]), made([policy("sld", options)], PROMPTS[:1])
    assert result.reports[0].rows == rows == result.trace.rows
    assert result.trace.applied[0].any(0).all()
    same = np.array_equal(result.images[0], exact.images[0])
    assert same == (every == 1)


def test_behind_a_gate_any_method_makes_what_it_makes_alone(options: dict[str, dict[str, Any]]) -> None:
    for method in ROWS:
        gate = {"probes": (1,), "unit": "steps", "threshold": -1.0}
        gated, alone = policy(method, options, gate=gate), policy(method, options)
        result = made([gated], PROMPTS[:1])
        assert result.reports[0].probes[0].restarts, method
        assert np.abs(result.images[0] - made([alone], PROMPTS[:1]).images[0]).max() < CLOSE, method
