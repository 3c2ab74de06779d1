from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_plugins import BROKEN, HEAD, PACK, Site, installed, window
from typer.testing import CliRunner

import sldcore
from sldcore.catalogue import set_default
from sldcore.cli import app

pytestmark = pytest.mark.sldcore_plugins

runner = CliRunner()
NINE = ("raises", "exits", "misspelt", "wrong-type", "other-api", "no-api", "hook-raises", "async", "missing")
COMMAND = """
def greet():
    import typer
    app = typer.Typer()
    @app.command()
    def hello(name: str):
        typer.echo(f"hello {name}")
    return app

@hookimpl
def sld_commands():
    return [Command(name="greet", create=greet)]
"""
CLICK = """
import click

@click.command()
@click.option("--loud", is_flag=True)
@click.argument("name")
def wave(loud, name):
    click.echo(f"waves at {name}{'!' if loud else ''}")

@hookimpl
def sld_commands():
    return [Command(name="wave", create=lambda: wave)]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from installed(tmp_path, monkeypatch)
    set_default(sldcore.default_catalogue)


def sld(site: Site, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``sld`` in a process of its own, with the site's plugins and no others."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(site.folder),
        "SLD_PLUGINS": ",".join(site.names),
        **variables,
    }
    code = "from sldcore.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def invoke(site: Site, *arguments: str) -> Any:
    return runner.invoke(app, arguments, env={"SLD_PLUGINS": ",".join(site.names)})


def listed(site: Site, text: str) -> dict[str, Any]:
    return {record["plugin"]: record for record in json.loads(text) if record["plugin"] in site.names}


def policy_with(tmp_path: Path, text: str) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(f"name: mine\nguidance: {{method: sld}}\nconcepts: [inappropriate]\n{text}")
    return str(path)


def test_list_says_what_each_plugin_contributes_and_why_one_is_broken(site: Site) -> None:
    site.add("good", window("half"), version="2.1")
    site.add_broken("raises")
    result = invoke(site, "plugins", "list")
    assert result.exit_code == 0
    assert all(text in result.stdout for text in ("sld-good 2.1", "window: half", "broken", "RuntimeError"))


def test_list_as_json_has_every_field(site: Site) -> None:
    module = site.add("good", window("half"), version="2.1")
    record = listed(site, invoke(site, "plugins", "list", "--json").stdout)["good"]
    assert record.pop("import_ms") > 0
    assert record == {
        "plugin": "good",
        "module": module,
        "distribution": "sld-good",
        "version": "2.1",
        "status": "ok",
        "error": "",
        "contributions": {"window": ["half"]},
        "manifest": False,
        "api": 1,
    }


def test_what_plugins_print_while_they_load_does_not_spoil_json(site: Site) -> None:
    site.add("loud", "print('look at me')\n" + window("half"))
    assert listed(site, invoke(site, "plugins", "list", "--json").stdout)["loud"]["status"] == "ok"


def test_what_plugins_print_while_they_load_does_not_spoil_the_json_of_a_command_of_a_plugin(
    site: Site,
) -> None:
    site.add("loud", "print('look at me')\n" + window("half"))
    site.add("polite", HEAD + COMMAND)
    result = invoke(site, "greet", "Ada")
    assert (result.stdout, "look at me" in result.stderr) == ("hello Ada\n", True)


def test_list_works_with_every_kind_of_broken_plugin_in_strict_mode_too(site: Site) -> None:
    site.add_broken(*BROKEN)
    finished = sld(site, "--strict-plugins", "plugins", "list", "--json")
    assert finished.returncode == 0, finished.stderr
    assert {record["status"] for record in listed(site, finished.stdout).values()} == {"broken"}


def test_list_mentions_a_selected_name_that_no_plugin_has(site: Site) -> None:
    result = runner.invoke(app, ["plugins", "list"], env={"SLD_PLUGINS": "-gone"})
    assert "SLD_PLUGINS names 'gone', and no such plugin is installed" in result.stderr


def test_no_plugins_disables_all_of_them(site: Site) -> None:
    site.add("good", window("half"))
    result = invoke(site, "--no-plugins", "plugins", "list", "--json")
    assert listed(site, result.stdout)["good"]["status"] == "disabled"


def test_the_environment_variable_disables_one(site: Site) -> None:
    site.add("good", window("half"))
    site.add("other", window("quarter"))
    records = listed(site, sld(site, "plugins", "list", "--json", SLD_PLUGINS="-good").stdout)
    assert (records["good"]["status"], records["other"]["status"]) == ("disabled", "ok")


def test_nine_broken_plugins_do_not_hinder_a_policy_that_names_none_and_are_warned_of_once(
    site: Site, tmp_path: Path
) -> None:
    site.add_broken(*NINE)
    site.add(
        "good",
        HEAD + "@hookimpl\ndef sld_step_hooks():\n    return [StepHookKind(name='w', create=object)]\n",
    )
    finished = sld(site, "policy", "validate", policy_with(tmp_path, "step_hooks: [w]\n"))
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert finished.stderr.startswith("warning: 9 plugins are broken and not used: async, exits, hook-raises")


@pytest.mark.slow
def test_pictures_are_generated_whatever_is_broken_and_one_line_says_so(site: Site, tmp_path: Path) -> None:
    site.add_broken(*NINE)
    out = tmp_path / "out"
    finished = sld(
        site, "generate", "a red knight", "--policy", "max", "--steps", "2", "--out", str(out), "--json"
    )
    assert finished.returncode == 0, finished.stderr
    assert (out / "0000-0.png").exists()
    warned = [line for line in finished.stderr.splitlines() if "9 plugins are broken and not used" in line]
    assert len(warned) == 1


@pytest.mark.slow
def test_a_broken_plugin_that_is_named_stops_before_the_model_is_loaded(site: Site, tmp_path: Path) -> None:
    site.add_broken(*NINE)
    site.add("w", "raise RuntimeError('no licence found')\n")
    out = tmp_path / "out"
    policy = policy_with(tmp_path, "step_hooks: [w]\n")
    finished = sld(
        site, "generate", "a red knight", "--model", str(tmp_path), "--policy", policy, "--out", str(out)
    )
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1
    assert "plugin 'w' (sld-w 1.0) is broken" in finished.stderr
    assert not out.exists()


def test_a_policy_that_names_something_of_a_broken_plugin_fails_with_one_message(
    site: Site, tmp_path: Path
) -> None:
    site.add_broken(*NINE)
    site.add("w", "raise RuntimeError('no licence found')\n")
    finished = sld(site, "policy", "validate", policy_with(tmp_path, "step_hooks: [w]\n"))
    assert finished.returncode == 2
    assert len(finished.stderr.splitlines()) == 1
    assert (
        "step hook 'w' cannot be used: plugin 'w' (sld-w 1.0) is broken: cannot be imported"
        in finished.stderr
    )


def test_strict_stops_before_anything_else_and_lists_all_that_is_bad(site: Site) -> None:
    site.add_broken("raises", "async")
    finished = sld(site, "--strict-plugins", "policy", "schema")
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1
    assert "2 plugins cannot be used as installed: async (broken)" in finished.stderr


def test_help_and_core_commands_import_no_plugin_and_no_torch(site: Site) -> None:
    site.add("loud", "import sys\nsys.stderr.write('imported')\n" + window("half"))
    code = (
        "import sys\nfrom sldcore.cli import app\n"
        "for arguments in (['--help'], ['plugins', '--help'], ['policy', 'schema']):\n"
        "    app(arguments, standalone_mode=False)\n"
        "print('heavy:', [n for n in ('torch', 'diffusers', 'transformers', 'matplotlib') if n in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site.folder)}
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert finished.stderr == ""
    assert finished.stdout.endswith("heavy: []\n")


def test_a_command_of_a_plugin_runs(site: Site) -> None:
    site.add("polite", HEAD + COMMAND)
    assert invoke(site, "greet", "Ada").stdout == "hello Ada\n"


def test_a_click_command_of_a_plugin_gets_its_arguments_as_they_are(site: Site) -> None:
    site.add("waver", HEAD + CLICK)
    finished = sld(site, "wave", "--loud", "Ada")
    assert (finished.returncode, finished.stdout) == (0, "waves at Ada!\n"), finished.stderr


def test_a_click_command_of_a_plugin_reports_its_own_bad_input(site: Site) -> None:
    site.add("waver", HEAD + CLICK)
    finished = sld(site, "wave", "--quiet", "Ada")
    assert finished.returncode == 2
    assert "No such option" in finished.stderr


def test_a_command_of_the_core_cannot_be_taken(site: Site) -> None:
    site.add("polite", HEAD + COMMAND.replace('name="greet"', 'name="policy"'))
    assert "safety policies" in invoke(site, "policy", "--help").stdout
    record = listed(site, invoke(site, "plugins", "list", "--json").stdout)["polite"]
    assert (record["status"], record["error"].split(",")[0]) == (
        "duplicate",
        f"command 'policy' is sldcore {sldcore.__version__}'s own",
    )


def test_a_command_that_is_no_command_gives_one_message(site: Site) -> None:
    site.add("polite", HEAD + COMMAND.replace("return app", "return 7"))
    result = invoke(site, "greet")
    assert result.exit_code == 2
    assert "must be a typer.Typer or a click command, and is a int" in result.stderr


def test_an_empty_typer_application_gives_one_message(site: Site) -> None:
    site.add("polite", HEAD + COMMAND.replace("@app.command()", ""))
    result = invoke(site, "greet")
    assert result.exit_code == 2
    assert "command 'greet' of sld-polite 1.0 is a typer.Typer that cannot be run" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_misspelt_command_of_the_core_is_suggested(site: Site) -> None:
    result = invoke(site, "--no-plugins", "polcy")
    assert result.exit_code == 2
    assert "Did you mean 'policy'?" in result.stderr


def test_a_plugin_file_is_used_when_it_is_asked_for(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "polite.py"
    path.write_text(HEAD + COMMAND)
    result = runner.invoke(app, ["--plugin", str(path), "greet", "Ada"], env={"SLD_PLUGINS": "polite"})
    assert result.stdout == "hello Ada\n"


def test_a_plugin_file_that_is_broken_stops_every_command_but_plugins(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "raises.py"
    path.write_text(BROKEN["raises"])
    only = {"SLD_PLUGINS": "raises"}
    result = runner.invoke(app, ["--plugin", str(path), "policy", "schema"], env=only)
    assert (result.exit_code, result.stdout) == (2, "")
    assert runner.invoke(app, ["--plugin", str(path), "plugins", "list"], env=only).exit_code == 0


def test_check_passes_sound_plugins(site: Site) -> None:
    site.add("good", window("half"))
    result = invoke(site, "plugins", "check", "--json")
    content = json.loads(result.stdout)
    assert (result.exit_code, content["ok"], content["complaints"]) == (0, True, [])


@pytest.mark.parametrize("broken", ["raises", "taker"])
def test_check_fails_if_a_plugin_is_bad(site: Site, broken: str) -> None:
    site.add(broken, {**BROKEN, "taker": window("steps")}[broken])
    result = invoke(site, "plugins", "check")
    assert result.exit_code == 1
    assert result.stdout.endswith("not all sound\n")


def test_check_fails_if_a_selected_name_is_no_plugin_s(site: Site) -> None:
    site.add("good", window("half"))
    only = {"SLD_PLUGINS": "good,goood"}
    result = runner.invoke(app, ["plugins", "check", "--json"], env=only)
    content = json.loads(result.stdout)
    assert (result.exit_code, content["ok"], content["unknown"]) == (1, False, ["goood"])
    assert "SLD_PLUGINS names 'goood', and no such plugin is installed" in result.stderr


def test_check_reports_what_breaks_the_contract(site: Site) -> None:
    site.add("far", window("far").replace("step: 1.0", "step: 7.0"))
    result = invoke(site, "plugins", "check", "--json")
    (complaint,) = json.loads(result.stdout)["complaints"]
    assert result.exit_code == 1
    assert (complaint["plugin"], complaint["kind"], complaint["name"]) == ("far", "window", "far")
    assert complaint["complaints"]


def test_freeze_pins_all_distributions_with_plugins(site: Site) -> None:
    site.add("good", window("half"), version="2.1")
    site.add_broken("raises")
    lines = invoke(site, "plugins", "freeze").stdout.splitlines()
    assert {"sld-good==2.1", "sld-raises==1.0"} <= set(lines)


def test_freeze_pins_what_a_policy_needs_and_nothing_else(site: Site, tmp_path: Path) -> None:
    site.add("ramp", window("ramp"), version="2.1")
    manifest = "api: 1\ncontributes: {concept pack: [heights]}\npacks: [heights.yaml]\n"
    site.add(
        "packs",
        files={"sld-plugin.yaml": manifest, "heights.yaml": PACK.format(name="heights")},
        version="0.3",
    )
    site.add("pinned", version="1.5")
    site.add("other", window("other"))
    path = tmp_path / "policy.yaml"
    path.write_text(
        "guidance: {method: sld, window: {unit: ramp}}\nconcepts: [heights/high]\nrequires: [sld-pinned>=1]\n"
    )
    result = invoke(site, "plugins", "freeze", str(path))
    lines = result.stdout.splitlines()
    expected = ["sld-packs==0.3", "sld-pinned==1.5", "sld-ramp==2.1", f"sldcore=={sldcore.__version__}"]
    assert lines == expected


def test_freeze_refuses_a_policy_that_needs_something_that_is_not_there(site: Site, tmp_path: Path) -> None:
    result = invoke(site, "--no-plugins", "plugins", "freeze", policy_with(tmp_path, "filters: [nowhere]\n"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no filter is called 'nowhere'" in result.stderr
