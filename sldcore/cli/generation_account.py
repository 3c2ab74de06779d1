"""What the terminal says of finished pictures: a table, and why guidance acted or why a picture is not shown.

Everything is read from the entries of ``result.json``, so that pictures of an earlier run are described as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

Entry = Mapping[str, Any]
"""One picture of ``result.json``."""


def gate_reason(probes: Sequence[Mapping[str, Any]]) -> str:
    """Why a gate let guidance act on a picture, or did not; empty without a gate.

    Of several probes those that changed something; the one that came nearest where none did.
    """
    acted = [False, *(probe["guides"] for probe in probes)]
    told = [probe for before, probe in zip(acted, probes, strict=False) if probe["guides"] != before]
    if probes and not told:
        told = [max(probes, key=_highest)]
    again = "; made again, guided from the first step" if any(each["restarts"] for each in probes) else ""
    return "; then ".join(probe["reason"] for probe in told) + again


def _highest(probe: Mapping[str, Any]) -> float:
    return max((value for value in probe["relevance"].values() if value is not None), default=-1.0)


def table(pictures: Sequence[Entry]) -> Table:
    """One line per picture."""
    made = Table(header_style="bold", box=None, pad_edge=False)
    made.add_column("file", no_wrap=True)
    made.add_column("prompt", max_width=40, overflow="fold")
    for heading in ("seed", "policy", "outcome", "rows", "strongest concept"):
        made.add_column(heading, justify="right" if heading in ("seed", "rows") else "left", no_wrap=True)
    for picture in pictures:
        cells = (file_of(picture), picture["prompt"], str(picture["seed"]), picture["policy"])
        made.add_row(
            *map(escape, cells), _outcome(picture), _relative_rows(picture), escape(_strongest(picture))
        )
    return made


def file_of(picture: Entry) -> str:
    """Name of the picture's file."""
    return str(picture["files"].get("picture", "(dropped)"))


def why_guided(picture: Entry) -> str:
    """Why guidance acted on a picture or did not, if a gate decided; otherwise empty."""
    return gate_reason(picture.get("probes", ()))


def why_withheld(picture: Entry) -> str:
    """Why a picture is not shown: errors first, then what flagged it."""
    errors = [
        f"{failure['source']} {failure['version']}: {failure['error']}"
        + (f" (step {failure['step']})" if failure["step"] is not None else "")
        for failure in picture["errors"]
    ]
    flags = [
        f"{verdict['filter']} {verdict['version']}: {verdict['reason'] or 'flagged'}"
        for verdict in picture["verdicts"]
        if verdict["flagged"]
    ]
    return "; ".join(errors + flags) or str(picture["action"])


def _outcome(picture: Entry) -> str:
    if picture["withheld"]:
        return f"[bold red]withheld ({escape(picture['action'])})[/]"
    if picture["unreviewed"]:
        return "[bold yellow]shown unreviewed[/]"
    tries = f" (attempt {picture['attempts']})" if picture["attempts"] > 1 else ""
    return f"[yellow]flagged[/]{tries}" if picture["flagged"] else f"[green]shown[/]{tries}"


def _relative_rows(picture: Entry) -> str:
    """Denoiser rows as a multiple of what the picture costs without safety guidance."""
    return f"{picture['rows'] / picture['plain_rows']:.2f}x" if picture["plain_rows"] else "-"


def _strongest(picture: Entry) -> str:
    """The concept of the largest term; without its size where the method needs no concept rows."""
    acting = [concept for concept in picture["trace"] if concept["steps_applied"]]
    measured = [concept for concept in acting if concept["max_norm"]]
    if measured:
        strongest = max(measured, key=lambda concept: float(concept["max_norm"]))
        return f"{strongest['concept']} ({strongest['max_norm']:.2g})"
    without = [concept["concept"] for concept in acting if not concept["rows_evaluated"]]
    return f"{without[0]} (no rows)" if without else "-"
