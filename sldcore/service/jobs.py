"""What travels between the service and its workers: pictures and reviews asked for, and what became of them.

Everything here can be pickled, holds no tensor, and is made by the service's own processes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sldcore.policy import SafetyPolicy

Reason = Literal["invalid", "failed", "lost", "deadline", "cancelled", "draining"]
"""Why there is no answer: the request cannot be carried out; something broke; the worker died twice; too late; the client went
away; the service is stopping."""


class Shape(NamedTuple):
    """What jobs must share to be made in one denoiser call."""

    model: str
    width: int
    height: int
    steps: int
    guidance_scale: float | None
    scheduler: str = ""
    """The policy's own, as JSON; empty where it leaves the model's."""


@dataclass(frozen=True, slots=True)
class PictureJob:
    """One picture to make.

    ``width`` and ``height`` in pixels. ``explain`` asks for heat map and curves, ``unguided`` also for the picture of the same seed
    without guidance, for operators. ``client`` is whose turn it takes in the queue, such as a key's id.
    ``partials`` is how many pictures of the way there to send, each reviewed first.
    """

    id: str
    model: str
    prompt: str
    seed: int
    policy: SafetyPolicy
    width: int
    height: int
    steps: int
    guidance_scale: float | None = None
    explain: bool = False
    unguided: bool = False
    partials: int = 0
    client: str = ""

    @property
    def shape(self) -> Shape:
        """What decides with which others it can share a call."""
        chosen = self.policy.scheduler
        scheduler = "" if chosen is None else chosen.model_dump_json()
        return Shape(self.model, self.width, self.height, self.steps, self.guidance_scale, scheduler)


@dataclass(frozen=True, slots=True)
class ReviewJob:
    """One text or one picture to review with a policy's filters: exactly one of the two is given.

    ``picture`` is the content of a picture file that was decoded and measured before. ``client`` as a picture's.
    """

    id: str
    model: str
    policy: SafetyPolicy
    text: str | None = None
    picture: bytes | None = None
    client: str = ""


Job = PictureJob | ReviewJob


@dataclass(frozen=True, slots=True)
class Progress:
    """A job's picture has ``step`` of ``total`` denoiser calls behind it; ``attempt`` counts from 1."""

    job: str
    step: int
    total: int
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Partial:
    """A picture of the way there, that the policy's filters let pass: PNG. ``index`` counts from 0."""

    job: str
    index: int
    png: bytes


Event = Progress | Partial


@dataclass(frozen=True, slots=True)
class PictureAnswer:
    """What became of a picture.

    ``png`` is what may be shown, after the policy's action: None if nothing may (dropped). ``account`` is
    ``provenance.report_document`` of its report, with ``plain_rows`` and ``trace`` (``provenance.trace_summary``).
    ``provenance``: model, model_class, scheduler, device, dtype, versions, and ``providers`` of this policy: nothing that a user wrote.
    ``timings`` in seconds by name. With ``explain``: ``heat``, a PNG of where guidance acted over the picture that may be shown;
    ``curves``, per concept lists over steps ``norm`` and ``relevance`` (None where nothing was evaluated). With ``unguided``: that
    picture (None if it may not be shown) and its account.
    """

    job: str
    png: bytes | None
    account: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    heat: bytes | None = None
    curves: Mapping[str, Mapping[str, list[float | None]]] = field(default_factory=dict)
    unguided: bytes | None = None
    unguided_account: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ReviewAnswer:
    """What the filters say of a text or picture: ``account`` as a picture's, with ``categories`` that flagged it."""

    job: str
    account: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no picture and no verdict; ``message`` is for the client and quotes no prompt."""

    job: str
    reason: Reason
    message: str


Answer = PictureAnswer | ReviewAnswer | Failed
