from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sldcore.catalogue import Entry, Provider
from sldcore.contributions import StepHookKind, WindowKind
from sldcore.documents import Strict
from sldcore.testing.check import FIRST, case_of, check_contribution, names_of_tests, not_tried, outcomes
from sldcore.testing.contracts import CONTRACTS
from sldcore.testing.contracts.base import within
from sldcore.types import Step

MINE = Provider("mine", "sld-mine", "1.0")


def window(create: Callable[[Any], Callable[[Step], float]], **fields: Any) -> WindowKind:
    return WindowKind(name="ramp", create=create, **fields)


def checked(contribution: Any) -> list[str]:
    return check_contribution(Entry(contribution, MINE))


def test_a_contribution_without_fault_has_no_complaints() -> None:
    assert checked(window(lambda options: lambda step: step.fraction)) == []


def test_a_complaint_names_the_rule_and_what_was_found() -> None:
    (complaint,) = checked(window(lambda options: lambda step: 1.5 if step.total == 7 else 1.0))
    assert complaint == (
        "strengths are numbers from 0 to 1 at every step: at step 0 of 7 the strength is 1.5; it must be in 0..1"
    )


def test_an_exception_is_a_complaint_with_its_type() -> None:
    def create(options: Any) -> Any:
        return lambda step: 1 / (step.total - 7)

    assert "a strength depends on the step alone: ZeroDivisionError: division by zero" in checked(
        window(create)
    )


def test_exiting_is_a_complaint_and_does_not_end_the_process() -> None:
    def create(options: Any) -> Any:
        raise SystemExit(3)

    assert checked(window(create)) == ["it can be made: SystemExit: 3"]


def test_an_option_without_default_takes_its_first_example() -> None:
    from pydantic import Field

    class Start(Strict):
        start: float = Field(examples=[0.5])

    def create(options: Start) -> Callable[[Step], float]:
        return lambda step: float(step.fraction >= options.start)

    assert checked(window(create, options=Start)) == []


def test_what_has_a_required_option_without_example_is_not_tried_and_says_so() -> None:
    class Start(Strict):
        start: float

    contribution = window(lambda options: lambda step: 1.0, options=Start)
    assert checked(contribution) == []
    why = not_tried(Entry(contribution, Provider("test", "", "1")))
    assert why == "not tried: start must be given, and has no example"


def test_relative_files_do_not_land_in_the_working_folder(tmp_path: Path, monkeypatch: Any) -> None:
    class Writes:
        name, version = "writes", "1.0"

        def before_guidance(self, step: Any, predictions: Any) -> None:
            Path("trace.txt").write_text("here")

        def after_guidance(self, step: Any, predictions: Any, guided: Any) -> None:
            return None

    monkeypatch.chdir(tmp_path)
    assert checked(StepHookKind(name="writes", create=lambda options: Writes())) == []
    assert list(tmp_path.iterdir()) == []


def test_a_test_that_hangs_is_a_complaint() -> None:
    def create(options: Any) -> Callable[[Step], float]:
        def strength(step: Step) -> float:
            time.sleep(0.3)
            return 1.0

        return strength

    case = case_of(window(create), limit=0.05)
    said = {outcome.test: outcome.failure for outcome in outcomes(case)}
    assert said["test_a_call_comes_back"] == "it has not come back after 0.05 seconds"


def test_the_time_of_a_call_is_noted() -> None:
    contract = case_of(window(lambda options: lambda step: time.sleep(0.001) or 1.0))()
    contract.test_a_call_comes_back()
    assert 0.001 <= vars(contract)["measured"]["seconds_per_call"] < 1


def test_what_a_function_returns_or_raises_comes_through() -> None:
    assert within(10, lambda: 7) == 7


def test_each_contract_begins_with_what_the_others_need() -> None:
    assert {names_of_tests(contract)[0] for contract in CONTRACTS.values()} == {FIRST}
