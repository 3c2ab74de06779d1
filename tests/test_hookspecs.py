"""The contract: every hook has a complete example that runs, and the reference is made from it."""

from __future__ import annotations

import inspect
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pluggy
import pytest
import torch

from sldcore import contributions, hookspecs, types
from sldcore.contributions import KINDS, GuidanceMethod, PostFilterKind, StepHookKind
from sldcore.hook_reference import contribution_of, hooks, markdown
from sldcore.types import Predictions, Row, Schedule

DOCS = Path(__file__).parent.parent / "docs"


def example(name: str) -> dict[str, Any]:
    """What the example in the docstring of a hook defines."""
    lines = inspect.getdoc(hooks()[name])
    assert lines is not None
    code = dedent("\n".join(line for line in lines.splitlines() if line.startswith("    ") or not line))
    public = {**vars(contributions), **vars(types), **vars(hookspecs)}
    namespace = {key: value for key, value in public.items() if not key.startswith("__")}
    namespace |= {"np": np, "torch": torch, "Path": Path}
    namespace.pop(name)
    if name == "sld_families":
        from sldcore.families.sd import StableDiffusion

        namespace["StableDiffusion"] = StableDiffusion
    exec(code, namespace)
    return namespace


@pytest.mark.parametrize("name", hooks())
def test_the_example_of_a_hook_runs_and_returns_its_kind(name: str) -> None:
    module = type("Plugin", (), {name: staticmethod(example(name)[name])})
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    manager.check_pending()
    ((found,),) = getattr(manager.hook, name)()
    assert type(found) is contribution_of(hooks()[name])


def test_every_kind_has_one_hook() -> None:
    assert tuple(contribution_of(hook) for hook in hooks().values()) == KINDS


def test_the_example_method_keeps_its_contract() -> None:
    from sldcore.catalogue import Entry, Provider
    from sldcore.testing import check_contribution

    (kind,) = example("sld_guidance_methods")["sld_guidance_methods"]()
    assert check_contribution(Entry(kind, Provider("example", "", "1.0"))) == []


def test_the_example_method_steers_away_from_its_concepts() -> None:
    (kind,) = example("sld_guidance_methods")["sld_guidance_methods"]()
    assert isinstance(kind, GuidanceMethod)
    from sldcore.guidance.base import GuidedSample
    from sldcore.policy import GuidanceSpec

    sample = GuidedSample(1, GuidanceSpec(method="away"), (0,), (0.5,), (0.0, 1.0))
    schedule = Schedule((2.0, 1.0), (1.0, 0.5), (1.0, 1.0))
    run = kind.create().start([sample], schedule)
    assert run.rows(schedule.step(0)) == ()
    rows = run.rows(schedule.step(1))
    assert rows == (Row(1, 0),)
    cond, ones = torch.zeros(2, 1, 1, 1), torch.ones(1, 1, 1, 1)
    guided = run.combine(schedule.step(1), Predictions(torch.zeros(2, 1, 1, 1), cond, ones, rows))
    assert guided.cond.flatten().tolist() == [0.0, -0.5]


def test_the_example_filter_flags_dark_pictures() -> None:
    from PIL import Image

    (kind,) = example("sld_post_filters")["sld_post_filters"]()
    assert isinstance(kind, PostFilterKind)
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ("black", "white")]
    verdicts = kind.create(None).review(pictures, [])
    assert [bool(verdict.flagged) for verdict in verdicts] == [True, False]


def test_the_example_step_hook_observes() -> None:
    (kind,) = example("sld_step_hooks")["sld_step_hooks"]()
    assert isinstance(kind, StepHookKind)
    hook: Any = kind.create(None)
    assert hook.after_guidance(None, None, torch.ones(4)) is None
    assert [float(norm) for norm in hook.norms] == [2.0]


def test_the_reference_is_made_from_the_contract() -> None:
    assert (DOCS / "hooks.md").read_text(encoding="utf-8") == markdown()


def test_every_hook_is_in_the_reference_with_an_example() -> None:
    text = markdown()
    for name in hooks():
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        assert f"def {name}():" in section and "```python" in section
