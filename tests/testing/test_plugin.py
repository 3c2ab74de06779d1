"""The pytest plugin, in pytest runs of their own over a folder in which a real plugin is installed."""

from __future__ import annotations

import os
import sys
from textwrap import dedent
from xml.etree import ElementTree

import pytest

from sldcore.testing import plugin

pytest_plugins = ["pytester"]

PLUGIN = """
from sldcore.contributions import WindowKind
from sldcore.hookspecs import hookimpl

SLD_API = 1

@hookimpl
def sld_windows():
    return [WindowKind(name="ramp", create=lambda options: lambda step: step.fraction)]
"""


@pytest.fixture
def installed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder of tests in whose environment the distribution ``sld-ramps`` is installed."""
    site = pytester.mkdir("site")
    (site / "sld_ramps.py").write_text(PLUGIN)
    metadata = site / "sld_ramps-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sld-ramps\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[sldcore]\nramps = sld_ramps\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # those of others have nothing to do with it
    monkeypatch.delenv("SLD_PLUGINS", raising=False)
    return pytester


def run(pytester: pytest.Pytester, tests: str, *arguments: str) -> pytest.RunResult:
    """Run ``tests`` in a process of its own, with the plugin loaded once, whether or not it is installed."""
    pytester.makepyfile(dedent(tests))
    pytester.makeini("[pytest]\naddopts = --strict-markers\nfilterwarnings = error\n")
    plugins = ("-p", "no:sldcore", "-p", "sldcore.testing.plugin", "-p", "no:cacheprovider")
    return pytester.runpytest_subprocess(*plugins, *arguments)


def test_a_test_does_not_see_installed_plugins(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        import pytest
        from sldcore.catalogue import current
        from sldcore.contributions import WindowKind
        from sldcore.errors import PluginError

        def test_the_core_is_there():
            assert [entry.contribution.name for entry in current().entries(WindowKind)] == ["steps", "fraction", "noise"]

        def test_a_plugin_is_not():
            with pytest.raises(PluginError, match="does not look at installed plugins; mark the test with"):
                current().find(WindowKind, "ramp")

        def test_nor_in_a_thread():
            from threading import Thread
            seen = []
            thread = Thread(target=lambda: seen.extend(current().entries(WindowKind)))
            thread.start()
            thread.join()
            assert len(seen) == 3
        """,
    )
    result.assert_outcomes(passed=3)


def test_looking_for_installed_plugins_raises(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        import pytest
        from sldcore.contributions import WindowKind
        from sldcore.errors import PluginError
        from sldcore.plugins import Plugins
        from sldcore.plugins.discovery import discover

        def test_by_name():
            with pytest.raises(PluginError, match="does not look for installed plugins; mark the test with"):
                discover()

        @pytest.mark.parametrize("selection", ["", "ramps", "-other"])
        def test_by_selection(selection):
            with pytest.raises(PluginError, match="does not look for installed plugins; mark the test with"):
                Plugins.from_environment(selection).entries(WindowKind)

        def test_by_the_environment(monkeypatch):
            assert Plugins.from_environment().entries(WindowKind) == []
            monkeypatch.setenv("SLD_PLUGINS", "ramps")
            with pytest.raises(PluginError, match="does not look for installed plugins; mark the test with"):
                Plugins.from_environment().entries(WindowKind)
        """,
    )
    result.assert_outcomes(passed=5)


def test_the_command_line_uses_the_core_alone(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        import pytest
        from typer.testing import CliRunner

        POLICY = "guidance: {method: sld, window: {unit: ramp}}\\nconcepts: [nudity]\\n"

        def validated(path):
            from sldcore.cli import app
            path.write_text(POLICY)
            return CliRunner().invoke(app, ["policy", "validate", str(path)])

        def test_refused(tmp_path):
            result = validated(tmp_path / "policy.yaml")
            assert result.exit_code == 2
            assert "ramp" in result.stderr

        @pytest.mark.sldcore_plugins
        def test_asked(tmp_path):
            assert validated(tmp_path / "policy.yaml").exit_code == 0
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_process_that_a_test_starts_uses_no_plugins(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        import subprocess, sys
        import pytest

        CODE = "from sldcore.catalogue import current; from sldcore.contributions import WindowKind; current().find(WindowKind, 'ramp')"

        def test_refused():
            done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
            assert "ramp" in done.stderr and done.returncode

        @pytest.mark.sldcore_plugins
        def test_asked():
            assert subprocess.run([sys.executable, "-c", CODE]).returncode == 0
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_test_that_asks_sees_them(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        import pytest
        from sldcore.catalogue import current
        from sldcore.contributions import WindowKind
        from sldcore.errors import PluginError

        @pytest.mark.sldcore_plugins
        def test_by_marker():
            assert current().find(WindowKind, "ramp").name == "ramp"

        def test_by_fixture(installed_plugins):
            assert str(installed_plugins.entry(WindowKind, "ramp").provider) == "sld-ramps 1.0"
            assert current().find(WindowKind, "ramp").name == "ramp"

        def test_the_next_does_not():
            with pytest.raises(PluginError):
                current().find(WindowKind, "ramp")

        @pytest.mark.sldcore_plugins
        class TestOfAClass:
            def test_all(self):
                assert current().find(WindowKind, "ramp").name == "ramp"
        """,
    )
    result.assert_outcomes(passed=4)


def test_what_the_user_selects_counts_for_a_test_that_asks(
    installed: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLD_PLUGINS", "-ramps")
    result = run(
        installed,
        """
        import os
        import pytest
        from sldcore.contributions import WindowKind
        from sldcore.errors import PluginError

        def test_disabled(installed_plugins):
            assert os.environ["SLD_PLUGINS"] == "-ramps"
            with pytest.raises(PluginError, match="no window is called"):
                installed_plugins.find(WindowKind, "ramp")
        """,
    )
    result.assert_outcomes(passed=1)


def test_asking_too_late_is_an_error(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        def test_late(request):
            request.getfixturevalue("installed_plugins")
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*name installed_plugins among the test's parameters*"])


def test_contributions_are_in_the_catalogue_until_the_test_ends(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        import pytest
        from sldcore.catalogue import current
        from sldcore.contributions import WindowKind
        from sldcore.errors import PluginError

        def window(name):
            return WindowKind(name=name, create=lambda options: lambda step: 1.0)

        def test_given(plugin_catalogue):
            plugin_catalogue(window("one"))
            assert plugin_catalogue(window("two")) is current()
            assert {"one", "two", "steps"} <= {each.contribution.name for each in current().entries(WindowKind)}

        def test_gone():
            with pytest.raises(PluginError):
                current().find(WindowKind, "one")
        """,
    )
    result.assert_outcomes(passed=2)


def test_an_inherited_contract_runs_and_reports_its_measurement(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        from sldcore.contributions import WindowKind
        from sldcore.testing import GuidanceContract, WindowContract
        from sldcore.testing.contracts import NamedContract

        class TestRamp(WindowContract):
            contribution = WindowKind(name="ramp", create=lambda options: lambda step: step.fraction)

        class TestSteep(WindowContract):
            def contribution(self):
                return WindowKind(name="steep", create=lambda options: lambda step: 2 * step.fraction)
        """,
        "--junitxml=report.xml",
    )
    result.assert_outcomes(passed=19, failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: at step 4 of 7 the strength is 1.14*; it must be in 0..1"])
    report = ElementTree.parse(installed.path / "report.xml")
    measured = [
        each.get("value") for each in report.iter("property") if each.get("name") == "seconds_per_call"
    ]
    assert len(measured) == 2
    assert all(0 < float(value or 0) < 1 for value in measured)


def test_tests_that_need_a_device_are_marked(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        from sldcore import builtin
        from sldcore.testing import GuidanceContract

        (SLD,) = [each.contribution for each in builtin.entries() if each.contribution.name == "sld"]

        class TestSLD(GuidanceContract):
            contribution = SLD
            steps = 3
        """,
        "--collect-only",
        "-q",
        "-m",
        "cuda",
    )
    result.stdout.fnmatch_lines(["*::TestSLD::test_results_on_cuda_stay_there", "*1/* tests collected*"])


def test_the_fake_pipeline_is_a_fixture(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        def test_it(fake_pipeline):
            from sldcore import SafetyEngine
            assert SafetyEngine(fake_pipeline, "max").generate("a cat", num_inference_steps=2).images
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_run_that_has_nothing_to_do_with_sldcore_loads_nothing_of_it(installed: pytest.Pytester) -> None:
    result = run(
        installed,
        """
        import sys

        def test_it():
            loaded = sorted(name for name in sys.modules if name.startswith("sldcore"))
            assert loaded == ["sldcore", "sldcore.testing", "sldcore.testing.plugin"]
            assert not {"torch", "diffusers", "pydantic", "numpy"} & set(sys.modules)
        """,
    )
    result.assert_outcomes(passed=1)


def test_everything_is_put_back_after_the_run(
    installed: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.makepyfile("def test_it(): import sldcore.plugins")
    script = installed.path / "twice.py"
    script.write_text(
        dedent(
            """
            import os, pytest
            import sldcore.plugins
            from sldcore.catalogue import current
            from sldcore.contributions import WindowKind
            plugins = ["-p", "no:sldcore", "-p", "sldcore.testing.plugin", "-p", "no:cacheprovider", "-q"]
            assert pytest.main(plugins) == 0
            assert "SLD_PLUGINS" not in os.environ
            assert current().find(WindowKind, "ramp").name == "ramp"
            """
        )
    )
    done = installed.run(sys.executable, str(script))
    assert done.ret == 0, done.errlines


@pytest.mark.parametrize(("outside", "seen"), [("", None), ("a,b", "a,b")])
def test_workers_know_what_the_variable_was_before_tests_set_it(
    outside: str, seen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(plugin.VARIABLE, "none")
    monkeypatch.setenv(plugin.OUTSIDE, outside)
    refusal = plugin.Refusal()
    try:
        assert os.environ[plugin.VARIABLE] == "none"
        with refusal.test(asked=True):
            assert os.environ.get(plugin.VARIABLE) == seen
        assert os.environ[plugin.OUTSIDE] == outside
    finally:
        refusal.end()
