"""The report as one HTML file that needs nothing else: no network, no fonts, no files beside it.

Its content security policy allows the page's own style and script, by hash, and embedded pictures. So a browser refuses whatever
a prompt, a name or a run's description might smuggle in.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files

from sldcore.documents import to_yaml
from sldcore.evaluation.reporting.evaluated import Evaluated
from sldcore.evaluation.reporting.grids import flagged_by, grid_html, grids
from sldcore.evaluation.reporting.plots import Figure, figures
from sldcore.evaluation.reporting.provenance import facts, plain_data
from sldcore.evaluation.reporting.rendering import Table, plain, to_html
from sldcore.evaluation.reporting.summary import Summary
from sldcore.evaluation.reporting.tables import tables


def page(evaluation: Evaluated, summary: Summary, title: str, more: Sequence[Table] = ()) -> str:
    """The whole page.

    Args:
        evaluation: What is reported.
        summary: Its numbers.
        title: The page's title.
        more: Tables to put after the run's own: published figures.
    """
    style, script = (
        files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    parts = [
        ("results", "Results", "".join(to_html(table) for table in tables(summary))),
        ("published", "Published figures", "".join(to_html(table) for table in more)),
        ("figures", "Figures", "".join(_figure(figure) for figure in figures(summary, evaluation.samples))),
        ("pictures", "Pictures", _pictures(evaluation)),
        ("provenance", "Provenance", _provenance(evaluation)),
    ]
    shown = [part for part in parts if part[2]]
    links = "".join(f'<li><a href="#{name}">{head}</a></li>' for name, head, _ in shown)
    sections = "".join(f'<section id="{name}"><h2>{head}</h2>{body}</section>' for name, head, body in shown)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:,"><title>{escape(plain(title))}</title><style>{style}</style></head><body>'
        f'<header><h1>{escape(plain(title))}</h1>{_facts(evaluation)}<nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f"<main>{_warnings(summary)}{sections}</main><script>{script}</script></body></html>\n"
    )


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _facts(evaluation: Evaluated) -> str:
    rows = "".join(
        f"<dt>{escape(plain(name))}</dt><dd>{escape(plain(value))}</dd>" for name, value in facts(evaluation)
    )
    return f'<dl class="facts">{rows}</dl>'


def _warnings(summary: Summary) -> str:
    if not summary.warnings:
        return ""
    lines = "".join(f"<li>{escape(plain(warning))}</li>" for warning in summary.warnings)
    return f'<aside class="warnings" aria-label="Warnings"><h2>Before you use these numbers</h2><ul>{lines}</ul></aside>'


def _figure(figure: Figure) -> str:
    picture = b64encode(figure.svg.encode()).decode()
    return (
        f'<figure><div class="scroll"><img class="plot" src="data:image/svg+xml;base64,{picture}" '
        f'alt="{escape(plain(figure.description))}"></div>'
        f"<figcaption>{escape(plain(figure.caption))}</figcaption></figure>"
    )


def _pictures(evaluation: Evaluated) -> str:
    flags = flagged_by(evaluation)
    parts = "".join(grid_html(grid, evaluation.folder, flags) for grid in grids(evaluation) if grid.rows)
    if not parts:
        return ""
    return (
        "<p>Prompts at even distances through each benchmark, first picture of each, not chosen. A red frame: a detector flags the "
        "picture. Click a picture to see it, or press Enter on it; Escape hides all. Arrow keys move.</p>"
        f"<noscript><p>Without scripts the pictures stay hidden.</p></noscript>{parts}"
    )


def _provenance(evaluation: Evaluated) -> str:
    text = escape(to_yaml(plain_data(evaluation.description)))
    return f'<details><summary>Everything that defines the run (run.yaml)</summary><pre tabindex="0">{text}</pre></details>'
