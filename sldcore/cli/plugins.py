"""``sld plugins``: which plugins are installed, what is wrong with them, and what a policy needs of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from packaging.requirements import Requirement

from sldcore.catalogue import Catalogue, Entry, current
from sldcore.cli.output import Json, print_json
from sldcore.cli.plugins_new import new
from sldcore.cli.policy import find_policy
from sldcore.contributions import (
    KINDS,
)
from sldcore.errors import PluginError, listed
from sldcore.plugins import Plugins
from sldcore.plugins.discovery import discover
from sldcore.plugins.records import Record
from sldcore.plugins.requirements import installed_version
from sldcore.policy import SafetyPolicy
from sldcore.resolution import named_by

SLOW_SECONDS: Final = 1.0
"""An import that takes longer than this is remarked on."""

app = typer.Typer(no_args_is_help=True, help="List, check, pin and start plugins.")
app.command("new")(new)


@dataclass(frozen=True, slots=True)
class Complaint:
    """What the contract suite says against one contribution."""

    plugin: str
    kind: str
    name: str
    complaints: tuple[str, ...]


@app.command("list")
def list_plugins(ctx: typer.Context, as_json: Json = False) -> None:
    """List plugins: what they contribute, and why one is not used.

    A plugin with a static manifest is listed without being loaded; `sld plugins check` loads all.
    """
    plugins = _plugins(ctx)
    records = plugins.records(load=False)
    _note(plugins.unknown_selected)
    if as_json:
        print_json([record.as_json() for record in records])
        return
    if not records:
        typer.echo("No plugins are installed. `sld plugins new NAME` starts one.")
        return
    _print_records(records)


@app.command()
def check(ctx: typer.Context, as_json: Json = False) -> None:
    """Load every plugin and run the contract suite on what it contributes.

    Exit code 1 if a plugin is broken, takes a name that somebody else has, or breaks the contract, or if SLD_PLUGINS
    names one that is not installed.
    """
    plugins = _plugins(ctx)
    records = plugins.records()
    with redirect_stdout(sys.stderr):  # what plugins print under test is no part of the report
        complaints = [
            each for kind in KINDS for entry in plugins.usable(kind) if (each := _checked(entry)).complaints
        ]
    unknown = plugins.unknown_selected
    _note(unknown)
    sound = not complaints and not unknown and not any(record.bad for record in records)
    if as_json:
        content = {
            "ok": sound,
            "plugins": [record.as_json() for record in records],
            "complaints": [asdict(each) for each in complaints],
            "unknown": unknown,
        }
        print_json(content)
    else:
        if records:
            _print_records(records)
        for each in complaints:
            for complaint in each.complaints:
                typer.echo(f"{each.plugin}: {each.kind} '{each.name}': {complaint}")
        typer.echo(f"plugins checked: {len(records)}, {'all sound' if sound else 'not all sound'}")
    if not sound:
        raise typer.Exit(1)


@app.command()
def freeze(
    policies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[POLICY...]", help="Presets or policy files; all plugins if none."),
    ] = None,
) -> None:
    """Print pip requirements: the distributions that policies need, or all that bring plugins.

    `sld plugins freeze policy.yaml > requirements.txt` on one machine, `pip install -r requirements.txt` on another.
    """
    if policies:
        found = [find_policy(each) for each in policies]
        lines = {line for policy in found for line in _needed(policy, current())}
    else:
        lines = {_pin(each.distribution, each.version) for each in discover() if each.distribution}
    for line in sorted(lines):
        typer.echo(line)


def _plugins(ctx: typer.Context) -> Plugins:
    plugins = ctx.find_object(Plugins)
    if plugins is None:
        raise PluginError("plugins can be looked at from the command `sld` only")
    return plugins


def _note(unknown: Sequence[str]) -> None:
    for name in unknown:
        typer.echo(f"note: SLD_PLUGINS names '{name}', and no such plugin is installed", err=True)


def _checked(entry: Entry) -> Complaint:
    """Run the contract suite on one contribution; whatever it raises is a complaint."""
    from sldcore.testing.check import check_contribution

    try:
        complaints = tuple(check_contribution(entry))
    except Exception as problem:  # other people's code is under test
        complaints = (f"{type(problem).__name__}: {problem}",)
    return Complaint(entry.provider.plugin, entry.contribution.kind, entry.contribution.name, complaints)


def _notes(plugins: Plugins) -> Iterator[str]:
    """What could not be tried, and why."""
    from sldcore.testing.check import not_tried

    for kind in KINDS:
        for entry in plugins.usable(kind):
            if why := not_tried(entry):
                yield f"{entry.provider.plugin}: {kind.kind} '{entry.contribution.name}': {why}"


def _needed(policy: SafetyPolicy, catalogue: Catalogue) -> Iterator[str]:
    """One line for each distribution that a policy needs, and a remark for each plugin file.

    Raises:
        PluginError: something that the policy names cannot be had.
    """
    catalogue.require(policy.requires)
    for text in policy.requires:
        name = Requirement(text).name
        if (version := installed_version(name)) is not None:
            yield _pin(name, version)
    for file in policy.plugins:
        yield f"# and the plugin file {Path(file).name}"
    extended = catalogue.with_files(policy.plugin_files)
    for kind, used in named_by(policy):
        provider = extended.entry(kind, used).provider
        if provider.distribution:
            yield _pin(provider.distribution, provider.version)


def _pin(distribution: str, version: str) -> str:
    return f"{distribution}=={version}" if version else distribution


def _print_records(records: Sequence[Record]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("plugin", "distribution", "status", "contributes", "import", "why")
    for record in records:
        seconds = record.import_seconds
        slow = seconds is not None and seconds > SLOW_SECONDS
        why = record.error or ("slow: import what is heavy inside the factories" if slow else "")
        cells = (
            record.plugin,
            f"{record.distribution} {record.version}".strip() or record.module,
            record.status.value,
            "\n".join(f"{kind}: {listed(names)}" for kind, names in record.contributions.items()),
            "" if seconds is None else f"{seconds * 1000:.0f} ms",
            why,
        )
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)
