"""``sld concepts``: which concept packs there are, and what is in them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sldcore.concepts import ConceptPack, load_pack, pack_ids

app = typer.Typer(no_args_is_help=True, help="List and show concept packs.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_packs(as_json: Json = False) -> None:
    """List the concept packs that come with sldcore."""
    packs = [load_pack(name) for name in pack_ids()]
    if as_json:
        _print_json([_summary(pack) for pack in packs])
        return
    _print_table(
        ("pack", "version", "title", "concepts"),
        [(pack.id, pack.version, pack.title, ", ".join(each.id for each in pack.concepts)) for pack in packs],
    )
    typer.echo("A policy uses PACK (its whole text), PACK/CONCEPT, or PACK/* (each of its concepts).")


@app.command()
def show(
    pack: Annotated[str, typer.Argument(metavar="PACK", help="A pack's id, or the path of a .yaml file.")],
    as_json: Json = False,
) -> None:
    """Show one pack: the text of each concept, and where it comes from."""
    found = load_pack(pack)
    if as_json:
        _print_json(found.model_dump(mode="json"))
        return
    whole = found.whole()
    typer.echo(f"{found.title} ({found.id} {found.version}, {', '.join(found.languages)}, {found.licence})")
    _print_table(
        ("use", "text", "weight"),
        [(each.id, each.text, f"{each.weight:g}") for each in (whole, *map(found.concept, _names(found)))],
    )
    for title, text in (("setting", found.setting), ("limits", found.limits)):
        if text:
            typer.echo(f"{title}: {text}")
    for source in found.sources:
        typer.echo(f"source: {source}")


def _names(pack: ConceptPack) -> list[str]:
    return [concept.id for concept in pack.concepts]


def _summary(pack: ConceptPack) -> dict[str, Any]:
    return {
        "id": pack.id,
        "version": pack.version,
        "title": pack.title,
        "languages": list(pack.languages),
        "concepts": _names(pack),
    }


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
