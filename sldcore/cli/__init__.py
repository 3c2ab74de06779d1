"""The command line ``sld``: one module per command, which import what is heavy only when they run."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sldcore import __version__
from sldcore.cli import concepts, doctor, generate, playground, policy
from sldcore.errors import ConfigurationError, SLDError


class _Commands(TyperGroup):
    """Turns the errors that sldcore raises on purpose into one message and an exit code: 2 for bad input, else 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SLDError as problem:
            typer.echo(f"error: {problem}", err=True)
            raise typer.Exit(2 if isinstance(problem, ConfigurationError) else 1) from None


app = typer.Typer(
    name="sld",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Safety guidance for diffusion models.",
)
app.command("generate")(generate.generate)
app.add_typer(policy.app, name="policy")
app.add_typer(concepts.app, name="concepts")
app.add_typer(playground.app, name="playground")
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sldcore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Safety guidance for diffusion models."""


def main() -> None:
    """Run ``sld`` with the process's arguments."""
    app()
