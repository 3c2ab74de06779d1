"""The files of one picture: itself, an animation if it is a video, and with --compare what guidance did to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from sldcore.cli.animation import save_webp, still
from sldcore.cli.generation_request import Picture, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import Image

    from sldcore.engine import SafetyEngine
    from sldcore.types import Result


def write_files(
    engine: SafetyEngine,
    request: Request,
    picture: Picture,
    sample: int,
    guided: Result,
    plain: Result,
    provenance: Mapping[str, Any],
) -> dict[str, str]:
    """Write the files of sample ``sample`` of a batch, the picture itself last; their names by role.

    ``plain`` is the same batch without guidance. Of a video, pictures show the frame in the middle.
    """
    from sldcore.provenance import FORMAT, json_text, png_metadata, report_document, save_png

    report = guided.reports[sample]
    own = {
        name: text for name, text in provenance.get("policies", {}).items() if name == report.policy_digest
    }
    source = {**provenance, "policies": own}
    info = png_metadata(report, source)
    sign: Callable[[bytes], bytes] = partial(engine.file_of, report=report, policy=picture.policy)
    drawn = _drawn(picture, sample, guided, plain)
    names = {role: name for role, name in picture.files.items() if role in drawn}
    if guided.video and drawn:
        account = json_text({"format": FORMAT, "picture": report_document(report), "provenance": source})
        save_webp(guided.images[sample], request.out / picture.video, request.fps, account, sign)
        names = {"video": picture.video, **names}
    for role, image in drawn.items():
        unguided = role == "unguided"
        of_plain = png_metadata(plain.reports[sample], plain.provenance) if unguided else info
        save_png(image, request.out / picture.files[role], of_plain, sign if role == "picture" else bytes)
    return names


def _drawn(picture: Picture, sample: int, guided: Result, plain: Result) -> dict[str, Image.Image]:
    """The picture's files by role, the picture itself last; a dropped picture has none."""
    from sldcore.visual import comparison_strip, curves, difference, enlarged, heat_overlay

    image, before = still(guided.images[sample]), still(plain.images[sample])
    if image is None:
        return {}
    if not picture.compare:
        return {"picture": image}
    if before is None:
        return {"curves": curves(guided.trace, sample), "picture": image}
    changed = difference(before, image)
    heat = guided.trace.heat[sample]
    panels = [
        (_named("unguided", plain, sample), before),
        (_named(f"guided by {picture.policy.name}", guided, sample), image),
        (f"difference x{changed.info['amplification']}", changed),
        (
            f"safety term (sum, max {heat.max():.3g})" if heat.any() else "safety term (none)",
            heat_overlay(enlarged(image), heat),
        ),
    ]
    return {
        "unguided": before,
        "difference": changed,
        "comparison": comparison_strip(panels, f"{picture.prompt} · seed {picture.seed}"),
        "curves": curves(guided.trace, sample),
        "picture": image,
    }


def _named(label: str, result: Result, sample: int) -> str:
    return f"{label} (withheld)" if result.reports[sample].withheld else label
