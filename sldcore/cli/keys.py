"""``sld keys``: make, list and revoke the API keys of the service."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sldcore.cli.output import Json, print_json
from sldcore.cli.serve import require_extra
from sldcore.errors import ConfigurationError, listed, nearest

if TYPE_CHECKING:
    from sldcore.service.rights.keys import Key, KeyFile

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the API keys of the service.")

File = Annotated[Path, typer.Option("--file", metavar="KEYS", help="The file of keys, as in the settings.")]


@app.command()
def new(
    key: Annotated[str, typer.Argument(metavar="ID", help="What logs and the audit call it.")],
    file: File,
    policies: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Names of policies that it may use; all above its floor, if not said."
        ),
    ] = None,
    default_policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where a request names none.")
    ] = None,
    floor: Annotated[
        str | None, typer.Option(metavar="NAME", help="What its requests must be at least as strict as.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="Names of models that it may use; all, if not said.")
    ] = None,
    inline: Annotated[bool, typer.Option("--inline", help="May send policies of its own.")] = False,
    operator: Annotated[
        bool, typer.Option("--operator", help="May read the history and ask for unguided pictures.")
    ] = False,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help="From when on it is refused, such as 2030-01-31 (UTC).")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests in a minute.")] = None,
    pictures_per_minute: Annotated[int | None, typer.Option(help="Pictures in a minute.")] = None,
    pictures: Annotated[int | None, typer.Option(help="Largest n of a request.")] = None,
    prompt_characters: Annotated[int | None, typer.Option(help="Longest prompt.")] = None,
    steps: Annotated[int | None, typer.Option(help="The most steps that a request may ask for.")] = None,
) -> None:
    """Make a key and print it: it is not stored, and nobody can print it again.

    Only its hash goes into the file, which is made if there is none. A service that uses the file sees the change.
    """
    require_extra()
    from sldcore.service.rights.keys import hash_of, new_token

    token = new_token()
    limits = {
        "requests_per_minute": requests_per_minute,
        "pictures_per_minute": pictures_per_minute,
        "pictures": pictures,
        "prompt_characters": prompt_characters,
        "steps": steps,
    }
    content: dict[str, Any] = {
        "id": key,
        "sha256": hash_of(token),
        "created": datetime.now(UTC).replace(microsecond=0),
        "expires": expires,
        "policies": _names(policies),
        "default_policy": default_policy,
        "floor": floor,
        "inline": inline,
        "operator": operator,
        "models": _names(models),
        "limits": {name: limit for name, limit in limits.items() if limit is not None},
    }
    _add(file, content)
    typer.echo(token)
    typer.echo(f"key '{key}' is in {file}; the line above is the key itself, and is shown only now", err=True)


@app.command("list")
def list_keys(file: File, as_json: Json = False) -> None:
    """List keys and what each may do; nothing that one could ask with."""
    require_extra()
    from sldcore.service.rights.keys import read_keys

    keys = read_keys(file).keys
    now = datetime.now(UTC)
    if as_json:
        content = [
            {**key.model_dump(mode="json", exclude={"sha256"}), "expired": key.expired(now)} for key in keys
        ]
        print_json(content)
        return
    table = Table("id", "created", "expires", "policies", "floor", "may", "models", "limits", box=None)
    for key in keys:
        table.add_row(*map(escape, _row(key, now)))
    Console().print(table)


@app.command()
def revoke(key: Annotated[str, typer.Argument(metavar="ID", help="Which key.")], file: File) -> None:
    """Take a key out of the file: a service that uses the file refuses it from its next request on."""
    require_extra()
    from sldcore.service.rights.keys import KeyFile, read_keys, write_keys

    keys = read_keys(file).keys
    names = [each.id for each in keys]
    if key not in names:
        raise ConfigurationError(
            f"{file}: there is no key '{key}'{nearest(key, names)} (keys: {listed(names)})"
        )
    write_keys(file, KeyFile(keys=tuple(each for each in keys if each.id != key)))
    typer.echo(f"key '{key}' is no longer in {file}")


def _names(given: str | None) -> list[str]:
    return [name.strip() for name in given.split(",")] if given else []


def _add(file: Path, content: dict[str, Any]) -> None:
    """Put one more key into a file.

    Raises:
        ConfigurationError: there is one of this id, or the file cannot be read or written.
    """
    from pydantic import ValidationError

    from sldcore.documents import describe_invalid
    from sldcore.service.rights.keys import Key, KeyFile, read_keys, write_keys

    before: KeyFile = read_keys(file) if file.exists() else KeyFile()
    names = [each.id for each in before.keys]
    if content["id"] in names:
        raise ConfigurationError(
            f"{file}: there is a key '{content['id']}' already; `sld keys revoke` takes it out"
        )
    try:
        after = KeyFile(keys=(*before.keys, Key.model_validate(content)))
    except ValidationError as invalid:
        raise ConfigurationError(describe_invalid(f"key '{content['id']}'", invalid)) from None
    write_keys(file, after)


def _row(key: Key, now: datetime) -> list[str]:
    rights = [name for name in ("inline", "operator") if getattr(key, name)]
    limits = [
        f"{name} {limit}"
        for name, limit in key.limits.model_dump(exclude_defaults=True).items()
        if limit is not None
    ]
    expires = "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M}"
    return [
        key.id,
        f"{key.created:%Y-%m-%d}",
        f"{expires}, expired" if key.expired(now) else expires,
        ", ".join(key.policies) or "all",
        key.floor or "the service's",
        ", ".join(rights) or "-",
        ", ".join(key.models) or "all",
        ", ".join(limits) or "the service's",
    ]
