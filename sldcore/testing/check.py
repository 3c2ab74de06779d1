"""Contracts without pytest: what an installed contribution does wrong, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, Final, cast
from unittest import SkipTest

from sldcore.catalogue import Entry
from sldcore.contributions import Contribution
from sldcore.testing.contracts import CONTRACTS
from sldcore.testing.contracts.base import Contract, options_without_example, within

FIRST: Final = "test_it_can_be_made"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one test of a contract: ``failure`` and ``skipped`` are empty if it passed."""

    test: str
    failure: str = ""
    skipped: str = ""

    def __str__(self) -> str:
        return f"{words(self.test)}: {self.failure or self.skipped or 'passed'}"


def check_contribution(entry: Entry) -> list[str]:
    """Run the contract on a contribution; what it does wrong, one line each, none if all is well.

    What has required options without an example (:func:`not_tried`) cannot be made here, and is not tried. Files that the contribution writes to relative paths go to a temporary folder.
    """
    if not_tried(entry):
        return []
    with _elsewhere():
        return [str(outcome) for outcome in outcomes(case_of(entry.contribution)) if outcome.failure]


def not_tried(entry: Entry) -> str:
    """Why a contribution cannot be tried without knowing more; empty if it can."""
    missing = options_without_example(entry.contribution)
    return f"not tried: {', '.join(missing)} must be given, and has no example" if missing else ""


def case_of(contribution: Contribution, **attributes: Any) -> type[Contract]:
    """The contract of the contribution's kind, with it as its subject, and other attributes of the contract."""
    members = {"contribution": contribution, **attributes}
    return cast("type[Contract]", type("Check", (CONTRACTS[type(contribution)],), members))


def names_of_tests(contract: type[Contract]) -> list[str]:
    """Names of the contract's tests, the one without which the others make no sense first."""
    names = [name for base in reversed(contract.__mro__) for name in vars(base) if name.startswith("test_")]
    return list(dict.fromkeys([FIRST, *names]))


def outcomes(case: type[Contract]) -> Iterator[Outcome]:
    """Run the tests of a case one after the other, each on a case of its own; stops if nothing can be made."""
    for name in names_of_tests(case):
        outcome = _run(case, name)
        yield outcome
        if outcome.failure and name == FIRST:
            return


def words(test: str) -> str:
    """The name of a test as a sentence."""
    return test.removeprefix("test_").replace("_", " ")


def _run(case: type[Contract], name: str) -> Outcome:
    test: Callable[[], Any] = getattr(case(), name)
    try:
        within(case.limit, test)
    except SkipTest as skipped:
        return Outcome(name, skipped=str(skipped))
    except AssertionError as failure:
        return Outcome(name, failure=_one_line(str(failure)) or "an assertion failed")
    except (Exception, SystemExit) as error:
        return Outcome(name, failure=_one_line(f"{type(error).__name__}: {error}"))
    return Outcome(name)


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Work in a temporary folder for a while."""
    with TemporaryDirectory(prefix="sld-check-", ignore_cleanup_errors=True) as folder, chdir(folder):
        yield
