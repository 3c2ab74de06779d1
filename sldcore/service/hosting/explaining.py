"""What is told of a picture beside the picture: its account, where and when guidance acted, and what it would be without."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sldcore import __version__
from sldcore.policy import Action, FilterUse, PromptFilterUse, SafetyPolicy
from sldcore.provenance import report_document, trace_summary
from sldcore.review import MARKED
from sldcore.service.hosting.png_files import png_bytes
from sldcore.types import Failure, Report, Trace
from sldcore.visual import enlarged, heat_overlay

RECORDED: Action = Action(do="flag")


def account_of(report: Report, trace: Trace, sample: int) -> dict[str, Any]:
    """Everything that is known of a picture, ready for JSON."""
    return {
        **report_document(report),
        "plain_rows": report.plain_rows,
        "trace": trace_summary(trace, sample, report.concepts),
    }


def failure_account(policy: SafetyPolicy, prompt: str, seed: int | None, error: str) -> dict[str, Any]:
    """The account of a picture that could not be made."""
    failure = Failure("service", __version__, error)
    report = Report(prompt, seed, policy.name, policy.digest, {}, errors=(failure,), action="block")
    return {**report_document(report), "plain_rows": 0, "trace": []}


def heat_of(picture: Image.Image | None, report: Report, heat: NDArray[np.float32]) -> bytes | None:
    """Where guidance acted, as a PNG over what is shown of the picture.

    None if nothing of it is shown, or guidance added no term to it.
    """
    if picture is None or report.action not in MARKED or not np.nan_to_num(heat).any():
        return None
    return png_bytes(heat_overlay(enlarged(picture), heat))


def curves_of(trace: Trace, sample: int, report: Report) -> dict[str, dict[str, list[float | None]]]:
    """For each concept of the picture its term's norm and its relevance at every step, None where it was not evaluated."""
    return {
        name: {
            "norm": _numbers(trace.norm[sample, number]),
            "relevance": _numbers(trace.relevance[sample, number]),
        }
        for number, name in enumerate(trace.concepts)
        if name.partition("#")[0] in report.concepts or trace.evaluated[sample, number].any()
    }


def recording(policy: SafetyPolicy) -> SafetyPolicy:
    """The policy without its guidance, whose filters of pictures record what they find and do nothing about it.

    Prompt filters act as they do: of a prompt that may not be drawn, nothing is. Filters that fail withhold the picture.
    """
    plain = policy.unguided
    return plain.replace(
        name=f"{policy.name}, unguided",
        on_error="block",
        prompt_filters=tuple(map(_not_raising, plain.prompt_filters)),
        filters=tuple(
            use.model_copy(update={"on_flag": RECORDED, "on_error": _blocks(use)}) for use in plain.filters
        ),
    )


def _not_raising(use: PromptFilterUse) -> PromptFilterUse:
    on_flag = "black" if use.on_flag == "raise" else use.on_flag
    return use.model_copy(update={"on_flag": on_flag, "on_error": _blocks(use)})


def _blocks(use: PromptFilterUse | FilterUse) -> str | None:
    return "block" if use.on_error == "raise" else use.on_error


def _numbers(values: NDArray[np.float32]) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
