"""Spreading a run: one process per device, started by torchrun or by the harness itself, and shards for several machines.

Samples are independent, so nobody waits for anybody: every worker takes each n-th batch of the plan. No collectives are used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sldcore.errors import ConfigurationError, SLDError
from sldcore.evaluation.model_identity import identify
from sldcore.evaluation.planning import Batch, Plan
from sldcore.evaluation.records import Sample
from sldcore.evaluation.run_folder import RunFolder
from sldcore.provenance import library_versions
from sldcore.resolution import providers_of

Progress = Callable[[int, int], None]
"""Told how many samples are done, and of how many."""

_LAUNCHERS: Final = (
    "TORCHELASTIC_RUN_ID",
    "LOCAL_WORLD_SIZE",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_USE_CPU",
)


class WorkerError(SLDError, RuntimeError):
    """A worker died; what the others made is kept."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of a run is this process's: shard of a machine, and rank among the processes of a launcher.

    Ranks and shards count from 0. ``launched``: a launcher started this process.
    """

    shard: int = 0
    shards: int = 1
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    launched: bool = False

    @classmethod
    def of(cls, shard: str | None = None, environment: Mapping[str, str] | None = None) -> Share:
        """The share of this process, from ``--shard i/n`` (i from 1) and a launcher's environment.

        Raises:
            ConfigurationError: one of them makes no sense.
        """
        own = os.environ if environment is None else environment
        number, count = _shard(shard)
        world, rank = _number(own, "WORLD_SIZE", 1), _number(own, "RANK", 0)
        if not 0 <= rank < world:
            raise ConfigurationError(
                f"RANK is {rank} and WORLD_SIZE {world}; ranks count from 0 to the world's size - 1"
            )
        return cls(
            number - 1,
            count,
            rank,
            world,
            _number(own, "LOCAL_RANK", rank),
            any(name in own for name in _LAUNCHERS),
        )

    @property
    def worker(self) -> str:
        """Name of the journals that this process writes."""
        shard = f"shard-{self.shard + 1}-of-{self.shards}" if self.shards > 1 else "samples"
        return f"{shard}-rank-{self.rank}-of-{self.world}" if self.world > 1 else shard

    @property
    def warning(self) -> str:
        """What is odd about how this process was started, or an empty text."""
        if self.launched and self.world == 1:
            return (
                "a launcher started this process, but the world has one process only, so the whole run is made here. "
                "`accelerate launch --num_processes 2` does that on a machine without GPUs; use torchrun, or --processes N"
            )
        return ""

    def part(self, samples: Iterable[Sample]) -> list[Sample]:
        """Those of a run's samples that are this process's to look at."""
        ordered = sorted(samples, key=lambda sample: sample.key)
        return ordered[self.shard :: self.shards][self.rank :: self.world]

    def batches(self, batches: Sequence[Batch]) -> list[Batch]:
        """Those of a plan's batches that are this process's, dealt so that every share has all methods.

        Methods stand side by side in a plan; a plain stride would give one method to each of as many shares. The whole plan is dealt
        and not what is missing of it: others look at the folder at other moments.
        """
        shares, own = self.shards * self.world, self.shard * self.world + self.rank
        turn: dict[
            str, int
        ] = {}  # by method: which share its next batch goes to; each method begins with another
        mine = []
        for batch in batches:
            at = turn.setdefault(batch.method.name, len(turn))
            turn[batch.method.name] = at + 1
            mine += [batch] if at % shares == own else []
        return mine


def missing_batches(folder: RunFolder, batches: Sequence[Batch], retry_errors: bool = False) -> list[Batch]:
    """The batches some sample of which is not on disk.

    Samples that have the same key as one that is there are recorded, and nothing is made for them.
    """
    from sldcore.evaluation.generation import renamed

    there = {}
    by_key = {}
    for sample in folder.samples():
        lost = bool(sample.file) and not folder.picture_of(sample).exists()
        if not lost and not (retry_errors and sample.errors):
            there[sample.benchmark, sample.item, sample.image, sample.method] = sample.key
            by_key[sample.key] = sample
    missing = []
    for batch in batches:
        open_ = [wanted for wanted in batch.members if there.get(wanted.identity) != wanted.key]
        if open_ and all(wanted.key in by_key for wanted in open_):
            folder.add_samples("shared", [renamed(by_key[wanted.key], wanted) for wanted in open_])
        elif open_:
            missing.append(batch)
    return missing


def make_here(
    folder: RunFolder,
    plan: Plan,
    batches: Sequence[Batch],
    worker: str,
    device: str | None,
    progress: Progress | None = None,
) -> None:
    """Make batches in this process, on one device.

    Raises:
        ConfigurationError: model or arguments cannot be used.
        OSError: the disk is full, or cannot be written to.
    """
    if not batches:
        return
    from sldcore.evaluation.generation import store

    generator = generator_of(plan, device)
    done, total = 0, sum(len(batch.members) for batch in batches)
    for batch in batches:
        store(folder, worker, generator.make(batch))
        done += len(batch.members)
        if progress is not None:
            progress(done, total)


def generator_of(plan: Plan, device: str | None) -> Any:
    """The pipeline of a plan, loaded, in a generator.

    Raises:
        ConfigurationError: it cannot be loaded, or does not take what the plan needs.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from sldcore.evaluation.generation import Generator
    from sldcore.loading import load_pipeline

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    settings = plan.settings
    pipe = load_pipeline(settings.model, device=device, dtype=settings.dtype, **settings.loading)
    pipe.set_progress_bar_config(disable=True)
    return Generator(pipe, plan)


def require_same_place(plan: Plan, weights: bool = False) -> None:
    """Whether this worker would make the samples that the plan's keys speak of; another machine may have something else installed.

    Args:
        plan: What is to be made.
        weights: Look at the model's files too, which may take a while.

    Raises:
        ConfigurationError: libraries, plugins or weights are others here.
    """
    here = library_versions()
    other = [name for name, version in plan.settings.versions.items() if here.get(name) != version]
    if other:
        raise ConfigurationError(
            f"a worker has {other[0]} {here.get(other[0])}, and the run was started with {plan.settings.versions[other[0]]}; install "
            "the same versions everywhere"
        )
    for method in plan.methods:
        if method.resolved and providers_of(method.policy) != method.resolved["providers"]:
            raise ConfigurationError(
                f"a worker finds other plugins for policy '{method.name}' than the run was started with; choose plugins by SLD_PLUGINS, "
                "which workers inherit, or in the policy itself (plugins:), not by options of sld"
            )
    if weights and identify(plan.settings.model, plan.settings.loading).weights != plan.settings.weights:
        raise ConfigurationError(
            f"a worker has other weights for '{plan.settings.model}' than the run was started with"
        )


def device_for(device: str | None, number: int) -> str | None:
    """The device of the process with this number on its machine: CUDA devices are dealt out in turn."""
    if device is not None and device != "cuda":
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{number % count}" if count else device


def without_items(plan: Plan) -> Plan:
    """The plan without its items, which the batches bring: it travels to every worker."""
    return replace(plan, benchmarks=())


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise ConfigurationError(f"a shard is given as i/n with i from 1 to n, such as 1/4; got '{text}'")


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigurationError(f"{name} in the environment is '{text}', which is no number") from None
