"""What commands have in common that print JSON."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(content: Any) -> None:
    """Print indented JSON."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
