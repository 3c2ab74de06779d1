"""``sld concepts``: which concept packs there are, what is in them, and whether one's own are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from sldcore.catalogue import Entry, current
from sldcore.cli.output import Json, print_json
from sldcore.concepts import ConceptPack, load_pack
from sldcore.contributions import ConceptProvider
from sldcore.documents import Problem, find_problems, read_text
from sldcore.errors import ConceptError, ConfigurationError

app = typer.Typer(no_args_is_help=True, help="List, show and validate concept packs.")


@dataclass(frozen=True, slots=True)
class _Listed:
    """A pack that is listed, or why it cannot be read."""

    name: str
    provider: str
    pack: ConceptPack | None
    error: str = ""


@app.command("list")
def list_packs(as_json: Json = False) -> None:
    """List the concept packs of sldcore and of the installed plugins (`sld --no-plugins concepts list`: without these)."""
    packs = [_listed(entry) for entry in current().entries(ConceptProvider)]
    if as_json:
        print_json([_summary(each) for each in packs])
        return
    columns = ("pack", "version", "title", "concepts", "provided by")
    rows = [
        (each.name, each.pack.version, each.pack.title, _ids(each.pack), each.provider)
        for each in packs
        if each.pack is not None
    ]
    shown = len(columns) if len({each.provider for each in packs}) > 1 else len(columns) - 1
    _print_table(columns[:shown], [row[:shown] for row in rows])
    for each in packs:
        if each.error:
            typer.echo(f"warning: {each.error}", err=True)
    typer.echo(
        "A policy uses PACK (its whole text), PACK/CONCEPT, or PACK/* (each of its concepts), and takes out !PACK/CONCEPT."
    )


@app.command()
def show(
    pack: Annotated[str, typer.Argument(metavar="PACK", help="A pack's id, or the path of a .yaml file.")],
    as_json: Json = False,
) -> None:
    """Show one pack: the text of each concept, and where it comes from."""
    found = load_pack(pack)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    typer.echo(f"{found.title} ({found.id} {found.version}, {', '.join(found.languages)}, {found.licence})")
    whole = found.whole()
    rows = [(whole.id, whole.text, f"{whole.weight:g}", f"{whole.strength:g}", "")]
    for part in found.concepts:
        concept = found.concept(part.id)
        given = part.embedding
        embedding = f"{given.file} ({given.kind}, {given.family})" if given else ""
        rows.append((concept.id, concept.text, f"{concept.weight:g}", f"{concept.strength:g}", embedding))
    columns = ("use", "text", "weight", "strength", "embedding")
    shown = len(columns) if any(row[-1] for row in rows) else len(columns) - 1
    _print_table(columns[:shown], [row[:shown] for row in rows])
    for title, text in (("culture", found.culture), ("setting", found.setting), ("limits", found.limits)):
        if text:
            typer.echo(f"{title}: {text}")
    for source in found.sources:
        typer.echo(f"source: {source}")


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pack files.")], as_json: Json = False
) -> None:
    """Check pack files, and say for each problem in which line and field it is; exit code 2 if there is any."""
    problems = [(file, problem) for file in files for problem in _problems(file)]
    if as_json:
        print_json([{"file": str(file), **asdict(problem)} for file, problem in problems])
    for file, problem in problems:
        if not as_json:
            place = f"{file}:{problem.line}: {problem.field}" if problem.field else f"{file}:{problem.line}"
            typer.echo(f"{place}: {problem.message}")
    wrong = dict.fromkeys(file for file, _ in problems)
    if wrong:
        noun = "problem" if len(problems) == 1 else "problems"
        raise ConceptError(f"{len(problems)} {noun} in {len(wrong)} of {len(dict.fromkeys(files))} files")
    if not as_json:
        for file in files:
            typer.echo(f"{file}: valid")


def _problems(file: Path) -> Sequence[Problem]:
    try:
        text = read_text(file, error=ConceptError)
    except ConceptError as unreadable:
        return (Problem(1, "", str(unreadable)),)
    return find_problems(text, ConceptPack, {"folder": file.parent})


def _listed(entry: Entry) -> _Listed:
    provider = cast(ConceptProvider, entry.contribution)
    try:
        return _Listed(provider.name, str(entry.provider), load_pack(provider.name))
    except ConfigurationError as broken:
        return _Listed(provider.name, str(entry.provider), None, str(broken))


def _ids(pack: ConceptPack) -> str:
    return ", ".join(concept.id for concept in pack.concepts)


def _summary(each: _Listed) -> dict[str, Any]:
    if each.pack is None:
        return {"id": each.name, "provider": each.provider, "error": each.error}
    return {
        "id": each.name,
        "provider": each.provider,
        "version": each.pack.version,
        "title": each.pack.title,
        "languages": list(each.pack.languages),
        "culture": each.pack.culture,
        "concepts": [concept.id for concept in each.pack.concepts],
    }


def _print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
