"""``sld serve``: flags are the settings, and nothing heavy is imported before it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from sldcore.cli import app
from sldcore.cli import serve as command
from sldcore.service.settings import ServiceSettings
from sldcore.service.settings_reference import flag_of, settings_paths


def serve(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["serve", *arguments])


def printed(*arguments: str) -> dict[str, Any]:
    result = serve(*arguments, "--print-config")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = yaml.safe_load(result.stdout)
    return content


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServiceSettings]:
    """What the server is called with."""
    called: list[ServiceSettings] = []
    module = ModuleType("sldcore.service.server")
    module.serve = called.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sldcore.service.server", module)
    return called


def test_the_flags_are_the_settings() -> None:
    alone = typer.Typer(add_completion=False)
    alone.command()(command.serve)
    parameters = typer.main.get_command(alone).params
    flags = {parameter.opts[0] for parameter in parameters} - {"--config", "--print-config"}
    assert flags == {flag_of(path) for path in settings_paths()}


def test_every_flag_reaches_its_setting() -> None:
    for path in settings_paths():
        if path in (("models",), ("policies",), ("keys",), ("floor",), ("default_policy",)):
            continue
        field: Any = ServiceSettings()
        for name in path:
            field = getattr(field, name)
        flag = flag_of(path)
        assert flag is not None
        if isinstance(field, bool):
            given, wanted = [flag if not field else f"--no-{flag[2:]}"], not field
        elif isinstance(field, int | float):
            given, wanted = [flag, str(int(field) + 2)], int(field) + 2
        else:
            given, wanted = [flag, *map(str, _other(path))], _other(path)[0]
        found: Any = printed(*given)
        for name in path:
            found = found[name]
        assert found == wanted, path


def _other(path: tuple[str, ...]) -> list[Any]:
    other = {
        "host": "localhost",
        "format": "jsonl",
        "public_url": "https://pictures.example.org",
        "key_queue": 3,
    }
    return [other.get(path[-1], "other")]


def test_the_printed_settings_are_a_file_of_settings(tmp_path: Path) -> None:
    content = printed("--policy", "a=max", "--policy", "weak", "--floor", "weak", "--port", "5")
    assert content["policies"] == {"a": "max", "weak": "weak"}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    again = printed("--config", str(file))
    again["audit"]["path"] = content["audit"]["path"]  # relative to the file's folder now
    assert again == content


def test_models_are_added_to_the_file_s(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("models: {toy: {source: playground, steps: 20}}")
    models = printed("--config", str(file), "--model", "other=org/name", "--model", "toy=playground")[
        "models"
    ]
    assert {name: (each["source"], each["steps"]) for name, each in models.items()} == {
        "toy": ("playground", 20),
        "other": ("org/name", 50),
    }


def test_the_server_gets_the_settings(served: list[ServiceSettings]) -> None:
    result = serve("--port", "0", "--queue", "3")
    assert result.exit_code == 0, result.output
    (settings,) = served
    assert (settings.port, settings.limits.queue) == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "others can reach the service, and there are no keys"),
        (["--floor", "x"], "floor is 'x', which is none of the policies"),
        (["--queue", "0"], "limits.queue: Input should be greater than or equal to 1, got 0"),
        (["--audit-format", "xml"], "audit.format"),
        (["--policy", "a="], "--policy 'a=': expected NAME=WHAT"),
        (["--policy", "=max"], "--policy '=max': expected NAME=WHAT"),
        (["--policy", "a=max", "--policy", "a=weak"], "--policy names 'a' twice"),
        (["--keys", "none.yaml"], "`sld keys new ID --file FILE` makes such a file"),
        (["--config", "none.yaml"], "cannot read none.yaml"),
    ],
)
def test_what_is_wrong_is_one_message(
    arguments: list[str], message: str, served: list[ServiceSettings]
) -> None:
    result = serve(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not served


@pytest.mark.parametrize("arguments", [["serve"], ["keys", "list", "--file", "x"]])
def test_without_the_extra_the_message_has_the_pip_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "fastapi" else object())
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr == (
        "error: this needs fastapi, which the extra 'serve' brings: pip install 'sldcore[serve]'\n"
    )


def test_ray_without_its_extra(monkeypatch: pytest.MonkeyPatch, served: list[ServiceSettings]) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "ray" else object())
    result = serve("--ray")
    assert result.exit_code == 2
    assert "pip install 'sldcore[ray]'" in result.stderr
    assert not served


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["keys", "--help"]])
def test_help_imports_nothing_of_the_extra(arguments: list[str]) -> None:
    code = (
        "import sys; from sldcore.cli import app; app(sys.argv[1:], standalone_mode=False);"
        "heavy = {'fastapi', 'pydantic_settings', 'uvicorn', 'torch', 'ray'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert "Usage" in finished.stdout
