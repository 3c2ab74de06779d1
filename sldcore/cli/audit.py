"""``sld audit``: look into a service's ledger or the log of ``sld generate --audit``, and verify that nothing is gone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sldcore.cli.audit_options import (
    Action,
    Flagged,
    Key,
    Ledger,
    Policy,
    SecretFile,
    Service,
    Since,
    Until,
    wanted_records,
)
from sldcore.cli.output import Json, print_json
from sldcore.errors import ConfigurationError

if TYPE_CHECKING:
    from sldcore.service.ledger.chain import Entry, Torn
    from sldcore.service.ledger.reading import Reader
    from sldcore.service.ledger.verifying import Verification

BROKEN: Final = 1

app = typer.Typer(
    no_args_is_help=True, help="Look into audit records, and verify that none is changed or gone."
)


class ExportFormat(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    JSONL = "jsonl"


@app.command("list")
def list_records(
    ledger: Ledger = Path("audit.sqlite"),
    since: Since = None,
    until: Until = None,
    key: Key = None,
    policy: Policy = None,
    action: Action = None,
    flagged: Flagged = None,
    service: Service = False,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0 for all.")] = 20,
    as_json: Json = False,
) -> None:
    """List records, the newest last."""
    wanted = wanted_records(since, until, key, policy, action, flagged, service)
    from sldcore.cli.audit_text import print_table
    from sldcore.service.ledger.reading import open_reader
    from sldcore.service.ledger.wanted import newest_rows

    rows = newest_rows(open_reader(ledger).newest(), limit or sys.maxsize, wanted)[::-1]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows)
    else:
        typer.echo("no record is like that", err=True)


@app.command()
def show(
    which: Annotated[
        str, typer.Argument(metavar="REQUEST_OR_NUMBER", help="A request's id, or a record's number.")
    ],
    ledger: Ledger = Path("audit.sqlite"),
    as_json: Json = False,
) -> None:
    """Print everything about one record, or about all of one request."""
    from sldcore.cli.audit_text import print_record
    from sldcore.service.ledger.reading import open_reader

    reader = open_reader(ledger)
    entries = reader.of_request(which)
    if not entries and which.isdecimal() and len(which) < 19:
        number = int(which)
        entries = [entry for entry in islice(reader.newest(number + 1), 1) if entry.seq == number]
    if not entries:
        raise ConfigurationError(f"{ledger} has no request and no record '{which}'; see `sld audit list`")
    rows = [entry.row() for entry in entries]
    if as_json:
        print_json(rows)
        return
    for number, row in enumerate(rows):
        if number:
            typer.echo()
        print_record(row)


@app.command()
def export(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write; replaced if it exists.")],
    ledger: Ledger = Path("audit.sqlite"),
    format: Annotated[
        ExportFormat, typer.Option(help="A table, or lines that `sld audit` reads as it reads a ledger.")
    ] = ExportFormat.CSV,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    policy: Policy = None,
    action: Action = None,
    flagged: Flagged = None,
    service: Service = False,
) -> None:
    """Write records to a file, oldest first.

    All of a ledger as jsonl, with --service, verifies with the head that is printed:
    `sld audit verify --ledger FILE --head HEAD`.
    """
    wanted = wanted_records(since, until, key, policy, action, flagged, service)
    from sldcore.cli.audit_export import export_csv, export_jsonl
    from sldcore.service.ledger.chain import Entry
    from sldcore.service.ledger.reading import open_reader

    if out.resolve() == ledger.resolve():
        raise ConfigurationError("--out is the ledger itself; name another file")
    head, stored = open_reader(ledger).stored()
    write = export_csv if format is ExportFormat.CSV else export_jsonl
    last = ""

    def entries() -> Iterator[Entry]:
        nonlocal last
        for entry in _counted("exporting", None if head is None else head.head.count)(stored):
            if isinstance(entry, Entry):
                last = entry.hash
                yield entry

    try:
        count = write(entries(), wanted, out)
    except OSError as problem:
        raise ConfigurationError(f"cannot write {out}: {problem.strerror or problem}") from None
    note = f"; head {last}" if last and format is ExportFormat.JSONL else ""
    typer.echo(f"{count} records in {out}{note}")


@app.command()
def verify(
    ledger: Ledger = Path("audit.sqlite"),
    head: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="A head that was noted before: its record must be there."),
    ] = None,
    secret_file: SecretFile = None,
    as_json: Json = False,
) -> None:
    """Check that no record was changed, removed, inserted or moved, and print the head to note elsewhere.

    Exit codes:
    0 the chain is whole
    1 it is broken: the first record that is wrong is named
    2 bad input: no ledger, no secret where one is needed, or a log without a chain
    """
    from sldcore.service.ledger.chain import HASH, Chain, Entry, read_secret
    from sldcore.service.ledger.reading import LogReader, open_reader, verify_ledger

    if head is not None and not HASH.fullmatch(head):
        raise ConfigurationError(f"--head '{head}' is no head: 64 digits 0-9 and a-f are one")
    secret = b"" if secret_file is None else read_secret(secret_file)
    reader = open_reader(ledger)
    if isinstance(reader, LogReader):
        raise ConfigurationError(
            f"{ledger} is the log of `sld generate --audit`, which is not chained: {len(reader)} records can be read, {reader.torn} "
            f"lines are torn, and whether any was changed or removed cannot be told"
        )
    first = _first(reader)
    if not secret and isinstance(first, Entry) and Chain().is_other(first):
        raise ConfigurationError(f"{ledger} is chained with a secret; give it with --secret-file")
    stored = reader.head()
    found = verify_ledger(
        reader, secret, head, _counted("verifying", None if stored is None else stored.head.count)
    )
    continues = first.row().get("continues") if isinstance(first, Entry) else None
    if as_json:
        print_json(_document(found, continues))
    else:
        _print(ledger, found, continues)
    if found.broken is not None:
        raise typer.Exit(BROKEN)


@app.command()
def rotate(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="What the full ledger is renamed to.")],
    ledger: Ledger = Path("audit.sqlite"),
    secret_file: SecretFile = None,
) -> None:
    """Put a ledger aside and begin a new one that names its head, while the service is stopped."""
    from sldcore.service.ledger.chain import read_secret
    from sldcore.service.ledger.rotation import rotate as put_aside

    head = put_aside(ledger, archive, b"" if secret_file is None else read_secret(secret_file))
    typer.echo(f"{archive}: {head.count} records, head {head.hash}")
    typer.echo(f"{ledger} is new and continues it")


def _first(reader: Reader) -> Entry | Torn | None:
    entries = iter(reader.stored()[1])
    return next(entries, None)


def _document(found: Verification, continues: Any) -> dict[str, Any]:
    return {
        "whole": found.whole,
        "count": found.head.count,
        "head": found.head.hash,
        "torn": found.torn,
        "broken": None if found.broken is None else asdict(found.broken),
        "continues": continues,
    }


def _print(ledger: Path, found: Verification, continues: Any) -> None:
    from sldcore.cli.audit_text import printable

    if found.broken is not None:
        broken = found.broken
        typer.echo(f"{ledger} is broken at record {broken.seq}, {broken.how}: {broken.message}")
        typer.echo(
            f"the {found.head.count} records before it are whole"
            if found.head.count
            else "no record before it"
        )
    else:
        typer.echo(f"{ledger} is whole: {found.head.count} records")
        typer.echo(f"head {found.head.hash}")
    if found.torn:
        typer.echo(f"{found.torn} lines are torn, as a crash leaves them; no record is missing there")
    if isinstance(continues, dict):
        typer.echo(f"it continues {printable(continues.get('file'))}, {continues.get('count')} records:")
        typer.echo(f"head {printable(continues.get('hash'))}")


def _counted(what: str, total: int | None) -> Callable[[Iterable[Entry | Torn]], Iterator[Entry | Torn]]:
    """Hands entries on, with a bar on a terminal."""

    def counted(entries: Iterable[Entry | Torn]) -> Iterator[Entry | Torn]:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            yield from progress.track(entries, total=total, description=what)

    return counted
