"""Safety is never lost silently: the rules of behaviour, each provoked."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_pipelines import PROMPTS, pipeline
from torch import Tensor

from sldcore import Result, SafetyEngine, SafetyPolicy, SLDPipeline, guard, load_pipeline
from sldcore.contributions import GuidanceMethod
from sldcore.errors import (
    ConceptError,
    ConfigurationError,
    GuidanceError,
    ModelError,
    PluginError,
    PolicyError,
    SafetyFailure,
    SessionError,
)
from sldcore.guidance.sld import SLD
from sldcore.policy import ConceptUse, GuidanceSpec, SLDOptions, Window
from sldcore.types import Predictions, Step

FAST: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "np"}
ACTING = SafetyPolicy.preset("max")
TWO = list(PROMPTS[:2])


def pixels(result: Result) -> NDArray[np.float32]:
    return np.stack(list(result.images))


def plain(pipe: Any, **call: Any) -> NDArray[np.float32]:
    images: NDArray[np.float32] = pipe(
        PROMPTS[0], generator=torch.Generator().manual_seed(0), **FAST, **call
    ).images
    return images


def count_denoiser_calls(pipe: Any) -> list[int]:
    """The rows of every evaluation of the UNet from now on."""
    rows: list[int] = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


def at_call(pipe: Any, number: int, act: Callable[[Tensor], None]) -> None:
    """Do something to the UNet's prediction, concept rows included, at one of its calls."""
    calls = 0

    def hook(_module: Any, _args: Any, output: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == number + 1:
            act(output)

    pipe.unet.conv_out.register_forward_hook(hook)


class Hook:
    """A step hook that does something after guidance at step 3."""

    name, version = "my-hook", "2.1"

    def __init__(self, act: Callable[[Tensor], Tensor | None]) -> None:
        self._act = act

    def before_guidance(self, step: Step, predictions: Predictions) -> Predictions | None:
        return None

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor | None:
        return self._act(guided) if step.index == 3 else None


def raise_error(_: Any) -> Any:
    raise RuntimeError("out of ideas")


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


# --- 1. what a policy names must be had -----------------------------------------------------------------------


def test_an_unknown_concept_is_an_error_before_the_first_step(pipe: Any) -> None:
    calls = count_denoiser_calls(pipe)
    for use in ("inapropriate", "inappropriate/violent"):
        policy = ACTING.replace(concepts=(use,))
        with pytest.raises(ConfigurationError, match=r"did you mean .*available: "):
            SafetyEngine(pipe, policy).generate(PROMPTS[0], **FAST)
        with pytest.raises(ConfigurationError, match=r"did you mean .*available: "), guard(pipe, policy):
            pipe(PROMPTS[0], **FAST)
    assert not calls


def test_an_unknown_preset_is_an_error_before_the_first_step(pipe: Any) -> None:
    calls = count_denoiser_calls(pipe)
    with pytest.raises(PolicyError, match="did you mean 'strong'"):
        SafetyEngine(pipe, "stronk")
    with pytest.raises(PolicyError, match="available: gated, max, "), guard(pipe, "none"):
        pipe(PROMPTS[0], **FAST)
    with pytest.raises(PolicyError, match="unknown preset"):
        SafetyEngine(pipe, "off").generate(TWO, policies=["off", "nothing"], **FAST)
    assert not calls


def test_an_unknown_method_is_an_error_before_the_first_step(pipe: Any) -> None:
    calls = count_denoiser_calls(pipe)
    policy = ACTING.replace(guidance=GuidanceSpec(method="sld2"))
    with pytest.raises(PluginError, match="guidance method 'sld2'"):
        SafetyEngine(pipe, policy).generate(PROMPTS[0], **FAST)
    with pytest.raises(PluginError, match="'sld2'"), guard(pipe, policy):
        pipe(PROMPTS[0], **FAST)
    assert not calls


# --- 2. guidance that could not act ---------------------------------------------------------------------------


def test_guidance_scale_1_with_a_guiding_policy_is_an_error_before_the_first_step(pipe: Any) -> None:
    calls = count_denoiser_calls(pipe)
    with pytest.raises(GuidanceError, match="guidance_scale is 1, which turns classifier-free guidance off"):
        SafetyEngine(pipe, "off").generate(TWO, policies=["off", ACTING], **{**FAST, "guidance_scale": 1})
    assert not calls


def test_guidance_scale_1_inside_guard_is_an_error_at_the_first_call(pipe: Any) -> None:
    calls = count_denoiser_calls(pipe)
    with pytest.raises(GuidanceError, match="without classifier-free guidance"), guard(pipe, ACTING):
        pipe(PROMPTS[0], **{**FAST, "guidance_scale": 1.0})
    assert not calls


def test_a_step_hook_that_would_never_be_called_is_an_error(pipe: Any) -> None:
    engine = SafetyEngine(pipe, "off", step_hooks=[Hook(raise_error)])
    with pytest.raises(GuidanceError, match="without step hooks"):
        engine.generate(PROMPTS[0], **{**FAST, "guidance_scale": 1.0})


def test_off_needs_no_classifier_free_guidance(pipe: Any) -> None:
    result = SafetyEngine(pipe, "off").generate(PROMPTS[0], **{**FAST, "guidance_scale": 1.0})
    expected = pipe(
        PROMPTS[0], generator=torch.Generator().manual_seed(0), **{**FAST, "guidance_scale": 1.0}
    ).images
    assert np.array_equal(pixels(result), expected)


@pytest.mark.parametrize("start", [6, 15])
def test_a_warm_up_as_long_as_the_run_is_an_error_that_names_the_alternatives(pipe: Any, start: int) -> None:
    calls = count_denoiser_calls(pipe)
    assert ACTING.guidance is not None
    late = ACTING.replace(guidance=ACTING.guidance.model_copy(update={"window": Window(start=start)}))
    alternatives = rf"starts at step {start}, but .* only 6 .*more than {start} steps.*fraction.*noise"
    with pytest.raises(GuidanceError, match=alternatives):
        SafetyEngine(pipe, late).generate(PROMPTS[0], **FAST)
    with pytest.raises(GuidanceError, match=alternatives), guard(pipe, late):
        pipe(PROMPTS[0], **FAST)
    assert not calls


# --- 3. nothing is truncated ----------------------------------------------------------------------------------


def test_an_over_long_concept_is_split_at_its_terms_into_rows_that_all_guide(pipe: Any) -> None:
    terms = [f"{thing} number {index}" for index in range(12) for thing in ("blood", "weapons")]
    policy = ACTING.replace(concepts=(ConceptUse(text=", ".join(terms), prefix="an image showing"),))
    calls = count_denoiser_calls(pipe)
    result = SafetyEngine(pipe, policy).generate(PROMPTS[0], **FAST)
    (texts,) = result.reports[0].concepts.values()
    assert len(texts) > 1
    assert [term for text in texts for term in text.removeprefix("an image showing ").split(", ")] == terms
    assert all(len(pipe.tokenizer(text).input_ids) <= 77 for text in texts)
    assert calls == [2 + len(texts)] * 6
    assert result.trace.applied.all()


def test_a_single_term_that_is_too_long_is_an_error_before_the_first_step(pipe: Any) -> None:
    calls = count_denoiser_calls(pipe)
    policy = ACTING.replace(concepts=(ConceptUse(text="blood, " + "weapons " * 90),))
    with pytest.raises(ConceptError, match=r"the term 'weapons .*window is 77; shorten it"):
        SafetyEngine(pipe, policy).generate(PROMPTS[0], **FAST)
    assert not calls


# --- 4. what fails is withheld --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("row", [1, 3, 5], ids=["uncond", "cond", "concept"])
def test_nan_from_the_denoiser_withholds_that_sample_only_and_names_the_step(
    pipe: Any, row: int, value: float
) -> None:
    clean = pixels(SafetyEngine(pipe, ACTING).generate(TWO, **FAST))
    at_call(pipe, 3, lambda output: output[row, 0, 5, 5].fill_(value))
    result = SafetyEngine(pipe, ACTING).generate(TWO, **FAST)
    assert [report.action for report in result.reports] == ["none", "block"]
    np.testing.assert_allclose(pixels(result)[0], clean[0], rtol=0, atol=1e-4)
    assert not pixels(result)[1].any()
    failure = result.reports[1].errors[0]
    assert (failure.source, failure.step) == ("sld", 3)
    assert "NaN or Inf" in failure.error


def test_nan_without_guidance_withholds_the_picture_too(pipe: Any) -> None:
    at_call(pipe, 3, lambda output: output[3].fill_(float("nan")))
    result = SafetyEngine(pipe, "off").generate(TWO, **FAST)
    assert [report.action for report in result.reports] == ["none", "block"]
    assert not pixels(result)[1].any()


def test_nan_raises_where_the_policy_says_so(pipe: Any) -> None:
    at_call(pipe, 3, lambda output: output[1].fill_(float("nan")))
    with pytest.raises(SafetyFailure, match="NaN or Inf"):
        SafetyEngine(pipe, ACTING.replace(on_error="raise")).generate(PROMPTS[0], **FAST)


def test_nan_raises_inside_guard(pipe: Any) -> None:
    at_call(pipe, 3, lambda output: output[1].fill_(float("nan")))
    with pytest.raises(SafetyFailure, match="NaN or Inf"), guard(pipe, ACTING):
        pipe(PROMPTS[0], **FAST)


def test_an_exception_in_a_step_hook_withholds_the_pictures_and_is_reported(pipe: Any) -> None:
    result = SafetyEngine(pipe, ACTING, [Hook(raise_error)]).generate(TWO, **FAST)
    assert not pixels(result).any()
    for report in result.reports:
        assert report.action == "block"
        (failure,) = report.errors
        assert (failure.source, failure.version, failure.step) == ("my-hook", "2.1", 3)
        assert failure.error == "RuntimeError: out of ideas"


def test_an_exception_in_a_step_hook_raises_where_the_policy_says_so(pipe: Any) -> None:
    engine = SafetyEngine(pipe, ACTING.replace(on_error="raise"), [Hook(raise_error)])
    with pytest.raises(SafetyFailure, match=r"my-hook 2\.1 failed at step 3: RuntimeError: out of ideas"):
        engine.generate(PROMPTS[0], **FAST)


def test_an_exception_in_a_step_hook_raises_inside_guard(pipe: Any) -> None:
    with (
        pytest.raises(SafetyFailure, match=r"my-hook 2\.1 failed at step 3"),
        guard(pipe, "off", [Hook(raise_error)]),
    ):
        pipe(PROMPTS[0], **FAST)


@pytest.mark.parametrize(
    "act",
    [lambda guided: guided[:1], lambda guided: guided.double(), lambda guided: "nothing"],
    ids=["shape", "dtype", "type"],
)
def test_a_step_hook_that_gives_back_something_else_withholds_the_pictures(pipe: Any, act: Any) -> None:
    result = SafetyEngine(pipe, ACTING, [Hook(act)]).generate(TWO, **FAST)
    assert not pixels(result).any()
    assert result.reports[0].errors[0].source == "my-hook"
    assert "must stay a tensor (2, 4, 16, 16)" in result.reports[0].errors[0].error


def test_nan_from_a_step_hook_withholds_the_picture_and_names_the_hook(pipe: Any) -> None:
    def spoil_second(guided: Tensor) -> Tensor:
        spoilt = guided.clone()
        spoilt[1, 0, 0, 0] = float("nan")
        return spoilt

    result = SafetyEngine(pipe, ACTING, [Hook(spoil_second)]).generate(TWO, **FAST)
    assert [report.action for report in result.reports] == ["none", "block"]
    failure = result.reports[1].errors[0]
    assert (failure.source, failure.version, failure.step) == ("my-hook", "2.1", 3)


def test_an_exception_in_a_method_withholds_its_own_samples_and_the_others_go_on(
    pipe: Any, plugin_catalogue: Callable[..., None]
) -> None:
    class Broken:
        name, version = "broken", "0.3"

        def start(self, samples: Any, schedule: Any) -> Any:
            run = SLD().start(samples, schedule)
            run.combine = raise_error_at_step  # type: ignore[method-assign]
            return run

    def raise_error_at_step(step: Step, predictions: Predictions) -> Any:
        raise_error(step)

    plugin_catalogue(GuidanceMethod(name="broken", options=SLDOptions, create=Broken))
    assert ACTING.guidance is not None
    spec = GuidanceSpec(method="broken", options=dict(ACTING.guidance.options))
    engine = SafetyEngine(pipe, ACTING)
    alone = pixels(engine.generate(TWO[1], **FAST))
    result = engine.generate(TWO, policies=[ACTING.replace(guidance=spec), ACTING], **FAST)
    assert [report.action for report in result.reports] == ["block", "none"]
    assert not pixels(result)[0].any()
    np.testing.assert_allclose(pixels(result)[1:], alone, rtol=0, atol=1e-4)
    (failure,) = result.reports[0].errors
    assert (failure.source, failure.version, failure.step) == ("broken", "0.3", 0)
    assert failure.error == "RuntimeError: out of ideas"


def test_a_pipeline_that_stops_early_gives_no_picture(pipe: Any) -> None:
    def stop(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 2
        return {}

    result = SafetyEngine(pipe, ACTING).generate(PROMPTS[0], callback_on_step_end=stop, **FAST)
    assert result.reports[0].action == "block"
    assert "stopped after 3 of 6" in result.reports[0].errors[0].error


# --- 5. the hook is always removed again ----------------------------------------------------------------------


def assert_unguarded(pipe: Any, before: NDArray[np.float32]) -> None:
    assert np.array_equal(plain(pipe), before)
    assert "maybe_free_model_hooks" not in vars(pipe)
    with guard(pipe, ACTING):
        assert not np.array_equal(plain(pipe), before)


@pytest.mark.parametrize("where", ["callback", "denoiser"])
def test_after_ctrl_c_the_pipeline_is_as_it_was(pipe: Any, where: str) -> None:
    before = plain(pipe)
    call = dict(FAST)
    if where == "callback":
        call["callback_on_step_end"] = interrupt
    else:
        at_call(pipe, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        SafetyEngine(pipe, ACTING).generate(PROMPTS[0], **call)
    assert_unguarded(pipe, before)


def test_after_an_error_inside_guard_the_pipeline_is_as_it_was(pipe: Any) -> None:
    before = plain(pipe)
    with pytest.raises(RuntimeError, match="out of ideas"), guard(pipe, ACTING):
        pipe(PROMPTS[0], callback_on_step_end=lambda *_: raise_error(0), **FAST)
    assert_unguarded(pipe, before)


def test_a_pipeline_in_use_refuses_a_second_session(pipe: Any) -> None:
    with guard(pipe, ACTING) as session:
        with pytest.raises(SessionError, match="guarded by another session already"), guard(pipe, "off"):
            pass
        with pytest.raises(SessionError, match="guarded by another session already"):
            SafetyEngine(pipe, ACTING).generate(PROMPTS[0], **FAST)
        guided = plain(pipe)
        assert session.trace.applied.all()
    assert not np.array_equal(guided, plain(pipe))


def test_two_pipelines_that_share_a_denoiser_cannot_be_guarded_at_once(pipe: Any) -> None:
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    with guard(pipe, ACTING), pytest.raises(SessionError, match="denoiser of its own"), guard(other, ACTING):
        pass


def test_two_engines_on_two_pipelines_run_in_parallel_threads(parts: dict[str, Any]) -> None:
    engines = [SafetyEngine(pipeline(**parts), ACTING) for _ in range(2)]
    alone = [pixels(engine.generate(prompt, **FAST)) for engine, prompt in zip(engines, TWO, strict=True)]
    results: dict[int, list[NDArray[np.float32]]] = {0: [], 1: []}
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait(timeout=30)
        for _ in range(3):
            results[index].append(pixels(engines[index].generate(TWO[index], **FAST)))

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for index in (0, 1):
        assert len(results[index]) == 3
        for picture in results[index]:
            np.testing.assert_allclose(picture, alone[index], rtol=0, atol=1e-5)


# --- 7. no pickle, no code ------------------------------------------------------------------------------------


class Exploit:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._mark), "w"))


@pytest.fixture
def folder(pipe: Any, tmp_path: Path) -> Path:
    """A saved pipeline whose UNet weights are a pickle that leaves the mark ``executed``."""
    pipe.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(pickle.dumps(Exploit(tmp_path / "executed")))
    return tmp_path / "model"


@pytest.mark.parametrize("load", [load_pipeline, SLDPipeline.from_pretrained])
def test_a_folder_with_pickled_weights_is_refused_and_the_pickle_is_not_opened(
    folder: Path, load: Any
) -> None:
    with pytest.raises(ModelError, match=r"unet holds pickled weights only.*convert the weights"):
        load(folder)
    assert not (folder.parent / "executed").exists()


@pytest.mark.parametrize("load", [load_pipeline, SLDPipeline.from_pretrained])
def test_a_pickle_beside_other_safetensors_is_not_opened_either(folder: Path, load: Any) -> None:
    unrelated = folder / "vae" / "diffusion_pytorch_model.safetensors"
    (folder / "unet" / "lora.safetensors").write_bytes(unrelated.read_bytes())
    with pytest.raises(ModelError, match="cannot load a pipeline"):
        load(folder)
    assert not (folder.parent / "executed").exists()


def test_asking_for_pickled_weights_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="use_safetensors=False asks for pickled weights"):
        SLDPipeline.from_pretrained(folder, use_safetensors=False)
    assert not (folder.parent / "executed").exists()


@pytest.mark.parametrize("load", [load_pipeline, SLDPipeline.from_pretrained])
def test_a_pickled_checkpoint_file_is_refused(tmp_path: Path, load: Any) -> None:
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(pickle.dumps(Exploit(tmp_path / "executed")))
    with pytest.raises(ModelError, match=r"model\.ckpt is pickled"):
        load(checkpoint)
    assert not (tmp_path / "executed").exists()


def test_code_in_a_model_folder_is_not_run(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    original = json.loads(index.read_text())
    code = f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Mine: pass\n"
    for place, changed in (
        ("mine.py", {"_class_name": ["mine", "Mine"]}),
        ("unet/mine.py", {"unet": ["mine", "Mine"]}),
    ):
        (tmp_path / "model" / place).write_text(code)
        index.write_text(json.dumps({**original, **changed}))
        with pytest.raises(ModelError, match="cannot load a pipeline"):
            load_pipeline(tmp_path / "model")
    assert not (tmp_path / "executed").exists()


def test_guard_refuses_a_policy_whose_filters_it_would_not_run(
    pipe: Any, plugin_catalogue: Callable[..., Any]
) -> None:
    policy = ACTING.replace(filters=["playground-glyphs"])
    with pytest.raises(GuidanceError, match="guard\\(\\) reviews and marks nothing"), guard(pipe, policy):
        raise AssertionError("the block must not be entered")


def test_guard_refuses_what_cannot_be_had_before_the_first_step(pipe: Any) -> None:
    policy = ACTING.replace(guidance={"window": {"unit": "nowhere"}})
    with pytest.raises(PluginError, match="window 'nowhere'"), guard(pipe, policy):
        raise AssertionError("the block must not be entered")


def test_the_scheduler_that_a_policy_names_is_used_recorded_and_taken_away_again(pipe: Any) -> None:
    own = pipe.scheduler
    result = SafetyEngine(pipe, ACTING.replace(scheduler="euler")).generate(PROMPTS[0], **FAST)
    assert result.provenance["scheduler"] == "EulerDiscreteScheduler"
    assert pipe.scheduler is own
    plain_result = SafetyEngine(pipe, ACTING).generate(PROMPTS[0], **FAST)
    assert not np.allclose(pixels(result), pixels(plain_result), atol=1e-3)


def test_provenance_says_who_provided_what(pipe: Any) -> None:
    result = SafetyEngine(pipe, ACTING).generate(PROMPTS[0], **FAST)
    assert result.provenance["providers"][ACTING.digest]["guidance method sld"].startswith("sldcore ")
