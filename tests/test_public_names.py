from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import sldcore

NAMES = {
    "Concept": "sldcore.types",
    "ConceptPack": "sldcore.concepts",
    "Preset": "sldcore.policy",
    "Result": "sldcore.types",
    "SLDPipeline": "sldcore.pipeline",
    "SafetyEngine": "sldcore.engine",
    "SafetyPolicy": "sldcore.policy",
    "Verdict": "sldcore.types",
    "SafetyGuider": "sldcore.guider",
    "guard": "sldcore.session",
    "load_pipeline": "sldcore.loading",
}
HEAVY = {"torch", "diffusers", "transformers", "matplotlib"}


def heavy_modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter and return which heavy packages it loaded."""
    script = f"{code}\nimport sys\nprint('\\nLOADED', *{{name.split('.')[0] for name in sys.modules}})"
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return HEAVY & set(finished.stdout.rsplit("LOADED", 1)[1].split())


def test_these_are_the_public_names() -> None:
    assert set(sldcore.__all__) == {*NAMES, "__version__"}


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_the_object_of_its_module(name: str) -> None:
    assert getattr(sldcore, name) is getattr(importlib.import_module(NAMES[name]), name)


def test_dir_lists_the_public_names_before_they_are_used() -> None:
    code = "import sldcore; print(*dir(sldcore))"
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert set(NAMES) <= set(listed.stdout.split())


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'sldcore' has no attribute 'SafetyEngin'"):
        sldcore.SafetyEngin  # noqa: B018


def test_the_measurement_of_heavy_modules_sees_them() -> None:
    assert heavy_modules_after("import torch") == {"torch"}


def test_importing_sldcore_loads_nothing_heavy() -> None:
    assert heavy_modules_after("import sldcore; dir(sldcore)") == set()


def test_a_policy_loads_nothing_heavy() -> None:
    code = (
        "from sldcore import Concept, ConceptPack, Preset, Result, SafetyPolicy, Verdict\n"
        "from sldcore.concepts import resolve\n"
        "resolve(SafetyPolicy.preset('max').concepts)"
    )
    assert heavy_modules_after(code) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["playground", "--help"],
        ["policy", "show", "medium"],
        ["concepts", "show", "inappropriate"],
    ],
    ids=" ".join,
)
def test_a_command_that_generates_nothing_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['sld', *{arguments}]\n"
        "from sldcore.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code"
    )
    assert heavy_modules_after(code) == set()
