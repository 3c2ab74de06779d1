"""The hooks of one plugin's module: found with a plugin manager of its own, so that plugins cannot disturb each other.

What a hook returns is checked for its type, and wrapped so that a factory that fails later says whose it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any, Final, get_args, get_type_hints

import pluggy

from sldcore import hookspecs
from sldcore.contributions import ConceptProvider, Contribution
from sldcore.errors import PluginError, SLDError, listed, nearest
from sldcore.hookspecs import PROJECT
from sldcore.plugins.records import Announced, describe, one_line

HOOKS: Final[Mapping[str, type[Contribution]]] = {
    name: get_args(get_type_hints(hook)["return"])[0]
    for name, hook in vars(hookspecs).items()
    if name.startswith("sld_")
}
"""The class of what each hook returns."""


def hooks_of(module: ModuleType, plugin: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """The hook functions of a module by hook.

    Raises:
        PluginError: a hook that does not exist, that takes arguments, that wraps others, or that is not marked.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, plugin or module.__name__)
    except pluggy.PluginValidationError as problem:
        raise PluginError(f"{one_line(str(problem))}; hooks take no arguments") from None
    callers = {caller.name: caller for caller in manager.get_hookcallers(module) or ()}
    for name, caller in sorted(callers.items()):
        if name not in HOOKS and not all(each.optionalhook for each in caller.get_hookimpls()):
            raise PluginError(f"there is no hook '{name}'{nearest(name, HOOKS)} (hooks: {listed(HOOKS)})")
    for name in HOOKS:
        unmarked = vars(module).get(name)
        if name not in callers and inspect.isfunction(unmarked) and unmarked.__module__ == module.__name__:
            raise PluginError(f"function '{name}' is not marked; put @hookimpl of sldcore.hookspecs above it")
    for name in HOOKS:
        for each in callers[name].get_hookimpls() if name in callers else ():
            if each.hookwrapper or each.wrapper:
                raise PluginError(
                    f"hook '{name}' is a wrapper; nobody's hooks can be wrapped, return your own"
                )
            yield name, each.function


def guarded(contribution: object, kind: type[Contribution], announced: Announced) -> Contribution:
    """The same contribution, whose factory tells whose it is when it fails.

    A concept provider's pack is checked too, when it is loaded: its id must be the provider's name.

    Raises:
        PluginError: it is something else than a ``kind``, or malformed.
    """
    if not isinstance(contribution, kind):
        raise PluginError(
            f"it must return a list of {kind.__name__}, and a {type(contribution).__name__} is in it"
        )
    kind.__post_init__(contribution)  # a subclass may have replaced it
    attribute = "load" if isinstance(contribution, ConceptProvider) else "create"
    make: Callable[..., Any] = getattr(contribution, attribute)
    if not callable(make):
        raise PluginError(f"{attribute} of {kind.kind} '{contribution.name}' must be a function")
    what = f"{kind.kind} '{contribution.name}' of {announced}"
    name = contribution.name if attribute == "load" else None
    changes: dict[str, Any] = {attribute: _telling(make, what, name)}
    return replace(contribution, **changes)


def _telling(make: Callable[..., Any], what: str, pack: str | None) -> Callable[..., Any]:
    """``make``, whose failures say what could not be made; ``pack`` is the id of the concept pack that it must give."""

    def call(*arguments: Any) -> Any:
        try:
            made = make(*arguments)
        except SLDError:
            raise
        except (Exception, SystemExit) as problem:
            raise PluginError(f"{what} cannot be made: {describe(problem)}") from problem
        if pack is not None:
            _check_pack(made, pack, what)
        return made

    return call


def _check_pack(made: object, name: str, what: str) -> None:
    from sldcore.concepts import ConceptPack

    if not isinstance(made, ConceptPack):
        raise PluginError(f"{what} must give a ConceptPack, and gave {type(made).__name__}")
    if made.id != name:
        raise PluginError(
            f"{what} must give the pack '{name}', and gave '{made.id}'; the two names must be equal"
        )
