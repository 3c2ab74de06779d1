"""``sld filters``: which filters there are, and what a policy's filters say of existing pictures."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from pydantic.errors import PydanticInvalidForJsonSchema

from sldcore.catalogue import Entry, current
from sldcore.cli.policy import find_policy
from sldcore.contributions import Contribution, MarkKind, PostFilterKind, PromptFilterKind
from sldcore.errors import ConfigurationError

if TYPE_CHECKING:
    from sldcore.filters.contact_sheet import ContactSheets
    from sldcore.filters.file_review import FileReview, Reviewed

FORMAT: Final = 1
"""Version of the layout of ``review.json``."""

REVIEW_FILE: Final = "review.json"
KINDS: Final[tuple[type[Contribution], ...]] = (PostFilterKind, PromptFilterKind, MarkKind)
FAILED: Final = 1
FLAGGED: Final = 3
INTERRUPTED: Final = 130

app = typer.Typer(no_args_is_help=True, help="List filters, and review existing pictures with them.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]


@app.command("list")
def list_filters(as_json: Json = False) -> None:
    """List filters of pictures, filters of prompts and marks, with their options and who provides them."""
    with redirect_stdout(sys.stderr):  # what plugins print while they load is no part of the list
        entries = [entry for kind in KINDS for entry in current().entries(kind)]
    if as_json:
        typer.echo(json.dumps([_described(entry) for entry in entries], indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "name", "what it does", "options", "provider"):
        table.add_column(heading, no_wrap=heading in ("kind", "name"))
    for entry in entries:
        own = entry.contribution
        cells = (own.kind, own.name, own.description, "\n".join(_options(own)), str(entry.provider))
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)


@app.command()
def run(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, and folders with all that is in them.")
    ],
    policy: Annotated[
        str,
        typer.Option(help="YAML file (or preset) whose filters review; its marks and prompt filters do not."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for contact sheets and review.json.")] = Path("review"),
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures of one size reviewed together.")] = 8,
    as_json: Json = False,
) -> None:
    """Review existing pictures with a policy's filters: the chain that reviews what is generated.

    Writes contact-sheet.png (contact-sheet-2.png, ... for more than 120 pictures), where pictures that were flagged, or
    could not be reviewed, are blurred beyond recognition and framed red; and review.json. Files of an earlier review are replaced;
    the reviewed ones are never changed.

    Every frame of a file is reviewed, and what is transparent on white and on black. A file that cannot be read, has too
    many pixels, or whose filter fails has failed, whatever on_error says.

    Exit codes:
    0 nothing was flagged
    1 something could not be reviewed, or written
    2 bad input, nothing reviewed
    3 everything was reviewed, and something was flagged
    130 interrupted
    """
    try:
        _run(images, policy, out, batch_size, as_json)
    except OSError as problem:
        typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: the review is not complete", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _run(images: list[Path], policy: str, out: Path, batch_size: int, as_json: bool) -> None:
    found = find_policy(policy)
    from sldcore.filters.contact_sheet import ContactSheets, sheets_in
    from sldcore.filters.file_review import FileReview
    from sldcore.filters.picture_files import find_pictures
    from sldcore.provenance import json_text, write_json

    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out} is a file; give a folder with --out")
    files, others = find_pictures(images, leave_out=sheets_in(out))
    with redirect_stdout(sys.stderr):
        review = FileReview(found)
        out.mkdir(parents=True, exist_ok=True)
        sheets = ContactSheets(out, f"policy {found.name}")
        rows: list[dict[str, Any]] = []
        for _, views in groupby(_with_progress(review, files, batch_size), key=lambda each: each.file):
            _note(list(map(partial(_small, rows), views)), sheets)
        sheets.finish()
    document = _document(review, rows, others, sheets.files)
    write_json(out / REVIEW_FILE, document)
    if as_json:
        typer.echo(json_text(document, indent=2))
    else:
        _print(document, out)
    counts = document["counts"]
    if counts["failed"] or counts["flagged"]:
        raise typer.Exit(FAILED if counts["failed"] else FLAGGED)


def _with_progress(review: FileReview, files: Sequence[Path], batch_size: int) -> Iterator[Reviewed]:
    """What is reviewed, with a bar that counts files."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reviewing", total=len(files))
        seen: set[Path] = set()
        for each in review.files(files, batch_size):
            seen.add(each.file)
            progress.update(task, completed=len(seen))
            yield each


def _small(rows: list[dict[str, Any]], reviewed: Reviewed) -> Reviewed:
    """The review with as much of the picture as a sheet shows; all that is said of it goes to ``rows``."""
    from sldcore.filters.contact_sheet import contained

    rows.append(_row(reviewed))
    return reviewed if reviewed.picture is None else replace(reviewed, picture=contained(reviewed.picture))


def _note(views: Sequence[Reviewed], sheets: ContactSheets) -> None:
    """Put all pictures of one file on the sheet. None is shown if one may not be: they may differ in little."""
    from sldcore.filters.contact_sheet import tile

    flagged = ", ".join(dict.fromkeys(name for view in views for name in view.categories))
    failed = "not reviewed" if any(view.outcome == "failed" for view in views) else ""
    for view in views:
        unreadable = "cannot be read" if view.picture is None else ""
        sheets.add(view.name, tile(view.picture, unreadable or flagged or failed))


def _row(reviewed: Reviewed) -> dict[str, Any]:
    """All that ``review.json`` says of one picture."""
    from sldcore.provenance import report_document

    report = report_document(reviewed.report)
    picture = reviewed.picture
    return {
        "file": str(reviewed.file),
        "view": reviewed.view,
        "size": None if picture is None else list(picture.size),
        "outcome": reviewed.outcome,
        "categories": list(reviewed.categories),
        "action": report["action"],
        "verdicts": report["verdicts"],
        "errors": report["errors"],
    }


def _document(
    review: FileReview, rows: list[dict[str, Any]], others: Sequence[Path], sheets: list[str]
) -> dict[str, Any]:
    from sldcore.provenance import library_versions

    counts = Counter(row["outcome"] for row in rows)
    return {
        "format": FORMAT,
        "policy": review.policy.name,
        "policy_digest": review.policy.digest,
        "counts": {name: counts[name] for name in ("clean", "flagged", "failed")},
        "pictures": rows,
        "no_pictures": [str(file) for file in others],
        "sheets": sheets,
        "versions": library_versions(),
    }


def _print(document: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"clean": "green", "flagged": "bold red", "failed": "bold red"}
    table = Table("file", "outcome", "action", "highest score", "why", box=None, pad_edge=False)
    for row in document["pictures"]:
        name = f"{row['file']} ({row['view']})" if row["view"] else row["file"]
        outcome = Text(row["outcome"], colours[row["outcome"]])
        table.add_row(
            Text(name, overflow="fold"),
            outcome,
            row["action"],
            _highest(row),
            Text(_why(row), overflow="fold"),
        )
    console = Console()
    console.print(table)
    counts = ", ".join(f"{count} {name}" for name, count in document["counts"].items())
    console.print(
        Text(f"{counts}; in {out}: {', '.join([*document['sheets'], REVIEW_FILE])}"), soft_wrap=True
    )
    if others := document["no_pictures"]:
        console.print(
            Text(f"{len(others)} other files are no pictures and were not looked at"), soft_wrap=True
        )


def _highest(row: dict[str, Any]) -> str:
    scores = [(score, name) for verdict in row["verdicts"] for name, score in verdict["scores"].items()]
    return "{1} {0:.2f}".format(*max(scores)) if scores else "-"


def _why(row: dict[str, Any]) -> str:
    """What failed, and which filters flagged; those that only watch in brackets."""
    errors = [f"{error['source']} {error['version']}: {error['error']}" for error in row["errors"]]
    flags = [
        f"({verdict['filter']}: flagged, only watching)"
        if verdict["shadow"]
        else f"{verdict['filter']}: {_reason(verdict)}"
        for verdict in row["verdicts"]
        if verdict["flagged"]
    ]
    return "; ".join(errors + flags)


def _reason(verdict: dict[str, Any]) -> str:
    above = [
        f"{name} {verdict['scores'][name]:.2f} >= {limit:g}"
        for name, limit in verdict["thresholds"].items()
        if verdict["scores"].get(name, 0) >= limit
    ]
    return ", ".join(above) or verdict["reason"] or "flagged"


def _described(entry: Entry) -> dict[str, Any]:
    own = entry.contribution
    return {
        "kind": own.kind,
        "name": own.name,
        "description": own.description,
        "provider": str(entry.provider),
        "distribution": entry.provider.distribution,
        "version": entry.provider.version,
        "before": list(getattr(own, "before", ())),
        "after": list(getattr(own, "after", ())),
        "options": _schema(own),
    }


def _schema(contribution: Contribution) -> dict[str, Any]:
    """The JSON schema of the options; names alone where they have a type that JSON has not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # defaults that JSON has not are left out
            return contribution.options.model_json_schema()
    except PydanticInvalidForJsonSchema:
        return {"type": "object", "properties": {name: {} for name in contribution.options.model_fields}}


def _options(contribution: Contribution) -> Iterator[str]:
    schema = _schema(contribution)
    for name, each in schema.get("properties", {}).items():
        required = name in schema.get("required", ())
        yield name + (
            " (required)" if required else f" = {json.dumps(each['default'])}" if "default" in each else ""
        )
