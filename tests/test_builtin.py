"""The core's contributions come through the same hooks as everyone's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy
import pytest

from sldcore import builtin
from sldcore.hookspecs import PROJECT
from sldcore.plugins.hooks import HOOKS


def test_the_list_of_hooks_holds_every_marked_function_of_the_module() -> None:
    manager = pluggy.PluginManager(PROJECT)
    marked = {name for name in vars(builtin) if manager.parse_hookimpl_opts(builtin, name) is not None}
    assert {hook.__name__ for hook in builtin.HOOKS} == marked


@pytest.mark.parametrize("hook", builtin.HOOKS, ids=lambda hook: hook.__name__)
def test_a_hook_of_the_core_gives_its_own_kind_and_nothing_else(hook: Callable[[], list[Any]]) -> None:
    assert {type(each) for each in hook()} == {HOOKS[hook.__name__]}
