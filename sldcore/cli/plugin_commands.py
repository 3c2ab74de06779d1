"""Commands of ``sld`` that plugins contribute, made into what typer runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import typer

from sldcore import builtin
from sldcore.catalogue import Entry
from sldcore.contributions import Command
from sldcore.errors import PluginError
from sldcore.plugins import Plugins
from sldcore.plugins.records import describe


def core_commands(commands: Mapping[str, Any]) -> list[Entry]:
    """The core's commands as contributions, so that no plugin can take their names."""
    return [
        Entry(Command(name=name, create=partial(commands.__getitem__, name)), builtin.PROVIDER)
        for name in sorted(commands)
    ]


def plugin_command(plugins: Plugins, name: str) -> Any:
    """The command of this name that a plugin contributes, None if nobody has it.

    Raises:
        PluginError: it is broken, disabled or ambiguous.
    """
    for entry in plugins.entries(Command):
        contribution = entry.contribution
        if contribution.name == name and isinstance(contribution, Command):
            return _runnable(contribution.create(), name, str(entry.provider))
    if reason := plugins.why_not(Command, name):
        raise PluginError(f"command '{name}' cannot be used: {reason}")
    return None


def _runnable(made: Any, name: str, provider: str) -> Any:
    """A typer application as typer makes it; any other command is handed its arguments as they are."""
    if isinstance(made, typer.Typer):
        return _of_typer(made, name, provider)
    if not callable(getattr(made, "main", None)):
        raise PluginError(
            f"command '{name}' of {provider} must be a typer.Typer or a click command, and is a {type(made).__name__}"
        )
    # Typer may carry a click of its own, in which commands of the installed click are strangers.
    everything = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    wrapper = typer.Typer(add_completion=False)

    @wrapper.command(name, context_settings=everything)
    def run(ctx: typer.Context) -> None:
        made.main(args=list(ctx.args), prog_name=f"sld {name}")

    return typer.main.get_command(wrapper)


def _of_typer(made: typer.Typer, name: str, provider: str) -> Any:
    try:
        command = typer.main.get_command(made)
    except Exception as problem:  # an empty application, or parameters that typer does not know
        raise PluginError(
            f"command '{name}' of {provider} is a typer.Typer that cannot be run: {describe(problem)}; "
            "give it a command with @app.command()"
        ) from problem
    command.name = name
    return command
