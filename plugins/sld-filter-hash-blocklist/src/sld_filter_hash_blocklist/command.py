"""``sld hash-blocklist``: make lists of hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sldcore.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True)


@app.callback()
def blocklist() -> None:
    """Lists of known pictures for the filter hash-blocklist."""


@app.command()
def build(
    folder: Annotated[Path, typer.Argument(help="pictures, in this folder and those in it")],
    out: Annotated[Path, typer.Option(help="the list to write")],
    algorithm: Annotated[str, typer.Option(help="phash, dhash or ahash")] = "phash",
    side: Annotated[int, typer.Option(help="8, 16 or 32: hashes have its square in bits")] = 8,
    labels: Annotated[bool, typer.Option(help="put the pictures' names into the list")] = False,
) -> None:
    """Hash the pictures of a folder into a list."""
    from sld_filter_hash_blocklist.building import build_list

    built = build_list(folder, out, algorithm=algorithm, side=side, labels=labels)
    for path in built.plain:
        typer.echo(
            f"left out {path}: it is of one colour, and its hash would match every such picture", err=True
        )
    typer.echo(f"{built.hashes} hashes of {built.pictures} pictures in {out}")
    if not built.hashes:
        raise ConfigurationError(f"{folder} holds no picture that can be listed; give a folder with pictures")
