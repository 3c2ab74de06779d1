"""Imports point one way; the ranks are the layers of the design, lowest first."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sldcore"

# The longest matching prefix decides. A module may import from its own rank and from lower ones.
RANKS = {
    "": 9,  # the public names
    "types": 0,
    "errors": 0,
    "documents": 0,
    "policy": 1,
    "policy_parts": 1,
    "presets": 1,
    "concepts": 1,
    "guidance": 1,
    "tracing": 1,
    "embeddings": 1,
    "contributions": 1,
    "catalogue": 1,
    "hookspecs": 1,
    "hook_reference": 1,
    "splitting": 1,
    "packs": 1,
    "families.base": 1,
    "families.noise": 1,
    "filters.base": 1,
    "families": 2,
    "filters": 2,
    "denoiser": 2,
    "own_rows": 2,
    "lanes": 2,
    "guider": 2,
    "encoding": 2,
    "run": 2,
    "stepping": 2,
    "modular": 2,
    "session": 2,
    "provenance": 2,
    "schedulers": 2,
    "builtin": 2,
    "resolution": 2,
    "request": 2,
    "hook_lanes": 2,
    "review": 2,
    "frames": 2,
    "outcome": 2,
    "regeneration": 2,
    "restarting": 2,
    "strictness": 2,
    "call_checks": 2,
    "prompt_texts": 2,
    "audit": 2,
    "audit_records": 2,
    "locked_files": 0,
    "plugins": 2,
    "engine": 3,
    "loading": 3,
    "playground.world": 0,
    "playground.drawing": 0,
    "playground.canvas": 0,
    "playground.glyphs": 0,
    "playground.prompts": 0,
    "playground": 2,
    "pipeline": 4,
    "visual": 1,
    "evaluation": 4,
    "testing": 5,
    "service": 5,
    "cli": 6,
}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in PACKAGE.rglob("*.py")
}


def rank(module: str) -> int:
    known = [name for name in RANKS if module == name or (name and module.startswith(f"{name}."))]
    if not known:
        pytest.fail(f"sldcore.{module} has no rank: give it one in RANKS")
    return RANKS[max(known, key=len)]


def imported(path: Path) -> set[str]:
    """Modules of sldcore that a file imports, wherever it does, type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in submodules if name.removeprefix("sldcore.") in MODULES}
            found |= known or {str(node.module)}
    ours = {name for name in found if name == "sldcore" or name.startswith("sldcore.")}
    return {name.removeprefix("sldcore").removeprefix(".") for name in ours}


@pytest.mark.parametrize("module", sorted(MODULES), ids=lambda module: module or "sldcore")
def test_a_module_imports_from_its_own_layer_or_below(module: str) -> None:
    upwards = {other for other in imported(MODULES[module]) if other and rank(other) > rank(module)}
    assert not upwards


def test_the_engine_does_not_know_how_plugins_are_found() -> None:
    core = [MODULES[name] for name in ("engine", "run", "stepping", "session", "denoiser")]
    assert not any("plugins" in imported(path) for path in core)


def test_imports_are_seen_at_the_top_in_functions_and_for_type_checking(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        "import sldcore.errors\n"
        "from sldcore import types\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from sldcore.policy import Preset\n"
        "def f():\n    from sldcore.cli.doctor import examine\n"
    )
    assert imported(file) == {"errors", "types", "policy", "cli.doctor"}
