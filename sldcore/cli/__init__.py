"""The command line ``sld``: one module per command, which import what is heavy only when they run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sldcore import __version__, builtin
from sldcore.catalogue import Catalogue, Entry, set_default
from sldcore.cli import (
    audit,
    concepts,
    doctor,
    evaluation,
    filters,
    generate,
    keys,
    playground,
    plugins,
    policy,
    serve,
)
from sldcore.cli.plugin_commands import core_commands, plugin_command
from sldcore.errors import ConfigurationError, SLDError
from sldcore.plugins import Plugins


class _Commands(TyperGroup):
    """The commands of the core, then those of plugins, which are looked for only when the core has none of the name.

    Errors that sldcore raises on purpose become one message and an exit code: 2 for bad input, else 1.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            ctx.obj = _use_plugins(ctx.params, self.commands)
            returned = super().invoke(ctx)
        except SLDError as problem:
            typer.echo(f"error: {problem}", err=True)
            raise typer.Exit(2 if isinstance(problem, ConfigurationError) else 1) from None
        except typer.Exit:
            _warn(ctx)
            raise
        _warn(ctx)
        return returned

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        return own if own is not None or ctx.obj is None else plugin_command(ctx.obj, cmd_name)


app = typer.Typer(
    name="sld",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Safety guidance for diffusion models.",
    epilog="Plugins may add commands: `sld plugins list` shows them.",
)
app.command("generate")(generate.generate)
app.add_typer(policy.app, name="policy")
app.add_typer(concepts.app, name="concepts")
app.add_typer(filters.app, name="filters")
app.add_typer(plugins.app, name="plugins")
app.add_typer(playground.app, name="playground")
app.add_typer(evaluation.app, name="eval")
app.command("serve")(serve.serve)
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sldcore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Use no plugin, whatever is installed.")
    ] = False,
    strict_plugins: Annotated[
        bool, typer.Option("--strict-plugins", help="Load all plugins first; stop if any is bad.")
    ] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="Use a plugin that is one Python file. Repeatable."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Safety guidance for diffusion models."""
    if (
        isinstance(ctx.obj, Plugins) and ctx.invoked_subcommand != "plugins"
    ):  # which says what is wrong itself
        ctx.obj.require_files()
        if strict_plugins:
            ctx.obj.check()
        if ctx.invoked_subcommand == "generate":
            ctx.obj.records(load=False)  # so that broken ones are spoken of, though this policy may name none


def _use_plugins(options: dict[str, Any], commands: Mapping[str, Any]) -> Plugins:
    """Set the process's catalogue as the command line says; nothing is looked for before it is needed."""
    core: list[Entry] = [*builtin.entries(), *core_commands(commands)]
    chosen = Plugins.from_environment(
        selection="none" if options.get("no_plugins") else None,
        local=options.get("plugin") or (),
        strict=bool(options.get("strict_plugins")),
        core=core,
    )
    set_default(lambda: Catalogue(core, chosen))
    return chosen


def _warn(ctx: typer.Context) -> None:
    """Say once which plugins are broken, if any were looked at for something else."""
    if isinstance(ctx.obj, Plugins) and ctx.invoked_subcommand != "plugins":
        ctx.obj.warn_once(lambda text: typer.echo(f"warning: {text}", err=True))


def main() -> None:
    """Run ``sld`` with the process's arguments."""
    app()
