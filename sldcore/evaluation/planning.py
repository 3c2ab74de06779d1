"""What a run is to make: its settings and methods, the samples that follow from them, and their keys.

A sample's key is the hash of everything that decides its picture. Samples are made in batches whose members follow from the
plan alone, whatever is done already: a picture may depend in its last bits on what else is in its batch, and so it is the same in a run
that was killed, sharded or spread over workers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import groupby
from typing import Any, Final

from sldcore.errors import ConfigurationError
from sldcore.evaluation.records import Benchmark, Item
from sldcore.policy import SafetyPolicy

SEED_STRIDE: Final = 1_000
"""Picture j of an item takes the item's seed + j times this, so that items with consecutive seeds do not share noise."""

LONGEST_PROMPT: Final = 20_000
"""Characters; every text encoder stops reading long before."""

_HIGHEST_SEED: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What all samples of a run have in common; None is the pipeline's own default.

    ``device`` is the kind of device (cpu, cuda), without number. ``own_guidance``: rows that bring a guidance scale use it.
    """

    model: str
    revision: str
    weights: str
    scheduler: str
    device: str
    dtype: str
    steps: int
    guidance_scale: float | None
    own_guidance: bool
    width: int | None
    height: int | None
    images: int
    loading: Mapping[str, Any]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Method:
    """One condition: a policy, and what the pipeline is given beside it (a negative prompt).

    ``resolved`` is what the names in the policy stand for: texts of concepts, providers with their versions.
    """

    name: str
    policy: SafetyPolicy
    arguments: Mapping[str, str] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    digest: str = field(init=False)
    """The policy's; kept, because every key needs it."""

    def __post_init__(self) -> None:
        """Compute the digest once."""
        object.__setattr__(self, "digest", self.policy.digest)

    def document(self) -> dict[str, Any]:
        """For ``run.yaml``."""
        return {
            "name": self.name,
            "digest": self.digest,
            "guides": self.policy.guides,
            "arguments": dict(self.arguments),
            "resolved": dict(self.resolved),
            "policy": self.policy.dump(),
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """One sample to make: picture ``image`` of an item under a method."""

    key: str
    benchmark: str
    item: Item
    image: int
    seed: int
    method: str

    @property
    def identity(self) -> tuple[str, str, int, str]:
        """Which sample of the run it is; several may have one key, and so one picture."""
        return (self.benchmark, self.item.id, self.image, self.method)


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples that are made by one call: one method, one size, one guidance scale.

    ``wanted`` have different keys; ``twins`` are samples of the same keys, for which nothing more has to be made.
    """

    number: int
    method: Method
    guidance_scale: float | None
    width: int | None
    height: int | None
    wanted: tuple[Wanted, ...]
    twins: tuple[Wanted, ...] = ()

    @property
    def members(self) -> tuple[Wanted, ...]:
        """All samples that the batch settles."""
        return (*self.wanted, *self.twins)


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run. ``options`` says per benchmark how it was read: limit, normalisation."""

    settings: Settings
    methods: tuple[Method, ...]
    benchmarks: tuple[Benchmark, ...]
    batch_size: int
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples the run has."""
        return sum(len(each.items) for each in self.benchmarks) * len(self.methods) * self.settings.images

    def document(self) -> dict[str, Any]:
        """For ``run.yaml``."""
        return {
            "settings": asdict(self.settings),
            "methods": [method.document() for method in self.methods],
            "benchmarks": [
                {
                    "name": each.name,
                    "version": each.version,
                    "data_hash": each.data_hash,
                    "items": len(each.items),
                    "categories": list(each.categories),
                    "neutral": each.neutral,
                    "description": each.description,
                    "licence": each.licence,
                    **self.options.get(each.name, {}),
                }
                for each in self.benchmarks
            ],
        }

    def check(self) -> None:
        """Find what would stop the run halfway.

        Raises:
            ConfigurationError: nothing to do, names or ids that are not unique, a prompt that is empty or far too long, a seed that
                is out of range, or guidance that is off for a policy that needs it.
        """
        _unique([method.name for method in self.methods], "method")
        _unique([each.name for each in self.benchmarks], "benchmark")
        if not self.samples:
            raise ConfigurationError(
                "there is nothing to make: give at least one policy and a benchmark with items"
            )
        for benchmark in self.benchmarks:
            _unique([item.id for item in benchmark.items], f"id in benchmark {benchmark.name}")
            for item in benchmark.items:
                self._check_item(benchmark.name, item)

    def _check_item(self, benchmark: str, item: Item) -> None:
        where = f"item {item.id} of benchmark {benchmark}"
        if not item.prompt.strip():
            raise ConfigurationError(f"{where} has an empty prompt; leave it out")
        if len(item.prompt) > LONGEST_PROMPT:
            raise ConfigurationError(
                f"{where} has a prompt of {len(item.prompt):,} characters, and at most {LONGEST_PROMPT:,} are taken; is the "
                "column the right one?"
            )
        if not 0 <= item.seed <= _HIGHEST_SEED - SEED_STRIDE * self.settings.images:
            raise ConfigurationError(
                f"{where} has seed {item.seed}; seeds are 0 to 2^63, less {SEED_STRIDE} per picture"
            )
        scale = self.guidance_of(item)
        guiding = [method.name for method in self.methods if method.policy.guides]
        if scale is not None and not (math.isfinite(scale) and (scale > 1 or not guiding)):
            raise ConfigurationError(
                f"{where} has guidance scale {scale:g}, with which policy '{(guiding or ['off'])[0]}' cannot act; the run's own scale "
                "for every row (--fixed-guidance) is what the published evaluation used"
            )

    def guidance_of(self, item: Item) -> float | None:
        """The guidance scale of an item: its own, or else the run's."""
        own = item.guidance_scale if self.settings.own_guidance else None
        return self.settings.guidance_scale if own is None else own

    def key_of(self, method: Method, item: Item, seed: int) -> str:
        """The sha256 of everything that decides a picture."""
        settings = self.settings
        versions = {
            name: settings.versions.get(name) for name in ("sldcore", "torch", "diffusers", "transformers")
        }
        deciding = {
            "model": settings.model, "revision": settings.revision, "weights": settings.weights,
            "policy": method.digest, "arguments": dict(method.arguments),
            "resolved": dict(method.resolved), "prompt": item.prompt, "seed": seed, "steps": settings.steps, "scheduler": settings.scheduler, "guidance_scale": self.guidance_of(item),
            "width": item.width or settings.width, "height": item.height or settings.height,
            "dtype": settings.dtype, "versions": versions,
        }  # fmt: skip
        canonical = json.dumps(deciding, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return sha256(canonical.encode()).hexdigest()

    def batches(self) -> tuple[Batch, ...]:
        """All samples in batches, methods side by side, so that pairs are finished together."""
        homes: dict[str, int] = {}
        groups: list[_Group] = []
        twins: dict[int, list[Wanted]] = {}
        for group in self._groups():
            own: list[Wanted] = []
            for wanted in group.wanted:
                home = homes.setdefault(wanted.key, len(groups))
                if home == len(groups) and all(wanted.key != other.key for other in own):
                    own.append(wanted)
                else:
                    twins.setdefault(home, []).append(wanted)
            if own:
                groups.append(_Group(group.method, group.form, tuple(own)))
        return tuple(
            Batch(number, group.method, *group.form, group.wanted, tuple(twins.get(number, ())))
            for number, group in enumerate(groups)
        )

    def _groups(self) -> Iterator[_Group]:
        for benchmark in self.benchmarks:
            pictures = [(item, image) for item in benchmark.items for image in range(self.settings.images)]
            pictures.sort(
                key=lambda picture: _sortable(self._form(picture[0]))
            )  # stable: the order of items stays
            for form, same in groupby(pictures, key=lambda picture: self._form(picture[0])):
                alike = list(same)
                for start in range(0, len(alike), self.batch_size):
                    part = alike[start : start + self.batch_size]
                    for method in self.methods:
                        yield _Group(
                            method, form, tuple(self._wanted(benchmark, method, *each) for each in part)
                        )

    def _form(self, item: Item) -> _Form:
        settings = self.settings
        return (self.guidance_of(item), item.width or settings.width, item.height or settings.height)

    def _wanted(self, benchmark: Benchmark, method: Method, item: Item, image: int) -> Wanted:
        seed = item.seed + SEED_STRIDE * image
        return Wanted(self.key_of(method, item, seed), benchmark.name, item, image, seed, method.name)


_Form = tuple[float | None, int | None, int | None]
"""Guidance scale, width and height of a call."""


@dataclass(frozen=True, slots=True)
class _Group:
    method: Method
    form: _Form
    wanted: tuple[Wanted, ...]


def _sortable(form: _Form) -> tuple[float, ...]:
    return tuple(-1.0 if part is None else float(part) for part in form)


def _unique(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ConfigurationError(f"{what} '{twice[0]:.80}' is given twice; each needs a name of its own")
