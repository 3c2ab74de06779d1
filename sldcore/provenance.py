"""Where a picture came from: PNG metadata and JSON documents that say how to make it again.

A PNG carries the whole account as JSON in its text chunk ``sldcore``, and the main points as readable chunks of
their own. ``result_document`` is the same account for a whole result. JSON is strict: what is not a finite number
is null.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from os import PathLike
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sldcore import __version__
from sldcore.documents import write_bytes_atomically, write_text_atomically
from sldcore.types import Probe, Report, Result, Trace, Verdict

FORMAT: Final = 1
"""Version of the layout of the documents written here."""

CHUNK: Final = "sldcore"
"""Keyword of the PNG text chunk that holds the whole account."""

_LIBRARIES: Final = (
    "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pillow",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a picture, from their metadata: nothing is imported.

    They are read once: what is installed while a process runs is not what it uses.
    """
    return {
        "sldcore": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _LIBRARIES},
    }


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def png_metadata(report: Report, provenance: Mapping[str, Any]) -> PngInfo:
    """The text chunks of one picture: ``sldcore`` (JSON, whole) and prompt, seed, model and so on, for people."""
    account = {"format": FORMAT, "picture": report_document(report), "provenance": _json_ready(provenance)}
    concepts = "; ".join(f"{name}: {' | '.join(texts)}" for name, texts in report.concepts.items())
    versions = provenance.get("versions", {})
    readable = {
        "prompt": report.prompt,
        "seed": "random" if report.seed is None else str(report.seed),
        "model": str(provenance.get("model", "unknown")),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "policy": report.policy,
        "policy_digest": report.policy_digest,
        "concepts": concepts or "none",
        "action": report.action,
    }
    info = PngInfo()
    for key, text in readable.items():
        info.add_text(key, text.replace("\0", "\N{REPLACEMENT CHARACTER}"))
    info.add_text(CHUNK, json_text(account))
    return info


def read_metadata(path: str | PathLike[str]) -> dict[str, Any] | None:
    """What ``png_metadata`` wrote into a PNG, or None if the file is no picture of ours."""
    try:
        with Image.open(path) as image:
            image.load()  # chunks may follow the pixels
            account = json.loads(image.info[CHUNK])
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        SyntaxError,
    ):  # SyntaxError is Pillow's for a broken PNG
        return None
    known = isinstance(account, dict) and account.get("format") == FORMAT
    complete = known and all(isinstance(account.get(part), dict) for part in ("picture", "provenance"))
    return account if complete else None


def save_png(
    image: Image.Image,
    path: str | PathLike[str],
    info: PngInfo | None = None,
    finish: Callable[[bytes], bytes] = bytes,
) -> None:
    """Write a PNG in one piece: a reader sees the old file or the whole new one. Missing folders are made.

    ``finish`` is given the file's content and returns what is written: signatures belong there.
    """
    buffer = BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    write_bytes_atomically(path, finish(buffer.getvalue()))


def report_document(report: Report) -> dict[str, Any]:
    """Everything a report says, ready for JSON; ``asked`` are seed and policy of the first attempt."""
    first = report.earlier[0] if report.earlier else report
    return {
        "prompt": report.prompt,
        "seed": report.seed,
        "policy": report.policy,
        "policy_digest": report.policy_digest,
        "concepts": {name: list(texts) for name, texts in report.concepts.items()},
        "action": report.action,
        "flagged": report.flagged,
        "withheld": report.withheld,
        "unreviewed": report.unreviewed,
        "marks": list(report.marks),
        "attempts": report.attempts,
        "asked": {"seed": first.seed, "policy_digest": first.policy_digest},
        "earlier": [
            {
                "seed": attempt.seed,
                "policy": attempt.policy,
                "policy_digest": attempt.policy_digest,
                "verdicts": [_verdict_document(verdict) for verdict in attempt.verdicts],
            }
            for attempt in report.earlier
        ],
        "rows": report.rows,
        "probes": probe_documents(report.probes),
        "verdicts": [_verdict_document(verdict) for verdict in report.verdicts],
        "errors": [
            {
                "source": failure.source,
                "version": failure.version,
                "error": failure.error,
                "step": failure.step,
                "on_error": failure.on_error,
            }
            for failure in report.errors
        ],
    }


def probe_documents(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """What a gate saw of one picture, ready for JSON: a relevance that is no finite number is null."""
    return [
        {
            "step": probe.step,
            "relevance": _json_ready(probe.relevance),
            "threshold": probe.threshold,
            "guides": probe.guides,
            "restarts": probe.restarts,
            "reason": probe.reason,
        }
        for probe in probes
    ]


def _verdict_document(verdict: Verdict) -> dict[str, Any]:
    return {
        "filter": verdict.filter,
        "version": verdict.version,
        "flagged": bool(verdict.flagged),
        "scores": _json_ready(verdict.scores),
        "thresholds": _json_ready(verdict.thresholds),
        "reason": verdict.reason,
        "boxes": [_json_ready(asdict(box)) for box in verdict.boxes],
        "weights": verdict.weights,
        "seconds": round(verdict.seconds, 6),
        "shadow": verdict.shadow,
    }


def result_document(result: Result, files: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """A whole result, ready for JSON.

    Args:
        result: What the engine returned.
        files: For each picture its files by role, relative to the document: ``picture``, and whatever else there is
            (``comparison``, ``curves``).

    Returns:
        ``format``; ``pictures``, each with files, report, the denoiser rows it would cost unguided and a trace summary per concept;
        ``timesteps``; ``provenance``.
    """
    pictures = [
        {
            "files": dict(names),
            **report_document(report),
            "plain_rows": report.plain_rows,
            "trace": trace_summary(result.trace, sample, report.concepts),
        }
        for sample, (report, names) in enumerate(zip(result.reports, files, strict=True))
    ]
    return {
        "format": FORMAT,
        "pictures": pictures,
        "timesteps": _json_ready(result.trace.timesteps),
        "provenance": _json_ready(result.provenance),
    }


def trace_summary(trace: Trace, sample: int, concepts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each concept did to one sample: those in ``concepts`` (its own), and any that was evaluated for it.

    Parts of a concept that is longer than the text encoder's window stand alone, as ``id#1``, ``id#2``.
    """
    return [
        {
            "concept": name,
            "rows_evaluated": int(trace.evaluated[sample, k].sum()),
            "steps_applied": int(trace.applied[sample, k].sum()),
            "first_step_acted": _first(trace.applied[sample, k] & (trace.active[sample, k] > 0)),
            "max_norm": _over(np.max, trace.norm[sample, k]),
            "mean_relevance": _over(np.mean, trace.relevance[sample, k]),
        }
        for k, name in enumerate(trace.concepts)
        if name.partition("#")[0] in concepts or trace.evaluated[sample, k].any()
    ]


def json_text(document: Any, *, indent: int | None = None) -> str:
    """Strict JSON: what is not a finite number is null."""
    return json.dumps(_json_ready(document), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: str | PathLike[str], document: Any) -> None:
    """Write strict JSON in one piece, indented for people. Missing folders are made."""
    write_text_atomically(path, json_text(document, indent=2) + "\n")


def _first(flags: NDArray[np.bool_]) -> int | None:
    return int(np.argmax(flags)) if flags.any() else None


def _over(reduce: Any, values: NDArray[np.float32]) -> float | None:
    known = values[np.isfinite(values)].astype(np.float64)
    return float(reduce(known)) if known.size else None


def _json_ready(value: Any) -> Any:
    """Plain JSON data: numpy becomes Python's, non-finite numbers null, keys text, and what is left its ``str``."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _json_ready(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_ready(part) for part in value]
    return str(value)
