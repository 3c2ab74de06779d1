"""Pictures of the way there: reviewed like finished ones, and shown only if nothing could withhold them."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from service_hosts import STEPS, hosting, job, pictures, pixels, policy, run

from sldcore import SafetyPolicy
from sldcore.playground import load_classifier
from sldcore.policy import Gate
from sldcore.service.hosting.engine_host import EngineHost
from sldcore.service.hosting.previews import due_steps
from sldcore.service.jobs import Event, Partial, PictureAnswer, PictureJob, Progress

CLOWN = "a red clown on a meadow"
GLYPHS = {"use": "playground-glyphs"}
SEEDS = (0, 1, 2, 3, 4)


@pytest.fixture(scope="module")
def host() -> Iterator[EngineHost]:
    with hosting() as made:
        yield made


def watched(host: EngineHost, *jobs: PictureJob) -> tuple[list[Partial], list[PictureAnswer], list[Event]]:
    events: list[Event] = []
    answers = pictures(run(host, *jobs, emit=events.append))
    return [event for event in events if isinstance(event, Partial)], answers, events


def shows_glyph(content: bytes) -> bool:
    (reading,) = load_classifier().read([Image.open(BytesIO(content))])
    return max(reading.glyphs.values()) >= 0.5


def clowns(own: SafetyPolicy) -> list[PictureJob]:
    return [job(CLOWN, seed, own, id=str(seed), partials=2) for seed in SEEDS]


def test_a_flagged_picture_of_the_way_is_never_shown_and_would_be_without_the_filter(
    host: EngineHost,
) -> None:
    unfiltered, _, _ = watched(host, *clowns(policy()))
    assert len(unfiltered) == 2 * len(SEEDS)
    flagged = {(each.job, index) for each in unfiltered if shows_glyph(each.png) for index in [each.index]}
    assert flagged
    filtered, answers, _ = watched(host, *clowns(policy(filters=(GLYPHS,))))
    assert not any(shows_glyph(each.png) for each in filtered)
    withheld = {answer.job for answer in answers if answer.account["action"] == "black"}
    assert withheld and not withheld & {each.job for each in filtered}
    assert len(filtered) == len(unfiltered) - len(flagged)


def test_a_picture_of_the_way_is_what_becomes_the_picture(host: EngineHost) -> None:
    negative = SafetyPolicy.preset("max").replace(guidance={"method": "negative"})
    jobs = [
        job(CLOWN, 4, policy(), id="off", partials=6),
        job(CLOWN, 4, policy("max"), id="max", partials=6),
        job(CLOWN, 4, negative, id="negative", partials=6),
    ]
    partials, answers, _ = watched(host, *jobs)
    for answer in answers:
        last = max((each for each in partials if each.job == answer.job), key=lambda each: each.index)
        distances = {other.job: np.abs(pixels(last.png) - pixels(other.png)).mean() for other in answers}
        assert distances[answer.job] < 6
        assert min(distances, key=lambda name: distances[name]) == answer.job


def test_they_are_counted_from_0_and_come_before_the_last_step(host: EngineHost) -> None:
    partials, _, events = watched(host, job(partials=3))
    assert [each.index for each in partials] == [0, 1, 2]
    assert not isinstance(events[-1], Partial)
    assert not watched(host, job())[0]


HELD_BACK: dict[str, dict[str, Any]] = {
    "flagged": {"filters": ("flags",)},
    "flagged and shown": {"filters": ({"use": "flags", "on_flag": "flag"},)},
    "second filter fails": {"filters": ("clean", "raises")},
    "filter fails and is allowed to": {"filters": ({"use": "raises", "on_error": "allow"},)},
    "prompt flagged and shown": {"prompt_filters": ({"use": "flags", "on_flag": "flag"},)},
    "prompt filter fails and is allowed to": {"prompt_filters": ({"use": "raises", "on_error": "allow"},)},
    "prompt flagged": {"prompt_filters": ("flags",)},
    "unsigned": {"marks": ("cannot-sign",)},
    "unmarked": {
        "marks": ({"use": "visible-label", "options": {"text": "far too long for a little picture"}},)
    },
}


def test_nothing_is_shown_on_the_way_if_something_speaks_against_it(host: EngineHost) -> None:
    held = [job(own=policy(**fields), id=name, partials=2) for name, fields in HELD_BACK.items()]
    shown, _, _ = watched(host, *held, job(id="nothing", partials=1))
    assert [each.job for each in shown] == ["nothing"]


def test_shadowed_filters_do_not_hold_it_back(host: EngineHost) -> None:
    shown, _, _ = watched(host, job(own=policy(filters=({"use": "flags", "shadow": True},)), partials=1))
    assert len(shown) == 1


def test_a_picture_that_failed_on_the_way_is_not_shown(host: EngineHost) -> None:
    own = policy(step_hooks=("spoils",))
    shown, (answer,), _ = watched(host, job(own=own, partials=3))
    assert not shown and answer.account["action"] == "block"


def test_a_guiding_policy_shows_nothing_before_guidance_has_acted(host: EngineHost) -> None:
    spec = SafetyPolicy.preset("max").guidance
    assert spec is not None

    def from_step(start: int) -> SafetyPolicy:
        window = {"unit": "steps", "start": start}
        return policy("max", guidance={**spec.model_dump(), "window": window})

    shown, answers, events = watched(
        host, job(own=from_step(6), id="late", partials=5), job(own=from_step(7), id="last", partials=5)
    )
    assert [answer.account["trace"][0]["first_step_acted"] for answer in answers] == [6, 7]
    assert [each.job for each in shown] == ["late"]
    before = events[: events.index(shown[0])]
    assert max(each.step for each in before if isinstance(each, Progress)) == 7


def test_a_gated_picture_is_shown_in_the_pass_that_is_kept(host: EngineHost) -> None:
    def gated(threshold: float) -> SafetyPolicy:
        gate = Gate(probes=(4,), unit="steps", concepts=({"use": ("inappropriate/*",)},), threshold=threshold)  # type: ignore[arg-type]
        spec = SafetyPolicy.preset("max").guidance
        assert spec is not None
        return policy("max", guidance=spec.model_copy(update={"gate": gate}))

    always, never = gated(-1), gated(1)
    shown, answers, events = watched(
        host, job(own=always, id="again", partials=2), job("a tree", own=never, id="once", partials=2)
    )
    assert [answer.account["probes"][0]["restarts"] for answer in answers] == [True, False]
    second = next(n for n, each in enumerate(events) if getattr(each, "attempt", 0) == 2)
    at = {
        name: [n for n, each in enumerate(events) if isinstance(each, Partial) and each.job == name]
        for name in ("again", "once")
    }
    assert len(at["again"]) == 2 and min(at["again"]) > second
    assert at["once"] and max(at["once"]) < second
    assert np.abs(pixels(shown[-1].png) - pixels(answers[0].png)).mean() < 8


def test_marks_are_put_on_it(host: EngineHost) -> None:
    label = policy(marks=({"use": "visible-label", "options": {"text": "AI"}},))
    (plain, marked), _, _ = watched(host, job(id="a", partials=1), job(own=label, id="b", partials=1))
    changed = np.abs(pixels(plain.png) - pixels(marked.png)).max(2) > 8
    assert changed[-10:].any() and not changed[:STEPS].any()


def test_due_steps_leave_out_the_last() -> None:
    assert due_steps(3, 0, 50) == [12, 24, 37]
    assert due_steps(2, 40, 50) == [43, 46]
    assert due_steps(9, 6, 8) == [6]
    assert due_steps(3, 8, 8) == []
