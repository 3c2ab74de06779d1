"""The reference of hooks as Markdown, made from the specifications themselves; ``docs/hooks.md`` is its output."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any, Final, get_args, get_type_hints

from sldcore import hookspecs
from sldcore.contributions import Contribution

INTRODUCTION: Final = """\
# Hooks

Made from `sldcore/hookspecs.py` and `sldcore/contributions.py` by `make hooks`; do not edit it by hand. How to write, test
and publish a plugin is in [plugins.md](plugins.md).

Contract version {version}: a plugin module declares `SLD_API = {version}`. Every hook takes no arguments and returns a list
of contributions of one kind. All contributions have a `name`, a one-line `description` and `options`, the pydantic model
that checks what a policy gives them.
"""


def hooks() -> dict[str, Callable[..., Any]]:
    """Every hook of the contract by name, in the order of the file."""
    return {
        name: function
        for name, function in vars(hookspecs).items()
        if inspect.isfunction(function) and hasattr(function, f"{hookspecs.PROJECT}_spec")
    }


def contribution_of(hook: Callable[..., Any]) -> type[Contribution]:
    """The kind of contribution that a hook returns a list of."""
    (kind,) = get_args(get_type_hints(hook)["return"])
    contribution: type[Contribution] = kind
    return contribution


def markdown() -> str:
    """The whole reference."""
    parts = [INTRODUCTION.format(version=hookspecs.API_VERSION)]
    for name, hook in hooks().items():
        kind = contribution_of(hook)
        parts.append(f"## {name}\n\nReturns a list of `{kind.__name__}`.\n\n{_body(hook)}\n\n{_fields(kind)}")
    return _plain("\n".join(parts))


def _plain(text: str) -> str:
    """Sphinx roles and double backquotes as Markdown has them."""
    return re.sub(r"(?<!`)``(?!`)", "`", re.sub(r":\w+:`([^`]+)`", r"`\1`", text))


def _body(hook: Callable[..., Any]) -> str:
    """The docstring with its example as a code block."""
    lines: list[str] = []
    code = False
    for line in inspect.cleandoc(hook.__doc__ or "").splitlines():
        indented = line.startswith("    ")
        if indented and not code:
            lines.append("```python")
        elif code and line and not indented:
            lines[-1:] = ["```", ""]  # in place of the empty line between them
        code = indented or (code and not line)
        lines.append(line.removeprefix("    "))
    if code:
        lines.append("```")
    return "\n".join(lines)


def _fields(kind: type[Contribution]) -> str:
    """The fields of a contribution beside those that all have."""
    common = {each.name for each in dataclasses.fields(Contribution)}
    rows = [
        f"| `{each.name}` | `{each.type}` | {'required' if each.default is dataclasses.MISSING else 'optional'} |"
        for each in dataclasses.fields(kind)
        if each.name not in common
    ]
    head = [f"{inspect.cleandoc(kind.__doc__ or '')}", "", "| field | type | |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])
