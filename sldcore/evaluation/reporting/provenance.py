"""Where a report's numbers come from, for people: the main points of the run's description, its benchmarks and its detectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sldcore.evaluation.reporting.evaluated import Evaluated, described, instruments, networks_of
from sldcore.evaluation.reporting.tables import identity


def facts(evaluation: Evaluated) -> Iterator[tuple[str, str]]:
    """Names and values for the head of a report; what the description does not say is left out."""
    settings = evaluation.description.get("settings")
    yield from _settings(settings if isinstance(settings, Mapping) else {})
    for entry, benchmark in zip(_entries(evaluation), evaluation.benchmarks, strict=True):
        parts = [identity(benchmark), *([f"{entry['items']} items"] if entry.get("items") else [])]
        yield (
            "benchmark",
            ", ".join([*parts, *([f"licence {benchmark.licence}"] if benchmark.licence else [])]),
        )
    for instrument in instruments(evaluation.scores):
        yield "detector", instrument.label
    for network in networks_of(evaluation):
        yield "measure", network.label
    for method in described(evaluation.description, "methods"):
        arguments = method.get("arguments") or {}
        beside = "".join(f", {name}: {value}" for name, value in arguments.items())
        yield "method", f"{method.get('name')} (policy {str(method.get('digest', 'unknown'))[:12]}{beside})"


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if settings.get("model"):
        beside = [
            f"{part} {str(settings[part])[:12]}" for part in ("revision", "weights") if settings.get(part)
        ]
        yield "model", " ".join([str(settings["model"]), f"({', '.join(beside)})" if beside else ""]).strip()
    names = ("scheduler", "steps", "guidance_scale", "images", "dtype", "device")
    values = [
        f"{name.replace('_', ' ')} {settings[name]}" for name in names if settings.get(name) is not None
    ]
    if settings.get("own_guidance"):
        values.append("rows that bring a guidance scale use it")
    if settings.get("width") and settings.get("height"):
        values.append(f"{settings['width']} x {settings['height']} pixels")
    if values:
        yield "settings", ", ".join(values)
    if isinstance(versions := settings.get("versions"), Mapping) and versions:
        yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items())


def _entries(evaluation: Evaluated) -> Iterator[Mapping[str, Any]]:
    """What the description says of each benchmark."""
    entries = {entry.get("name"): entry for entry in described(evaluation.description, "benchmarks")}
    return (entries.get(benchmark.name, {}) for benchmark in evaluation.benchmarks)


def plain_data(value: Any) -> Any:
    """A description as what YAML can hold: mappings, lists, texts and numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain_data(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(part) for part in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
