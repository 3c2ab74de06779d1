"""Published figures of Safe Latent Diffusion, with what is known of how they were measured.

Figures of different protocols cannot be compared: the share of explicit pictures of one preset (Max, I2P) is 1.6 % in one paper and 11.5 % in
another with the same model. So each table carries its protocol, and ``differences`` says where a run's differs or is not known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Final

from sldcore.errors import ConfigurationError, listed, nearest

I2P_ROWS: Final = MappingProxyType(
    {"hate": 231, "harassment": 824, "violence": 756, "self-harm": 801, "sexual": 931, "shocking": 856,
     "illegal-activity": 727}
)  # fmt: skip
"""Rows of I2P per category; 4,703 in all, of which 379 have several."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How figures were measured; None where the source does not say, or a run does not fix it."""

    benchmark: str | None = None
    prompts: int | None = None
    pictures_per_prompt: int | None = None
    model: str | None = None
    detector: str | None = None
    guidance_scale: float | None = None
    steps: int | None = None
    scheduler: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """One published table.

    ``values`` maps row (category, attack or measure) and method to the figure in ``unit``; ``spreads`` has the figures after "±", where there
    are any. Methods have the names that this project uses: ``off`` is the unguided model.
    """

    name: str
    title: str
    source: str
    metric: str
    unit: str
    protocol: Protocol
    methods: tuple[str, ...]
    values: Mapping[str, Mapping[str, float]]
    spreads: Mapping[str, Mapping[str, float]]
    note: str = ""

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows, in the table's order."""
        return tuple(self.values)


def published(name: str) -> Published:
    """A table by its name.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in TABLES:
        raise ConfigurationError(
            f"no published table '{name}'{nearest(name, TABLES)} (available: {listed(TABLES)})"
        )
    return TABLES[name]


def differences(table: Published, run: Protocol) -> tuple[str, ...]:
    """Where the protocol of a run is not that of a published table, or one of them is not known, in words for a warning."""
    found = []
    for field in fields(Protocol):
        theirs, ours = getattr(table.protocol, field.name), getattr(run, field.name)
        what = field.name.replace("_", " ")
        if theirs is None:
            found.append(f"{what}: not published, {_said(ours)} here")
        elif ours is None:
            found.append(f"{what}: {_said(theirs)} published, unknown here")
        elif not _alike(theirs, ours):
            found.append(f"{what}: {_said(theirs)} published, {_said(ours)} here")
    return tuple(found)


def _said(value: object) -> str:
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _alike(theirs: object, ours: object) -> bool:
    if isinstance(theirs, int | float) and isinstance(ours, int | float):
        return math.isclose(theirs, ours)
    return theirs == ours


def _table(
    methods: tuple[str, ...], rows: Mapping[str, tuple[float | None, ...]]
) -> Mapping[str, Mapping[str, float]]:
    """Rows of figures as mappings; None is a figure that the source does not give."""
    return MappingProxyType(
        {
            row: MappingProxyType(
                {method: value for method, value in zip(methods, figures, strict=True) if value is not None}
            )
            for row, figures in rows.items()
        }
    )


_SD14: Final = "Stable Diffusion 1.4"
_NOTHING: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType({})
_PRESETS: Final = ("off", "weak", "medium", "strong", "max")

MODEL_CARD: Final = Published(
    name="model-card",
    title="Inappropriate probability on I2P",
    source="model card of AIML-TUDA/stable-diffusion-safe",
    metric="ip",
    unit="share",
    protocol=Protocol("i2p", 4703, 10, _SD14, "q16-or-nudenet"),
    methods=_PRESETS,
    values=_table(
        _PRESETS,
        {
            "hate": (0.40, 0.27, 0.20, 0.15, 0.09),
            "harassment": (0.34, 0.24, 0.17, 0.13, 0.09),
            "violence": (0.43, 0.36, 0.23, 0.17, 0.14),
            "self-harm": (0.40, 0.27, 0.16, 0.10, 0.07),
            "sexual": (0.35, 0.23, 0.14, 0.09, 0.06),
            "shocking": (0.52, 0.41, 0.30, 0.20, 0.13),
            "illegal-activity": (0.34, 0.23, 0.14, 0.09, 0.06),
            "overall": (0.39, 0.29, 0.19, 0.13, 0.09),
        },
    ),
    spreads=_NOTHING,
    note="weak is the card's, with scale 200; diffusers' preset of that name has 20 (weak-diffusers here)",
)

_RERUN_ROWS: Final = ("off", "medium", "strong", "max")

RERUN: Final = Published(
    name="i2p-readme-ip",
    title="Inappropriate probability on I2P, the authors' second run",
    source="README of ml-research/i2p",
    metric="ip",
    unit="%",
    protocol=Protocol("i2p", 4703, 10, _SD14, "q16-or-nudenet"),
    methods=_RERUN_ROWS,
    values=_table(_RERUN_ROWS, {"sexual": (28.54, 14.97, 4.83, 1.62), "overall": (37.75, None, 11.60, None)}),
    spreads=_NOTHING,
    note="for sexual, the authors' two runs differ by 0.04 to 0.07 (0.35 and 0.285 unguided, 0.09 and 0.048 with strong)",
)

RERUN_MAXIMUM: Final = Published(
    name="i2p-readme-maximum",
    title="Expected maximum inappropriateness of 25 prompts on I2P, the authors' second run",
    source="README of ml-research/i2p",
    metric="expected maximum",
    unit="%",
    protocol=Protocol("i2p", 4703, 10, _SD14, "q16-or-nudenet"),
    methods=_RERUN_ROWS,
    values=_table(_RERUN_ROWS, {"sexual": (86.6, 71.7, 39.4, 17.3), "overall": (97.1, None, 68.8, None)}),
    spreads=_table(_RERUN_ROWS, {"sexual": (11.5, 17.3, 17.6, 9.3), "overall": (6.2, None, 20.8, None)}),
    note="± is the spread of the maximum over draws, not a standard error",
)

_STEERED: Final = ("off", "medium", "strong", "max", "negative")

CONCEPT_STEERERS: Final = Published(
    name="concept-steerers",
    title="Share of prompts with an explicit picture",
    source="paper on Concept Steerers, table of attacks",
    metric="attack success",
    unit="%",
    protocol=Protocol(model=_SD14, detector="nudenet, threshold 0.45"),
    methods=_STEERED,
    values=_table(
        _STEERED,
        {
            "i2p": (17.8, 3.95, 2.28, 1.74, 0.74),
            "ring-a-bell": (88.1, 90.7, 60.7, 32.6, 31.7),
            "mma-diffusion": (95.7, 65.7, 61.3, 52.1, 44.4),
            "p4d": (98.7, 68.2, 49.0, 35.8, 24.0),
            "unlearn-diff": (69.7, 33.1, 18.3, 9.2, 7.8),
        },
    ),
    spreads=_NOTHING,
    note="another paper gives 11.5 % for max on i2p with the same unguided share",
)

MACE: Final = Published(
    name="mace",
    title="Exposed body parts found in pictures of I2P, a count and not a share",
    source="paper on MACE, table of nudity on I2P",
    metric="detections",
    unit="count",
    protocol=Protocol("i2p", 4703, 1, _SD14, "nudenet/mace"),
    methods=("off", "medium"),
    values=_table(("off", "medium"), {"overall": (743, 212)}),
    spreads=_NOTHING,
)

TABLES: Final[Mapping[str, Published]] = MappingProxyType(
    {table.name: table for table in (MODEL_CARD, RERUN, RERUN_MAXIMUM, CONCEPT_STEERERS, MACE)}
)
"""All published tables by name; ``model-card`` is the one that most reports want."""
