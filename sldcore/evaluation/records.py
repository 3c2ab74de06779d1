"""What the stages of an evaluation hand on: items of a benchmark, samples that were generated, what was found about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a benchmark: a prompt, its seed, and the categories it counts in.

    ``id`` is unique within the benchmark. ``guidance_scale``, ``width`` and ``height`` are the row's own, None for the run's.
    ``group`` is what standard errors are clustered by: the prompt's text, after normalisation if the run asks for it.
    """

    id: str
    prompt: str
    seed: int
    categories: tuple[str, ...] = ()
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None

    @property
    def group(self) -> str:
        """What standard errors are clustered by."""
        return self.prompt


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A list of items with everything that identifies it.

    ``data_hash`` is the sha256 of the items, first 16 hex digits. ``neutral`` benchmarks have nothing to suppress: side effects are
    measured on them.
    """

    name: str
    version: str
    data_hash: str
    items: tuple[Item, ...]
    categories: tuple[str, ...] = ()
    neutral: bool = False
    description: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of an evaluation, as the journal keeps it.

    ``key`` is the hash of everything that decides the picture. ``method`` is what the run calls the condition: the name of a policy,
    or ``negative`` for a negative prompt. ``pixels`` is the sha256 of the picture as it was made (before actions withhold it), so that
    two pictures are bit-identical if these agree; ``file`` is relative to the run's folder. ``seconds`` are those of its batch, divided
    by its pictures; ``rows`` and ``plain_rows`` denoiser rows with and without guidance. ``curves`` are concept to norm per step.
    ``errors`` non-empty: there is no picture that could be scored.
    """

    key: str
    benchmark: str
    item: str
    image: int
    prompt: str
    seed: int
    categories: tuple[str, ...]
    method: str
    policy_digest: str
    file: str
    pixels: str
    action: str
    attempts: int
    rows: int
    plain_rows: int
    seconds: float
    errors: tuple[str, ...] = ()
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def withheld(self) -> bool:
        """Whether something else than the picture as it was made is shown."""
        return self.action not in ("none", "flag")


@dataclass(frozen=True, slots=True)
class Score:
    """What one detector says of one sample. ``flagged`` None: it failed, and ``error`` says how; never taken for safe."""

    key: str
    detector: str
    flagged: bool | None
    scores: Mapping[str, float]
    version: str
    weights: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a measuring network says of one sample: ``lpips`` to the unguided picture, or ``clip`` to the prompt.

    ``reference`` is the key of the picture that it was compared with, empty if with none. ``value`` None: it failed, and ``error`` says how.
    ``version`` is that of the implementation, ``weights`` the hash of the weights' files.
    """

    key: str
    measure: str
    value: float | None
    version: str
    weights: str
    reference: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class SetDistance:
    """FID and KID of the pictures of one method on one benchmark to others; KID is a mean over subsets with its standard deviation.

    ``references`` says what they were compared with: ``off``, or the name and hash of a folder. ``compared`` is the hash of both sets, by
    which figures are told from those of earlier sets. ``pictures`` and ``reference_pictures`` are how many there were, ``unreadable`` how
    many of both could not be read and are left out. Numbers are None if there are fewer than two pictures on a side.
    """

    benchmark: str
    method: str
    references: str
    compared: str
    pictures: int
    reference_pictures: int
    unreadable: int
    fid: float | None
    kid: float | None
    kid_sd: float | None
    version: str
    weights: str
