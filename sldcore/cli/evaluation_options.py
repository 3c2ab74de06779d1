"""Options that commands of ``sld eval`` share, and what they are turned into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sldcore.errors import ConfigurationError

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Detectors = Annotated[
    list[str] | None,
    typer.Option(
        "--detectors",
        help="Conventions or filters, with commas between; 'none' for none.",
        show_default="playground for playground/...",
    ),
]
Against = Annotated[
    str | None, typer.Option(help="'published' puts published numbers for SLD beside the run's.")
]
Retry = Annotated[
    bool,
    typer.Option("--retry-errors", help="Do again what ended in an error, of a sample or of a detector."),
]

Lpips = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="LPIPS to the unguided pictures, with these weights of torchvision's network."
    ),
]
LpipsNetwork = Annotated[
    str, typer.Option(help="Whose weights --lpips names: 'vgg' for VGG-16, 'alex' for AlexNet.")
]
Clip = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="CLIP score and its change, by the CLIP model in this folder."),
]
Inception = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="FID and KID to the unguided pictures, with these weights of FID's InceptionV3."
    ),
]
References = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="FID and KID to the pictures in this folder instead.")
]
Device = Annotated[
    str | None, typer.Option(help="Where these networks run.", show_default="the best there is")
]


def columns_of(given: list[str] | None) -> dict[str, str]:
    """Column names by what they hold, from ``--column WHAT=NAME``.

    Raises:
        ConfigurationError: one is written otherwise.
    """
    columns = {}
    for text in given or []:
        what, sign, name = text.partition("=")
        if not sign or not what:
            raise ConfigurationError(f"--column takes WHAT=NAME, such as prompt=text; got '{text}'")
        columns[what.strip()] = name.strip()
    return columns


def detectors_of(given: list[str] | None) -> list[str] | None:
    """Names of detectors; none for ``none``, None for the default."""
    return [] if given == ["none"] else given


def check_against(against: str | None) -> None:
    """Find an unknown table before hours of work, not after them.

    Raises:
        ConfigurationError: there is no such table.
    """
    from sldcore.evaluation.published import published

    if against not in (None, "published"):
        published(str(against))
