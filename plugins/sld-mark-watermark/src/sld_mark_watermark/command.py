"""``sld watermark``: look for marks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sld_mark_watermark import PAYLOAD, WatermarkOptions
from sldcore.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True)


@app.callback()
def watermark() -> None:
    """Invisible watermarks in pictures."""


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="pictures")],
    payload: Annotated[str, typer.Option(help="what they should hold")] = PAYLOAD,
) -> None:
    """Say which pictures hold the watermark; exit code 1 if one does not."""
    from PIL import Image
    from pydantic import ValidationError

    from sld_mark_watermark.watermark import agreement, needed
    from sldcore.documents import describe_invalid

    try:
        wanted = WatermarkOptions(payload=payload).payload.encode()
    except ValidationError as invalid:
        raise ConfigurationError(describe_invalid("--payload", invalid)) from None
    marked = []
    for file in files:
        try:
            with Image.open(file) as picture:
                share = agreement(picture, wanted)
        except (OSError, ValueError) as problem:
            raise ConfigurationError(f"cannot look for a watermark in {file}: {problem}") from None
        marked.append(share >= needed(wanted))
        typer.echo(f"{file}: {'marked' if marked[-1] else 'not marked'} ({share:.0%} of the bits)")
    raise typer.Exit(0 if all(marked) else 1)
