"""The data that travels between the parts: frozen, and free of behaviour beyond simple views.

Shapes use B samples (pictures), K concepts of a run, T denoiser calls, R concept rows of one call.
A *row* is one batch entry of the denoiser; a *concept row* is the conditional row of one sample with its text
swapped for a concept's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ConceptEmbedding:
    """A concept as tensors in a safetensors file, in place of its text; ``digest`` is the sha256 of the file.

    ``kind``: ``hidden-states`` (the text arguments of ``family``'s denoiser) or ``tokens`` (vectors in place of words,
    as textual inversion learns them). ``width`` is the length of one vector. Equal where the contents are.
    """

    path: Path = field(compare=False)
    digest: str
    kind: Literal["hidden-states", "tokens"]
    family: str
    width: int


@dataclass(frozen=True, slots=True)
class Concept:
    """One safety concept: text that guidance steers away from, as one or more rows of the denoiser.

    ``id`` is ``pack/name`` for concepts of a pack. ``terms`` are the parts at which ``text`` may be split when it is
    longer than the text encoder's window; each part then gets ``prefix`` in front. ``weight`` scales the safety term,
    ``strength`` the guidance method's own scale. With an ``embedding``, ``text`` only says what that stands for.
    """

    id: str
    text: str
    prefix: str = ""
    terms: tuple[str, ...] = ()
    weight: float = 1.0
    description: str = ""
    strength: float = 1.0
    embedding: ConceptEmbedding | None = None


class Row(NamedTuple):
    """A concept row: which sample of the batch, and which concept of the run."""

    sample: int
    concept: int


class OwnRow(NamedTuple):
    """A row that the pipeline evaluates itself: which sample of the batch, and which part (``uncond`` or ``cond``)."""

    sample: int
    part: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """The denoiser calls of one run, known on the host before the first one.

    ``timesteps`` as the scheduler counts them; ``noise_levels`` is sqrt(1 - alpha_bar) for variance-preserving
    models and sigma for rectified flow, 1 = pure noise, 0 = clean; ``epsilon_factors`` turns a difference of two
    predictions into a difference of noise predictions: 1 for epsilon, alpha for v, 1 - sigma for flow.
    """

    timesteps: tuple[float, ...]
    noise_levels: tuple[float, ...]
    epsilon_factors: tuple[float, ...]
    guidance_scale: float | None = None
    """Scale of the pipeline's own classifier-free guidance, by which it multiplies what methods hand back; None if it does
    not tell."""
    denoised_factors: tuple[tuple[float, float], ...] = ()
    """For each call a and b of x0 = a * latents + b * prediction, with the latents as the denoiser is given them; both 0 where
    the prediction says nothing about x0. Empty if the schedule does not tell."""

    def __len__(self) -> int:
        return len(self.timesteps)

    def step(self, index: int) -> Step:
        """The step of one denoiser call."""
        return Step(
            index,
            len(self),
            self.timesteps[index],
            self.noise_levels[index],
            self.epsilon_factors[index],
            self.denoised_factors[index] if self.denoised_factors else (0.0, 0.0),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One denoiser call. ``index`` counts calls from 0, as the reference does (PNDM makes 51 of them for 50)."""

    index: int
    total: int
    timestep: float
    noise_level: float
    epsilon_factor: float = 1.0
    denoised_factors: tuple[float, float] = (0.0, 0.0)
    """a and b of x0 = a * latents + b * prediction; both 0 where that is not known."""

    @property
    def fraction(self) -> float:
        """How much of the run lies behind this step: 0 at the first, (total - 1) / total at the last."""
        return self.index / self.total


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the denoiser predicted at one step, in its own parametrisation.

    ``uncond`` and ``cond``: [B, C, H, W]. ``concepts``: [R, C, H, W], one per entry of ``rows``. ``latents``: what the
    denoiser was given for ``cond``, [B, C', H, W] with C' >= C (inpainting adds channels); not to be edited.
    """

    uncond: Tensor
    cond: Tensor
    concepts: Tensor
    rows: tuple[Row, ...]
    latents: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Guided:
    """What a guidance method made of the predictions.

    ``cond``: the safe conditional prediction c' = c - gamma, [B, C, H, W]. ``terms``: each concept row's own part of
    gamma, [R, C, H, W], epsilon-equivalent, zero where the concept does not act; the trace is taken from it.
    ``applied``: the samples whose ``cond`` was changed at this step. ``uncond`` [B, C, H, W]: what the pipeline is given in
    place of the unconditional prediction, None for the prediction itself.
    """

    cond: Tensor
    terms: Tensor
    applied: tuple[int, ...]
    uncond: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """Where in a picture a filter found something: edges as fractions of width and height, 0 to 1."""

    category: str
    score: float
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one filter says about one picture or prompt: a score in [0, 1] per category, and whether that is too much.

    ``thresholds`` are those that the filter used, per category. ``weights`` is a hash of the detector's weights, empty if it
    has none. The chain fills in ``seconds`` (of the whole review, divided by its pictures) and ``shadow`` (recorded, and never
    acted upon).
    """

    filter: str
    version: str
    flagged: bool
    scores: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    boxes: tuple[Box, ...] = ()
    weights: str = ""
    seconds: float = 0.0
    shadow: bool = False

    @property
    def above(self) -> tuple[str, ...]:
        """Categories whose score reaches their threshold, the highest score first."""
        reached = [name for name, limit in self.thresholds.items() if self.scores.get(name, 0.0) >= limit]
        return tuple(sorted(reached, key=lambda name: -self.scores[name]))


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that went wrong on the way to a picture: which part, its version, at which step, and the message."""

    source: str
    version: str
    error: str
    step: int | None = None
    on_error: str = ""
    """What the policy says of this part's failures, if it says something of its own; ``allow`` shows the picture."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One picture on the way to the one that was shown, and why it was not."""

    seed: int | None
    policy: str
    policy_digest: str
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """What a gate saw of one picture at one step, and what it decided.

    ``relevance`` is the cosine of e_k - e_u and e_p - e_u for each concept that it looked for, -1 to 1; ``threshold`` is what decided
    (the gate's ``release`` where guidance acted already); ``guides`` says whether the picture is guided from there on (with ``restarts``: from the first step, in another pass).
    """

    step: int
    relevance: Mapping[str, float]
    threshold: float
    guides: bool
    restarts: bool = False

    @property
    def reason(self) -> str:
        """The decision in words."""
        unknown = [name for name, value in self.relevance.items() if isnan(value)]
        if self.guides and unknown:
            return f"acted because the relevance of '{unknown[0]}' at step {self.step} is not a number"
        name, highest = max(self.relevance.items(), key=lambda item: item[1])
        if self.guides:
            return f"acted because '{name}' reached {highest:.2f} at step {self.step} (threshold {self.threshold:g})"
        return f"did not act: the highest at step {self.step} was '{name}' with {highest:.2f} (threshold {self.threshold:g})"


@dataclass(frozen=True, slots=True)
class Report:
    """What happened to one picture.

    ``action`` is ``none`` (shown as generated), ``flag`` (shown, though a filter flagged it: the policy says so), ``black``,
    ``blur``, ``pixelate``, ``replace`` or ``drop`` (something else is shown, or nothing), or ``block`` (withheld because safety
    failed; ``errors`` says why). ``concepts`` maps concept ids to the texts that guided it. ``seed``, ``policy`` and the rest
    are those of the last attempt; ``earlier`` are those before. ``marks`` are the marks that it bears.
    """

    prompt: str
    seed: int | None
    policy: str
    policy_digest: str
    concepts: Mapping[str, tuple[str, ...]]
    verdicts: tuple[Verdict, ...] = ()
    action: str = "none"
    attempts: int = 1
    errors: tuple[Failure, ...] = ()
    rows: int = 0
    """Denoiser rows evaluated for this picture, all attempts: one per part of each step (two, or three with perturbed
    attention), and one per concept row."""
    plain_rows: int = 0
    """What ``rows`` would be without concept rows."""
    earlier: tuple[Attempt, ...] = ()
    marks: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()
    """What a gate saw in the last attempt, and why guidance acted or did not."""

    @property
    def flagged(self) -> bool:
        """True if any filter that acts flagged the picture."""
        return any(verdict.flagged and not verdict.shadow for verdict in self.verdicts)

    @property
    def withheld(self) -> bool:
        """True if the picture as generated is not in ``Result.images``."""
        return self.action not in ("none", "flag")

    @property
    def unreviewed(self) -> bool:
        """True if the picture is shown although something failed: its policy says ``on_error: allow``."""
        return bool(self.errors) and not self.withheld


@dataclass(frozen=True, slots=True)
class Trace:
    """Where and when guidance acted, on the host.

    ``concepts`` names the K concepts; arrays over sample x concept x step are [B, K, T]:
    ``evaluated`` (was the concept row computed), ``applied`` (was its term subtracted), ``active`` (fraction of elements
    in which the term is not zero), ``norm`` (Euclidean norm of the term), ``relevance`` (cosine of e_k - e_u and
    e_p - e_u). The last three are NaN where nothing was evaluated. ``heat`` [B, H, W] is the mean over channels
    of the absolute safety term, summed over the steps that applied it, in latent resolution.
    """

    concepts: tuple[str, ...]
    timesteps: tuple[float, ...]
    evaluated: NDArray[np.bool_]
    applied: NDArray[np.bool_]
    active: NDArray[np.float32]
    norm: NDArray[np.float32]
    relevance: NDArray[np.float32]
    heat: NDArray[np.float32]
    plain_rows: int
    """Denoiser rows that the pipeline would have evaluated without guidance: two per sample and step, three with perturbed
    attention."""

    @property
    def rows(self) -> int:
        """Denoiser rows of the whole run: the plain ones, and one per concept row."""
        return self.plain_rows + int(self.evaluated.sum())


@dataclass(frozen=True, slots=True)
class Result:
    """What a generation returns. ``images[i]`` may be shown, None if it was dropped; ``reports[i]`` says what happened.

    Of a video pipeline, ``images[i]`` is a list of frames, or an array [F, H, W, 3].
    """

    images: Sequence[Any]
    reports: tuple[Report, ...]
    trace: Trace
    provenance: Mapping[str, Any]

    @property
    def video(self) -> bool:
        """True if these are videos."""
        return any(isinstance(each, list) or getattr(each, "ndim", 3) == 4 for each in self.images)
