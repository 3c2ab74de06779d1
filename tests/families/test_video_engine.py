"""Videos in the engine: every frame is reviewed, and what is said of one is acted on in all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases_video import BY_NAME
from family_checks import PROMPT, PROMPTS, policy
from PIL import Image

from sldcore import Result, SafetyEngine, SafetyPolicy
from sldcore.contributions import MarkKind, PostFilterKind, PromptFilterKind
from sldcore.errors import SafetyFailure
from sldcore.filters.chain import Findings
from sldcore.frames import over_frames, pixels_of
from sldcore.guidance.base import StepHook
from sldcore.policy import FilterUse
from sldcore.session import guard
from sldcore.types import Box, Failure, Predictions, Step, Verdict

PlugIn = Callable[..., Any]
CASE = BY_NAME["AnimateDiff"]
FRAMES = CASE.call["num_frames"]


class FrameFilter:
    """Flags the frame of a number, of videos whose prompt has a word in it."""

    name, version = "frames", "1"

    def __init__(self, frame: int, word: str = "") -> None:
        self.frame, self.word, self.reviews = frame, word, 0

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[Any]) -> list[Verdict]:
        self.reviews += len(pictures)
        found, seen = [], dict[tuple[str, Any], int]()
        for context in contexts:
            key = (context.prompt, context.seed)
            number = seen[key] = seen.get(key, -1) + 1
            bad = number == self.frame and self.word in context.prompt
            score = 0.9 if bad else 0.1 + 0.01 * number
            boxes = (Box("x", score, 0.0, 0.0, 0.5, 0.5),) if bad else ()
            found.append(Verdict("frames", "1", bad, {"x": score}, {"x": 0.5}, "seen" if bad else "", boxes))
        return found


def generated(
    plugin_catalogue: PlugIn, made: FrameFilter, do: Any = "black", prompt: Any = PROMPT, **more: Any
) -> Result:
    name = f"frames-{id(made)}"
    plugin_catalogue(PostFilterKind(name=name, create=lambda options: made))
    chosen = SafetyPolicy.preset("off").replace(
        filters=[FilterUse.model_validate({"use": name, "on_flag": do})]
    )
    return SafetyEngine(CASE.pipe(), chosen).generate(prompt, seed=0, **{**CASE.call, **more})


def test_every_frame_is_reviewed_and_shown_as_a_list(plugin_catalogue: PlugIn) -> None:
    made = FrameFilter(99)
    result = generated(plugin_catalogue, made)
    assert made.reviews == FRAMES == len(result.images[0])
    assert result.video and all(isinstance(frame, Image.Image) for frame in result.images[0])
    assert result.reports[0].action == "none"
    (verdict,) = result.reports[0].verdicts
    assert verdict.scores["x"] == pytest.approx(0.1 + 0.01 * (FRAMES - 1))  # the worst frame's


def test_one_flagged_frame_blackens_them_all(plugin_catalogue: PlugIn) -> None:
    result = generated(plugin_catalogue, FrameFilter(1))
    assert all(frame.getextrema() == ((0, 0),) * 3 for frame in result.images[0])
    (verdict,) = result.reports[0].verdicts
    assert verdict.flagged and verdict.reason == f"seen (frame 2 of {FRAMES})" and len(verdict.boxes) == 1


@pytest.mark.parametrize("do", ["blur", "pixelate"])
def test_covering_actions_cover_every_frame(do: str, plugin_catalogue: PlugIn) -> None:
    plain = generated(plugin_catalogue, FrameFilter(99)).images[0]
    covered = generated(plugin_catalogue, FrameFilter(0), do).images[0]
    assert len(covered) == FRAMES
    for one, other in zip(plain, covered, strict=True):
        assert not np.array_equal(np.asarray(one), np.asarray(other))


def test_dropped_videos_are_none(plugin_catalogue: PlugIn) -> None:
    assert generated(plugin_catalogue, FrameFilter(0), "drop").images == [None]


def test_arrays_are_given_as_asked(plugin_catalogue: PlugIn) -> None:
    result = generated(plugin_catalogue, FrameFilter(0), output_type="np")
    assert result.images[0].shape[0] == FRAMES and result.images[0].ndim == 4 and not result.images[0].any()


def test_only_the_flagged_video_of_a_batch_is_covered(plugin_catalogue: PlugIn) -> None:
    result = generated(plugin_catalogue, FrameFilter(0, word="knight"), prompt=list(PROMPTS))
    assert [report.action for report in result.reports] == ["black", "none"]


def test_several_videos_of_a_prompt_where_the_pipeline_makes_one(plugin_catalogue: PlugIn) -> None:
    two = generated(plugin_catalogue, FrameFilter(99), num_images=2)
    assert [report.seed for report in two.reports] == [0, 1]
    first, second = (np.asarray(video[0]) for video in two.images)
    assert not np.array_equal(first, second)


def test_a_prompt_that_is_stopped_gives_black_frames(plugin_catalogue: PlugIn) -> None:
    class Stops:
        name, version = "stops", "1"

        def review(self, prompts: Sequence[str], contexts: Sequence[Any]) -> list[Verdict]:
            return [Verdict("stops", "1", True, {"x": 1.0}, {"x": 0.5}) for _ in prompts]

    plugin_catalogue(PromptFilterKind(name="stops", create=lambda options: Stops()))
    chosen = SafetyPolicy.preset("off").replace(prompt_filters=["stops"])
    result = SafetyEngine(CASE.pipe(), chosen).generate(PROMPT, seed=0, **CASE.call)
    assert len(result.images[0]) == FRAMES and result.reports[0].withheld
    assert result.images[0][0].size == (CASE.call["width"], CASE.call["height"])


def test_marks_are_put_on_every_frame_and_a_failing_one_withholds_all(plugin_catalogue: PlugIn) -> None:
    class Paints:
        name, version = "paints", "1"

        def __init__(self, fails: bool) -> None:
            self.count, self.fails = 0, fails

        def mark(self, pictures: Sequence[Image.Image], contexts: Sequence[Any]) -> list[Image.Image]:
            self.count += 1
            if self.fails and self.count == 2:
                raise ValueError("no paint")
            return [Image.new("RGB", picture.size, "red") for picture in pictures]

    for fails in (False, True):
        name = f"paints-{fails}".lower()
        plugin_catalogue(MarkKind(name=name, create=lambda options, fails=fails: Paints(fails)))
        chosen = SafetyPolicy.preset("off").replace(marks=[name])
        result = SafetyEngine(CASE.pipe(), chosen).generate(PROMPT, seed=0, **CASE.call)
        colours = {frame.getpixel((0, 0)) for frame in result.images[0]}
        assert colours == ({(0, 0, 0)} if fails else {(255, 0, 0)})
        assert result.reports[0].action == ("block" if fails else "none")


class FailsOnce:
    """Raises at the first step that it sees, and never again."""

    name, version = "fails-once", "1"

    def __init__(self) -> None:
        self.failed = False

    def before_guidance(self, step: Step, predictions: Predictions) -> None:
        if not self.failed:
            self.failed = True
            raise ValueError("once")

    def after_guidance(self, step: Step, predictions: Predictions, guided: Any) -> None:
        return None


def test_a_failure_in_any_run_of_a_call_withholds_the_video() -> None:
    pipe = CASE.pipe()
    pipe.enable_free_init(num_iters=2, use_fast_sampling=False)
    hook: StepHook = FailsOnce()
    result = SafetyEngine(pipe, policy(), step_hooks=[hook]).generate(PROMPT, seed=0, **CASE.call)
    assert result.reports[0].action == "block" and "once" in result.reports[0].errors[0].error
    assert all(frame.getextrema() == ((0, 0),) * 3 for frame in result.images[0])


def test_rows_of_all_runs_of_a_call_are_counted() -> None:
    pipe = CASE.pipe()
    pipe.enable_free_init(num_iters=2, use_fast_sampling=False)
    result = SafetyEngine(pipe, policy()).generate(PROMPT, seed=0, **CASE.call)
    assert result.reports[0].rows == 2 * 3 * CASE.call["num_inference_steps"]


# --- what is said of frames ---------------------------------------------------------------------------------------


def verdict(score: float, name: str = "a", shadow: bool = False) -> Verdict:
    flagged = score >= 0.5
    box = (Box("x", score, 0.0, 0.0, score, 1.0),)
    return Verdict(name, "1", flagged, {"x": score}, {"x": 0.5}, "", box, seconds=1.0, shadow=shadow)


def test_filters_are_kept_apart_and_boxes_of_flagged_frames_joined() -> None:
    use = FilterUse(use="a")
    frames = [
        Findings([verdict(0.6), verdict(0.1, "b")], [], [(use, verdict(0.6))]),
        Findings([verdict(0.2), verdict(0.3, "b")], [Failure("c", "1", "broke")], []),
        Findings([verdict(0.9)], [Failure("c", "1", "broke")], [(use, verdict(0.9))]),
    ]
    found = over_frames(frames)
    assert [(each.filter, each.scores["x"]) for each in found.verdicts] == [("a", 0.9), ("b", 0.3)]
    assert [box.right for box in found.verdicts[0].boxes] == [0.6, 0.9]
    assert found.verdicts[0].seconds == 3.0 and found.verdicts[0].reason == "frame 3 of 3"
    assert [(use.use, word.scores["x"]) for use, word in found.flagged_by] == [("a", 0.9)]
    assert found.failures == [Failure("c", "1", "broke")]


@pytest.mark.parametrize(
    "made",
    [np.zeros((1, 8, 8)), np.zeros((1, 8, 8, 4)), np.zeros((1, 2, 3, 8, 8, 3)), np.zeros((1, 0, 8, 8, 3))],
)
def test_what_is_no_picture_is_refused(made: Any) -> None:
    from types import SimpleNamespace

    with pytest.raises(SafetyFailure, match="are not pictures"):
        pixels_of(SimpleNamespace(images=made), 1)


def test_an_output_without_pictures_is_refused() -> None:
    with pytest.raises(SafetyFailure, match="neither images nor frames"):
        pixels_of(object(), 1)


# --- the document -------------------------------------------------------------------------------------------------


def test_the_video_example_of_the_models_document_runs_and_guides() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^### Video\n+```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    pipe, small = CASE.pipe(), {name: CASE.call[name] for name in ("height", "width")}

    def call(*args: Any, **given: Any) -> Any:
        return pipe(*args, num_inference_steps=4, output_type="latent", **small, **given)

    names: dict[str, Any] = {"pipe": call, "guard": lambda given, chosen: guard(pipe, chosen)}
    exec(compile(code, "docs/models.md", "exec"), names)
    assert names["session"].trace.applied.any() and names["session"].trace.heat.shape[0] == 1
