"""The pytest plugin: no test sees installed plugins unless it asks, and fixtures for those who write some.

A test that depends on what happens to be installed proves nothing elsewhere. So while tests run, the catalogue is the core's
alone, looking for installed plugins raises, and the command line and processes that tests start use none. Who wants them
asks:

    @pytest.mark.sldcore_plugins            the test, class or module sees what is installed
    installed_plugins                       a fixture that does the same, and gives the catalogue
    plugin_catalogue(MY_METHOD, ...)        a fixture: the core's catalogue and these contributions
    fake_pipeline                           a fixture: :class:`sldcore.testing.FakePipeline`

It is loaded wherever sldcore is installed, so it loads nothing itself: what sldcore's modules do is only seen to where a test
run has imported them. ``-p no:sldcore`` switches it off.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest

import sldcore

if TYPE_CHECKING:
    from sldcore.catalogue import Catalogue
    from sldcore.contributions import Contribution
    from sldcore.testing.fakes import FakePipeline

MARKER: Final = "sldcore_plugins"
FIXTURE: Final = "installed_plugins"
VARIABLE: Final = "SLD_PLUGINS"
OUTSIDE: Final = "SLD_PLUGINS_OUTSIDE_TESTS"
"""What the variable was before the first pytest of a family of processes (workers of pytest-xdist, a pytest in a test) set it."""


class Refusal:
    """Discovery refused for as long as a pytest run lasts, but for the tests that ask."""

    def __init__(self) -> None:
        self.asked = False
        self._environment = os.environ.get(VARIABLE)
        if self._environment == "none":  # perhaps set by the pytest that began this one
            self._environment = os.environ.get(OUTSIDE, "none") or None
        self._default = sldcore.default_catalogue
        self._patches = pytest.MonkeyPatch()
        self._patches.setattr(sldcore, "default_catalogue", self._catalogue)
        self._patches.setenv(OUTSIDE, self._environment or "")
        self._patches.setenv(VARIABLE, "none")
        self._reset()

    def end(self) -> None:
        """Put everything back."""
        self._patches.undo()
        self._reset()

    @contextmanager
    def test(self, asked: bool) -> Iterator[None]:
        """What one test runs under."""
        self._guard()
        with self._lifted() if asked else _core_alone():
            yield

    @contextmanager
    def _lifted(self) -> Iterator[None]:
        self.asked = True
        try:
            with pytest.MonkeyPatch.context() as patches:
                if self._environment is None:
                    patches.delenv(VARIABLE, raising=False)
                else:
                    patches.setenv(VARIABLE, self._environment)
                self._reset()
                yield
        finally:
            self.asked = False
            self._reset()

    def _catalogue(self) -> Catalogue:
        """The process's catalogue."""
        if self.asked:
            return self._default()
        from sldcore.testing.sources import catalogue_of

        return catalogue_of()

    def _reset(self) -> None:
        """Let the process's catalogue be made anew when it is asked for, as things are then."""
        if catalogue := sys.modules.get("sldcore.catalogue"):
            catalogue.set_default(lambda: sldcore.default_catalogue())

    def _guard(self) -> None:
        """Stand between the plugins and what is installed, once a test run has imported what looks for them.

        Who goes by the environment, as the command line does, finds nothing; who wants more is refused.
        """
        source: Any = sys.modules.get("sldcore.plugins.source")
        discovery: Any = sys.modules.get("sldcore.plugins.discovery")
        if source is None or discovery is None or hasattr(discovery.distributions, "refuses"):
            return
        distributions, found = discovery.distributions, source.Plugins._found

        def guarded_distributions() -> Any:
            return distributions() if self.asked else _refuse()

        def guarded_found(plugins: Any) -> Any:
            off = plugins._selection.text == "none" and plugins._installed is None
            return [] if off and not self.asked else found(plugins)

        guarded_distributions.refuses = True  # type: ignore[attr-defined]
        self._patches.setattr(discovery, "distributions", guarded_distributions)
        self._patches.setattr(source.Plugins, "_found", guarded_found)


_REFUSAL: Final = pytest.StashKey[Refusal]()


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers and refuse discovery."""
    config.addinivalue_line("markers", f"{MARKER}: the test sees the sldcore plugins that are installed")
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.stash[_REFUSAL] = Refusal()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the process as it was."""
    if _REFUSAL in config.stash:
        config.stash[_REFUSAL].end()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests of contracts that need a CUDA device."""
    if "_on_cuda" in item.name and _is_contract(getattr(item, "cls", None)):
        item.add_marker("cuda")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test with the core alone, or with what is installed if it asks."""
    names = getattr(item, "fixturenames", ())
    asked = item.get_closest_marker(MARKER) is not None or FIXTURE in names
    with item.config.stash[_REFUSAL].test(asked):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write what a contract measured to the report, as properties of the test."""
    if call.when == "call" and _is_contract(getattr(item, "cls", None)):
        item.user_properties.extend(vars(getattr(item, "instance", None)).get("measured", {}).items())
    return (yield)


@pytest.fixture
def installed_plugins(pytestconfig: pytest.Config) -> Catalogue:
    """The process's catalogue, with the plugins that are installed; a test that uses this sees them everywhere."""
    from sldcore.catalogue import current

    if not pytestconfig.stash[_REFUSAL].asked:
        raise pytest.UsageError(f"name {FIXTURE} among the test's parameters, or mark the test with {MARKER}")
    return current()


@pytest.fixture
def plugin_catalogue() -> Iterator[Callable[..., Catalogue]]:
    """Call it with contributions: until the test ends, the catalogue holds the core's and all those given so far."""
    from sldcore.catalogue import using
    from sldcore.testing.sources import catalogue_of

    given: list[Contribution] = []
    with ExitStack() as stack:

        def add(*contributions: Contribution) -> Catalogue:
            given.extend(contributions)
            return stack.enter_context(using(catalogue_of(*given)))

        yield add


@pytest.fixture
def fake_pipeline() -> FakePipeline:
    """A pipeline without weights, new for each test."""
    from sldcore.testing.fakes import FakePipeline

    return FakePipeline()


@contextmanager
def _core_alone() -> Iterator[None]:
    """The core's catalogue, if anything of sldcore's catalogue has been imported; else the process's own will be it."""
    if "sldcore.catalogue" not in sys.modules:
        yield
        return
    from sldcore.catalogue import using
    from sldcore.testing.sources import catalogue_of

    with using(catalogue_of()):
        yield


def _refuse() -> NoReturn:
    from sldcore.errors import PluginError
    from sldcore.testing.sources import HOW_TO_ASK

    raise PluginError(f"a test does not look for installed plugins; {HOW_TO_ASK}")


def _is_contract(test: object) -> bool:
    base = sys.modules.get("sldcore.testing.contracts.base")
    return base is not None and isinstance(test, type) and issubclass(test, base.Contract)
