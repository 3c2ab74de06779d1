"""What the contracts of all kinds share: the contribution under test, its options, and how a test fails."""

# ruff: noqa: D102  (the name of a test is its documentation)

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import cache
from threading import Thread
from time import perf_counter
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeVar
from unittest import SkipTest
from unittest.mock import patch

from pydantic_core import PydanticUndefined

from sldcore.catalogue import checked_options
from sldcore.contributions import Contribution
from sldcore.errors import PluginError

T = TypeVar("T")

UNKNOWN_OPTION: Final = "an-option-that-nobody-has"


def require(condition: object, message: str) -> None:
    """Fail the test with ``message`` unless ``condition`` holds; ``assert`` would be gone under ``python -O``."""
    if not condition:
        raise AssertionError(message)


class Contract:
    """Tests that every contribution of one kind must pass.

    Subclass the contract of your kind as ``Test...`` and say what is under test:

    Attributes:
        contribution: the contribution, or a method that returns it.
        options: options to test it with, or a method that returns them. Left out, the defaults; an option without a
            default takes the first of its ``examples``.
        limit: seconds after which a call counts as hanging.
    """

    kind: ClassVar[type[Contribution]] = Contribution

    contribution: Any
    options: Any = MappingProxyType({})
    limit: float = 60.0

    def make(self) -> Any:
        """A new object of the contribution's factory."""
        raise NotImplementedError

    def use(self, made: Any) -> int:
        """Use the object once as the host would; returns how many of its calls that took."""
        raise NotImplementedError

    @property
    def subject(self) -> Any:
        """The contribution under test."""
        return _value(self.contribution)

    @property
    def checked_options(self) -> Any:
        """The options to test with, checked and completed by the contribution's own model."""
        return checked_options(self.subject, {**example_options(self.subject), **_value(self.options)})

    def report(self, name: str, value: float) -> None:
        """Note a measurement; the pytest plugin writes it to the report as a property of the test."""
        vars(self).setdefault("measured", {})[name] = value

    def test_it_can_be_made(self) -> None:
        require(isinstance(self.subject, self.kind), f"{self.subject!r} is not a {self.kind.__name__}")
        self.make()

    def test_its_description_is_one_line(self) -> None:
        description = self.subject.description
        require(isinstance(description, str), f"the description is {description!r}, not a text")
        require("\n" not in description, "the description has several lines; listings show one")

    def test_its_options_are_complete_after_one_check(self) -> None:
        checked = self.checked_options
        again = checked_options(self.subject, checked.model_dump())
        require(again == checked, f"options change when they are checked again: {checked!r} became {again!r}")

    def test_an_unknown_option_is_not_dropped_in_silence(self) -> None:
        given = {**self.checked_options.model_dump(), UNKNOWN_OPTION: 1}
        try:
            checked = checked_options(self.subject, given)
        except PluginError:
            return
        require(
            UNKNOWN_OPTION in checked.model_dump(),
            f"{self.subject.options.__name__} drops an option that it does not know, so a slip of the pen goes unnoticed; "
            f"derive it from sldcore.documents.Strict, or set extra='forbid'",
        )

    def test_no_pickle_is_read(self) -> None:
        with pickles_read() as found:
            self.use(self.make())
        require(
            not found,
            f"a pickle was read ({', '.join(sorted(set(found)))}); keep data as safetensors, JSON or YAML",
        )

    def test_a_call_comes_back(self) -> None:
        made = self.make()

        def timed() -> tuple[int, float]:
            begin = perf_counter()
            return self.use(made), perf_counter() - begin

        calls, seconds = within(self.limit, timed)
        self.report("seconds_per_call", seconds / max(calls, 1))


class NamedContract(Contract):
    """A contribution whose objects say their name and version, which reports and failures carry."""

    protocol: ClassVar[Any]

    def test_it_has_the_methods_of_its_protocol(self) -> None:
        made = self.make()
        require(
            isinstance(made, self.protocol),
            f"{type(made).__name__} is not a {self.protocol.__name__} (see {self.protocol.__module__})",
        )

    def test_it_says_its_name_and_version(self) -> None:
        made = self.make()
        name, version = getattr(made, "name", None), getattr(made, "version", None)
        require(
            name == self.subject.name, f"it calls itself {name!r}, and policies name it '{self.subject.name}'"
        )
        require(isinstance(version, str) and version, f"its version is {version!r}; reports need a text")


def does_not_apply(reason: str) -> SkipTest:
    """What a test raises that has nothing to test here; pytest reports it as skipped."""
    return SkipTest(reason)


def example_options(contribution: Contribution) -> dict[str, Any]:
    """Values for the options without a default: the first of the ``examples`` of each field that has some."""
    return {
        name: field.examples[0]
        for name, field in contribution.options.model_fields.items()
        if field.default is PydanticUndefined and field.default_factory is None and field.examples
    }


def options_without_example(contribution: Contribution) -> list[str]:
    """Required options for which there is no example, so that nothing can be made without knowing more."""
    return [
        name
        for name, field in contribution.options.model_fields.items()
        if field.is_required() and not field.examples
    ]


def within(limit: float, function: Callable[[], T]) -> T:
    """What ``function`` returns or raises, if it does so in ``limit`` seconds.

    Raises:
        AssertionError: it does not; it goes on in a thread that does not keep the process alive.
    """
    outcome: list[Callable[[], T]] = []

    def run() -> None:
        try:
            value = function()
            outcome.append(lambda: value)
        except BaseException as error:
            outcome.append(_raiser(error))

    thread = Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    thread.join(limit)
    if not outcome:
        raise AssertionError(f"it has not come back after {limit:g} seconds")
    return outcome[0]()


@contextmanager
def pickles_read() -> Iterator[list[str]]:
    """Collects what is unpickled inside the ``with`` block: names of classes, or ``torch.load``."""
    _audit_pickles()
    found: list[str] = []
    _listeners.append(found)
    try:
        with ExitStack() as patches:
            if torch := sys.modules.get("torch"):
                load = torch.load

                def noted(*arguments: Any, **options: Any) -> Any:
                    found.append("torch.load")
                    return load(*arguments, **options)

                patches.enter_context(patch.object(torch, "load", noted))
            for name in ("load", "loads"):
                patches.enter_context(patch.object(pickle, name, _noting(getattr(pickle, name), name, found)))
            yield found
    finally:
        _listeners.remove(found)


def _noting(function: Callable[..., Any], name: str, found: list[str]) -> Callable[..., Any]:
    def noted(*arguments: Any, **options: Any) -> Any:
        found.append(f"pickle.{name}")
        return function(*arguments, **options)

    return noted


_listeners: Final[list[list[str]]] = []


@cache
def _audit_pickles() -> None:
    """Listen to the interpreter, which tells of every class that a pickle names, whoever reads it."""

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            for found in _listeners:
                found.append(".".join(map(str, arguments)))

    sys.addaudithook(listen)


def _value(given: Any) -> Any:
    return given() if callable(given) and not isinstance(given, Contribution | Mapping) else given


def _raiser(error: BaseException) -> Callable[[], Any]:
    def reraise() -> Any:
        raise error

    return reraise
