"""Random chains of sound and faulty filters: never is something shown that was not reviewed, or that the policy forbids."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sldcore import Result, SafetyEngine, SafetyPolicy
from sldcore.catalogue import using
from sldcore.contributions import PostFilterKind
from sldcore.errors import SafetyFailure
from sldcore.testing import FakePipeline, catalogue_of
from sldcore.types import Verdict

PROMPTS: Final = ["a red knight", "a blue house"]
CALL: Final[dict[str, Any]] = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np"}
NEVER: Final = threading.Event()
about: dict[int, str] = {}  # the prompt of each picture under review


def verdict(flagged: Any = False, score: float = 0.2) -> Verdict:
    return Verdict("f", "1", flagged, {"x": score}, {"x": 0.5})


def raising(pictures: Sequence[Any]) -> Any:
    raise OSError("the disk is gone")


def hanging(pictures: Sequence[Any]) -> Any:
    NEVER.wait(30)
    return [verdict() for _ in pictures]


def painting(pictures: Sequence[Any]) -> Any:
    for picture in pictures:
        picture.paste((1, 2, 3), (0, 0, *picture.size))
    return [verdict() for _ in pictures]


SOUND: Final[dict[str, Callable[[Sequence[Any]], Any]]] = {
    "clean": lambda pictures: [verdict() for _ in pictures],
    "flags-all": lambda pictures: [verdict(True, 0.9) for _ in pictures],
    "flags-house": lambda pictures: [verdict("house" in about[id(each)], 0.9) for each in pictures],
    "paints": painting,
}
FAULTY: Final[dict[str, Callable[[Sequence[Any]], Any]]] = {
    "raises": raising,
    "hangs": hanging,
    "says-nothing": lambda pictures: None,
    "too-few": lambda pictures: [verdict() for _ in pictures][:-1],
    "too-many": lambda pictures: [verdict() for _ in [*pictures, 1]],
    "nan": lambda pictures: [verdict(score=float("nan")) for _ in pictures],
    "out-of-range": lambda pictures: [verdict(score=1.5) for _ in pictures],
    "no-verdict": lambda pictures: ["clean" for _ in pictures],
    "no-flag": lambda pictures: [verdict(flagged=None) for _ in pictures],
}


class Filter:
    version = "1"

    def __init__(self, name: str, review: Callable[[Sequence[Any]], Any]) -> None:
        self.name, self._review = name, review

    def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> Any:
        about.update({id(one): other.prompt for one, other in zip(pictures, contexts, strict=True)})
        return self._review(pictures)


KINDS: Final = [
    PostFilterKind(name=name, create=lambda options, name=name, review=review: Filter(name, review))
    for name, review in {**SOUND, **FAULTY}.items()
]
ACTIONS: Final = ["flag", "black", "blur", "pixelate", "replace", "drop"]
# Every attempt is flagged like the first, so that the final action is taken in the end.
AGAIN: Final = {"do": "regenerate", "attempts": 1, "stronger": False, "add_concept": False, "then": "blur"}
uses = st.fixed_dictionaries(
    {
        "use": st.sampled_from([*SOUND, *FAULTY]),
        "on_flag": st.sampled_from([*ACTIONS, AGAIN]),
        "shadow": st.booleans(),
        "on_error": st.sampled_from([None, "block", "allow", "raise"]),
        "timeout": st.just(0.02),
    }
)
policies = st.fixed_dictionaries(
    {
        "filters": st.lists(uses, max_size=4),
        "filter_mode": st.sampled_from(["all", "first_flag"]),
        "on_error": st.sampled_from(["block", "raise"]),
    }
).map(SafetyPolicy.model_validate)


@pytest.fixture(scope="module")
def fake() -> FakePipeline:
    """One pipeline for all engines, which leave it as it was."""
    return FakePipeline()


@pytest.fixture(scope="module")
def plain(fake: FakePipeline) -> Result:
    return SafetyEngine(fake, "off").generate(PROMPTS, **CALL)


def reached(policy: SafetyPolicy, last: bool) -> list[Any]:
    """The uses that look at a picture; with ``first_flag`` up to the first that flags it or fails."""
    seen = []
    for use in policy.filters:
        seen.append(use)
        allowed = (use.on_error or policy.on_error) == "allow"
        acts = (use.use in FAULTY and not allowed) or (flags(use.use, last) and not use.shadow)
        if policy.filter_mode == "first_flag" and acts:
            break
    return seen


def flags(name: str, last: bool) -> bool:
    return name == "flags-all" or (name == "flags-house" and last)


@given(policy=policies)
@settings(
    max_examples=2000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_nothing_that_is_forbidden_or_unreviewed_is_shown(
    policy: SafetyPolicy, fake: FakePipeline, plain: Result
) -> None:
    faults = [
        use.on_error or policy.on_error
        for last in (False, True)
        for use in reached(policy, last)
        if use.use in FAULTY
    ]
    with using(catalogue_of(*KINDS)):
        engine = SafetyEngine(fake, policy)
        if "raise" in faults:
            with pytest.raises(SafetyFailure):
                engine.generate(PROMPTS, **CALL)
            return
        result = engine.generate(PROMPTS, **CALL)
    for index, report in enumerate(result.reports):
        seen = reached(policy, index == 1)
        failing = [use for use in seen if use.use in FAULTY]
        assert [failure.source for failure in report.errors] == [use.use for use in failing]
        assert len(report.verdicts) == len(seen) - len(failing)
        acting = {use.on_flag.final.do for use in seen if flags(use.use, index == 1) and not use.shadow}
        image, as_made = result.images[index], plain.images[index]
        if any((use.on_error or policy.on_error) == "block" for use in failing):
            assert report.action == "block" and not np.asarray(image).any()
        elif acting - {"flag"}:
            assert report.action == max(acting, key=ACTIONS_BY_SEVERITY.index)
            assert image is None if report.action == "drop" else not np.array_equal(image, as_made)
        else:
            assert report.attempts == 1
            assert report.action == ("flag" if acting else "none")
            assert report.unreviewed == bool(failing)
            assert np.array_equal(image, as_made)


ACTIONS_BY_SEVERITY: Final = ["flag", "blur", "pixelate", "replace", "black", "drop"]
