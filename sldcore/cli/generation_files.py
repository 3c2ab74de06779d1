"""The files of one picture: itself, an animation if it is a video, and with --compare what guidance did to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from sldcore.cli.animation import save_webp, still
from sldcore.cli.generation_account import gate_reason
from sldcore.cli.generation_request import Picture, Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL import Image

    from sldcore.engine import SafetyEngine
    from sldcore.types import Probe, Result, Trace


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
    from sldcore.provenance import probe_documents
    from sldcore.visual import comparison_strip, curves, difference, enlarged, heat_overlay

    image, before = still(guided.images[sample]), still(plain.images[sample])
    if image is None:
        return {}
    if not picture.compare:
        return {"picture": image}
    if before is None:
        return {"curves": curves(guided.trace, sample), "picture": image}
    changed = difference(before, image)
    panels = [
        (_named("unguided", plain, sample), before),
        (_named(_guided_by(picture, guided.reports[sample].probes), guided, sample), image),
        (_amplified(changed), changed),
        (_strength(guided.trace, sample), heat_overlay(enlarged(image), guided.trace.heat[sample])),
    ]
    title = f"{picture.prompt} · seed {picture.seed}"
    if reason := gate_reason(probe_documents(guided.reports[sample].probes)):
        title += f" · guidance {reason}"
    return {
        "unguided": before,
        "difference": changed,
        "comparison": comparison_strip(panels, title),
        "curves": curves(guided.trace, sample),
        "picture": image,
    }


def _amplified(changed: Image.Image) -> str:
    if not changed.getbbox():
        return "difference (none)"
    return f"difference x{changed.info['amplification']}"


def _strength(trace: Trace, sample: int) -> str:
    """Label of the heat map: how strong the safety term was, if the method made one."""
    heat = trace.heat[sample]
    if heat.any():
        return f"safety term (sum, max {heat.max():.3g})"
    unseen = trace.applied[sample].any() and not trace.evaluated[sample].any()
    return "safety term (no concept rows)" if unseen else "safety term (none)"


def _guided_by(picture: Picture, probes: Sequence[Probe]) -> str:
    spared = probes and not any(probe.guides for probe in probes)
    return f"{picture.policy.name}, not guided" if spared else f"guided by {picture.policy.name}"


def _named(label: str, result: Result, sample: int) -> str:
    return f"{label} (withheld)" if result.reports[sample].withheld else label
