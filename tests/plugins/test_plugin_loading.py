"""Loading ends, whatever a plugin does while it is imported, and what it prints stays out of stdout."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest
from made_plugins import CORE, HEAD, Site, installed, names, window

from sldcore.catalogue import Catalogue, set_default
from sldcore.contributions import WindowKind
from sldcore.errors import PluginError
from sldcore.plugins.records import Status

pytestmark = pytest.mark.sldcore_plugins

ASK = "from sldcore.catalogue import current\nfrom sldcore.contributions import *\n"
JOIN = (
    ASK + "import threading\nthread = threading.Thread(target=lambda: current().entries(WindowKind))\n"
    "thread.start()\nthread.join()\n"
)
# Each of these plugins has a name of its own: a module that is being imported cannot be imported again.
HANG = "import threading\nthreading.Event().wait(5)\n"
HALF = {"sld-plugin.yaml": "api: 1\ncontributes: {window: [half]}\n"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    import sldcore

    yield from installed(tmp_path, monkeypatch)
    set_default(sldcore.default_catalogue)


def limit(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr("sldcore.plugins.loading.LIMIT_SECONDS", seconds)


def test_an_import_that_does_not_end_makes_the_plugin_broken_and_the_host_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 0.3)
    site.add("good", window("quarter"))
    site.add("hangs", HANG + window("half"))
    plugins = site.plugins()
    assert names(plugins, WindowKind) == ["quarter"]
    record = site.records(plugins)["hangs"]
    assert record.status is Status.BROKEN
    assert record.error.startswith(
        "import did not end within 0.3 s; `pip install -U sld-hangs`, or disable it"
    )


def test_a_hook_that_does_not_end_makes_the_plugin_broken(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 0.3)
    site.add(
        "stuck", HEAD + HANG.replace("threading.Event", "@hookimpl\ndef sld_windows():\n    threading.Event")
    )
    assert "hook 'sld_windows' did not end within 0.3 s" in site.records()["stuck"].error


def test_a_plugin_that_is_late_keeps_the_names_of_its_manifest(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 0.3)
    site.add("tardy", HANG + window("half"), files=HALF)
    site.add("other", window("half"))
    with pytest.raises(PluginError, match="by the broken plugin 'tardy'"):
        site.catalogue().find(WindowKind, "half")


def test_a_plugin_that_was_given_up_stays_broken_when_its_import_ends_after_all(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 0.2)
    module = site.add("late", "import time\ntime.sleep(0.5)\n" + window("half"))
    plugins = site.plugins()
    plugins.entries(WindowKind)
    deadline = monotonic() + 5
    while not hasattr(sys.modules.get(module), "sld_windows") and monotonic() < deadline:
        sleep(0.02)
    sleep(0.1)
    assert names(plugins, WindowKind) == []
    assert site.records(plugins)["late"].status is Status.BROKEN


def test_a_plugin_may_join_a_thread_that_looks_into_the_catalogue_at_import(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 1.0)
    site.add("joins", JOIN + window("half"))
    plugins = site.plugins()
    set_default(lambda: Catalogue(CORE, plugins))
    assert names(plugins, WindowKind) == ["half"]


def test_two_plugins_that_ask_while_two_threads_load_them_do_not_wait_for_each_other(
    site: Site,
) -> None:
    site.add(
        "one", "import time\ntime.sleep(0.2)\n" + ASK + "current().entries(WindowKind)\n" + window("one")
    )
    site.add(
        "two", "import time\ntime.sleep(0.2)\n" + ASK + "current().entries(WindowKind)\n" + window("two")
    )
    plugins = site.plugins()
    set_default(lambda: Catalogue(CORE, plugins))
    began = monotonic()
    threads = [
        threading.Thread(target=each.load) for each in plugins._found() if each.announced.plugin in site.names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(plugins, WindowKind) == ["one", "two"]
    assert monotonic() - began < 5


def test_a_plugin_that_its_user_imports_first_may_look_into_the_catalogue(site: Site) -> None:
    module = site.add("curious", ASK + "current().entries(WindowKind)\n" + window("half"))
    plugins = site.plugins()
    set_default(lambda: Catalogue(CORE, plugins))
    began = monotonic()
    __import__(module)
    assert monotonic() - began < 5
    assert names(plugins, WindowKind) == ["half"]


def test_who_waits_for_another_thread_s_import_learns_that_it_is_not_done(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 1.0)
    site.add("slow", "import time\ntime.sleep(0.8)\n" + window("half"), files=HALF)
    plugins = site.plugins()
    starter = threading.Thread(target=plugins.entries, args=(WindowKind,))
    starter.start()
    sleep(0.1)
    reason = plugins.why_not(WindowKind, "half")
    starter.join()
    assert reason == "plugin 'slow' (sld-slow 1.0) is still being loaded; try again when it is"
    assert names(plugins, WindowKind) == ["half"]


def test_what_a_plugin_prints_while_it_is_loaded_goes_to_stderr(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.add("loud", "print('imported')\n" + window("half").replace("return [", "print('asked'); return ["))
    site.plugins().entries(WindowKind)
    print("the host's")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("the host's\n", "imported\nasked\n")


def test_the_host_prints_as_ever_while_a_plugin_never_ends(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit(monkeypatch, 0.2)
    site.add("loud-and-stuck", "print('loud')\n" + HANG + window("half"))
    site.plugins().entries(WindowKind)
    print("the host's")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("the host's\n", "loud\n")


def test_stdout_is_itself_again_after_loading(site: Site) -> None:
    stdout = sys.stdout
    site.add("good", window("half"))
    site.plugins().entries(WindowKind)
    assert sys.stdout is stdout


def test_a_plugin_that_one_thread_imports_itself_while_another_looks_for_plugins_stops_neither(
    site: Site,
) -> None:
    code = "import time\ntime.sleep(0.4)\n" + ASK + "current().entries(WindowKind)\n" + window("half")
    module = site.add("curious", code)
    plugins = site.plugins()
    set_default(lambda: Catalogue(CORE, plugins))
    began = monotonic()
    user = threading.Thread(target=__import__, args=(module,))
    user.start()
    sleep(0.1)
    assert names(plugins, WindowKind) == ["half"]
    user.join()
    assert monotonic() - began < 5
