"""Pictures as PNG files for clients: with the account of how they were made, and without what people wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any, Final

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sldcore.provenance import png_metadata
from sldcore.types import Failure, Report, Verdict

OWN: Final = "custom/"
"""What the ids of concepts begin with that a policy brings as a text; the text follows."""


def png_bytes(picture: Image.Image, info: PngInfo | None = None) -> bytes:
    """A picture as a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def with_account(picture: Image.Image, report: Report, provenance: Mapping[str, Any]) -> bytes:
    """A picture as a PNG file that says how it was made.

    A picture is passed on to people who have no business with what its maker wrote. So the file holds no prompt, no words of
    filters and failures, which may quote it, and nothing of a client's own policy but its digest: no name, no concept of its own,
    and not what a gate saw of these.
    """
    return png_bytes(picture, png_metadata(_without_words(report), provenance))


def _without_words(report: Report) -> Report:
    return replace(
        report,
        prompt="",
        policy="",
        concepts={name: () for name in report.concepts if not name.startswith(OWN)},
        probes=(),
        verdicts=tuple(map(_wordless, report.verdicts)),
        errors=tuple(
            Failure(each.source, each.version, "", each.step, each.on_error) for each in report.errors
        ),
        earlier=tuple(
            replace(attempt, policy="", verdicts=tuple(map(_wordless, attempt.verdicts)))
            for attempt in report.earlier
        ),
    )


def _wordless(verdict: Verdict) -> Verdict:
    return replace(verdict, reason="")
