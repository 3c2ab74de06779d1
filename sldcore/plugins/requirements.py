"""Distributions: what a policy requires, what is installed, and which of the project's own provides what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement

from sldcore.contributions import ConceptProvider, GuidanceMethod, StepHookKind, WindowKind
from sldcore.errors import PluginError

KNOWN: Final[Mapping[tuple[str, str], str]] = {
    (GuidanceMethod.kind, "sega"): "sld-guidance-sega",
    (WindowKind.kind, "cosine-ramp"): "sld-schedules",
    (WindowKind.kind, "linear-ramp"): "sld-schedules",
    (WindowKind.kind, "noise-ramp"): "sld-schedules",
    (StepHookKind.kind, "step-recorder"): "sld-step-recorder",
    (ConceptProvider.kind, "example-heights"): "sld-concepts-example",
}
"""Kind and name to the distribution of this project that provides it."""


def installed_version(distribution: str) -> str | None:
    """The version of a distribution, None if it is not installed."""
    try:
        return version(distribution)
    except (PackageNotFoundError, ValueError):
        return None


def check_requirements(requirements: Sequence[str]) -> None:
    """Check that distributions are installed in these versions; those whose marker does not hold here are not looked at.

    Raises:
        PluginError: one cannot be checked: it is malformed, gives a URL, or has a marker with ``extra``; or some are
            not installed; the message says what is installed instead, and the pip command for all of them.
    """
    unmet = [(text, problem) for text in requirements if (problem := _unmet(text))]
    if unmet:
        wanted = " ".join(f"'{text}'" for text, _ in unmet)
        raise PluginError(f"{'; '.join(problem for _, problem in unmet)}; run `pip install {wanted}`")


def _unmet(text: str) -> str:
    try:
        wanted = Requirement(text)
    except InvalidRequirement as invalid:
        raise PluginError(
            f"{text!r} is not a requirement such as 'sld-guidance-sega>=1.0': {invalid}".replace("\n", " ")
        ) from None
    _refuse_unsupported(wanted, text)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return ""
    found = installed_version(wanted.name)
    if found is None:
        return f"'{text}' is required, and {wanted.name} is not installed"
    if not wanted.specifier.contains(found, prereleases=True):
        return f"'{text}' is required, and {wanted.name} {found} is installed"
    return ""


def _refuse_unsupported(wanted: Requirement, text: str) -> None:
    if wanted.url is not None:
        raise PluginError(
            f"{text!r} gives a URL, and where an installed distribution came from cannot be checked; "
            f"give versions, such as '{wanted.name}>=1.0'"
        )
    variables = re.sub(r"'[^']*'|\"[^\"]*\"", "", str(wanted.marker or ""))
    if re.search(r"\bextras?\b", variables):
        raise PluginError(
            f"{text!r} has a marker with 'extra', which never holds outside of a distribution's own metadata; "
            f"require '{wanted.name}' without it"
        )
