"""A whole evaluation from Python: plan, generate, score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sldcore.errors import ConfigurationError
from sldcore.evaluation.benchmarks import load_benchmark
from sldcore.evaluation.methods import methods_named
from sldcore.evaluation.model_identity import identify
from sldcore.evaluation.networks import Loaded, Networks
from sldcore.evaluation.planning import Batch, Plan, Settings
from sldcore.evaluation.records import Benchmark
from sldcore.evaluation.run_folder import Evaluation, RunFolder
from sldcore.evaluation.scoring import detectors_named, score_samples
from sldcore.evaluation.workers import Share, device_for, make_here, missing_batches
from sldcore.loading import PLAYGROUND
from sldcore.policy import SafetyPolicy
from sldcore.provenance import library_versions

BATCH_SIZE: Final = 8
PLAYGROUND_BATCH: Final = 30
PLAYGROUND_GUIDANCE: Final = 4.0
PLAYGROUND_DETECTOR: Final = "playground"

Progress = Callable[[str, int, int], None]
"""Told the stage, how many samples are done in it, and of how many."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How work is spread. ``shard`` is ``i/n``; ``processes`` on this machine, or ``ray_actors`` on a Ray cluster."""

    shard: str | None = None
    processes: int = 1
    ray_actors: int = 0
    ray_address: str | None = None

    def check(self, share: Share) -> None:
        """Whether the ways of spreading go together.

        Raises:
            ConfigurationError: they do not.
        """
        if self.processes < 1 or self.ray_actors < 0:
            raise ConfigurationError(
                f"give at least one process, and no negative number of Ray actors; got {self}"
            )
        if share.world > 1 and (self.processes > 1 or self.ray_actors):
            raise ConfigurationError(
                f"a launcher started {share.world} processes, which are the workers; leave out --processes and --ray"
            )
        if self.processes > 1 and self.ray_actors:
            raise ConfigurationError("give either --processes or --ray, not both")


def run(
    benchmarks: str | Benchmark | Sequence[str | Benchmark],
    policies: Sequence[str | SafetyPolicy] | str | SafetyPolicy,
    out: str | Path,
    detectors: Sequence[str] | None = None,
    spread: Spread | None = None,
    progress: Progress | None = None,
    retry_errors: bool = False,
    networks: Networks | None = None,
    **settings: Any,
) -> Evaluation:
    """Generate what is missing in the folder ``out``, score it, and return the run as it then stands.

    Args:
        benchmarks: Names of benchmarks, or benchmarks.
        policies: Presets, policy files, policies, and ``negative``.
        out: The run's folder; a run that was stopped goes on there.
        detectors: Names of detectors; by default the playground's for its own benchmarks, and none for others.
        spread: Over processes, shards or Ray.
        progress: Told after every batch.
        retry_errors: Make samples again that have errors, and score pictures again at which a detector or a network failed.
        networks: Networks to measure side effects with: LPIPS, CLIP score, FID and KID.
        **settings: As :func:`plan_of` takes them.

    Raises:
        ConfigurationError: something cannot be had, or the folder holds another run.
        WorkerError: a process died.
        OSError: the folder cannot be written to.
    """
    plan = plan_of(benchmarks, policies, **settings)
    return run_plan(
        plan,
        Path(out),
        detectors,
        spread or Spread(),
        progress,
        retry_errors,
        settings.get("device"),
        networks,
    )


def run_plan(
    plan: Plan,
    out: Path,
    detectors: Sequence[str] | None,
    spread: Spread,
    progress: Progress | None = None,
    retry_errors: bool = False,
    device: str | None = None,
    networks: Networks | None = None,
) -> Evaluation:
    """:func:`run` for a plan that is made already; ``device`` may have a number, which is none of the plan's business."""
    folder, share = RunFolder(out), Share.of(spread.shard)
    spread.check(share)
    found = detectors_named(default_detectors(plan) if detectors is None else detectors)
    loaded = networks.load(method.name for method in plan.methods) if networks else Loaded()
    folder.claim(plan.document(), plan.batch_size)
    loaded.claim(folder)
    batches = share.batches(plan.batches())
    generate(folder, plan, batches, share, spread, device, retry_errors, progress)
    mine = {wanted.identity for batch in batches for wanted in batch.members}
    samples = [
        each for each in folder.samples() if (each.benchmark, each.item, each.image, each.method) in mine
    ]
    for detector in found:
        told = None if progress is None else _staged(progress, f"scoring with {detector.name}")
        score_samples(folder, detector, samples, share.worker, retry_errors, told)
    loaded.measure(folder, samples, share.worker, retry_errors, progress)
    evaluation = folder.evaluation()
    if loaded and evaluation.missing <= 0:
        # What others compare with may have been made after they had measured.
        loaded.measure(folder, evaluation.samples, share.worker, progress=progress)
        loaded.measure_sets(folder, share.worker, retry_errors, progress)
        evaluation = folder.evaluation()
    return evaluation


def plan_of(
    benchmarks: str | Benchmark | Sequence[str | Benchmark],
    policies: Sequence[str | SafetyPolicy] | str | SafetyPolicy,
    *,
    model: str = PLAYGROUND,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    normalise: bool = False,
    limit: int | None = None,
    images: int = 1,
    steps: int = 50,
    guidance_scale: float | None = None,
    own_guidance: bool = True,
    width: int | None = None,
    height: int | None = None,
    negative_prompt: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    loading: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a run: everything is looked up and checked, and no weights are loaded.

    Args:
        benchmarks: Names, or benchmarks that are loaded.
        policies: As :func:`sldcore.evaluation.methods.methods_named`.
        model: As for ``load_pipeline``.
        data: The file of a benchmark whose data does not come with sldcore; then there is one benchmark.
        columns: Which column of ``data`` holds what.
        normalise: Normalise prompts as OpenAI's tokenizer does.
        limit: Only the first so many items of each benchmark.
        images: Pictures per item.
        steps: Denoising steps.
        guidance_scale: For items that bring none; None is the pipeline's own, and 4 for the playground.
        own_guidance: Items that bring a guidance scale use it.
        width: Pixels, for items that bring none; None is the model's.
        height: As ``width``.
        negative_prompt: Of the method ``negative``; by default the default concept's text.
        batch_size: Pictures of a call.
        device: As for ``load_pipeline``.
        dtype: As for ``load_pipeline``.
        loading: Further options of ``load_pipeline``.

    Raises:
        ConfigurationError: something cannot be had or makes no sense.
    """
    asked = [benchmarks] if isinstance(benchmarks, str | Benchmark) else list(benchmarks)
    if data is not None and len(asked) != 1:
        raise ConfigurationError(f"data is the file of one benchmark, and {len(asked)} are given")
    for name, number in (
        ("images", images),
        ("steps", steps),
        ("batch_size", 1 if batch_size is None else batch_size),
    ):
        if number < 1:
            raise ConfigurationError(f"{name} is {number}; give at least 1")
    listed = [policies] if isinstance(policies, str | SafetyPolicy) else list(policies)
    loaded, options = [], {}
    for each in asked:
        found = each if isinstance(each, Benchmark) else load_benchmark(each, data, columns, normalise, limit)
        loaded.append(found)
        options[found.name] = {} if isinstance(each, Benchmark) else {"normalised": normalise, "limit": limit}
    identity, toy = identify(model, loading), model == PLAYGROUND
    where, number_format = _placed(model, device, dtype, loading or {})
    settings = Settings(
        model=model,
        revision=identity.revision,
        weights=identity.weights,
        scheduler=identity.scheduler,
        device=where,
        dtype=number_format,
        steps=steps,
        guidance_scale=PLAYGROUND_GUIDANCE if toy and guidance_scale is None else guidance_scale,
        own_guidance=own_guidance,
        width=width,
        height=height,
        images=images,
        loading={
            name: str(value) if isinstance(value, Path) else value for name, value in (loading or {}).items()
        },
        versions=library_versions(),
    )
    size = batch_size or (PLAYGROUND_BATCH if toy else BATCH_SIZE)
    plan = Plan(settings, methods_named(listed, negative_prompt), tuple(loaded), size, options)
    plan.check()
    return plan


def generate(
    folder: RunFolder,
    plan: Plan,
    batches: Sequence[Batch],
    share: Share,
    spread: Spread,
    device: str | None = None,
    retry_errors: bool = False,
    progress: Progress | None = None,
) -> None:
    """Stage 1: make what is missing of ``batches``, in this process, in several, or with Ray.

    Raises:
        ConfigurationError: model or arguments cannot be used.
        WorkerError: a worker died.
        OSError: the folder cannot be written to.
    """
    missing = missing_batches(folder, batches, retry_errors)
    settled = sum(len(batch.members) for batch in batches) - sum(len(batch.members) for batch in missing)

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress("generating", settled + done, settled + total)

    if spread.ray_actors:
        from sldcore.evaluation.ray_workers import make_with_ray

        where = plan.settings.device if device is None else device
        make_with_ray(folder, plan, missing, spread.ray_actors, where, spread.ray_address, told)
    elif spread.processes > 1:
        from sldcore.evaluation.processes import make_in_processes

        where = plan.settings.device if device is None else device
        make_in_processes(folder, plan, missing, share.worker, where, spread.processes, told)
    else:
        own = device_for(device, share.local_rank) if share.world > 1 else device
        make_here(folder, plan, missing, share.worker, own, told)


def default_detectors(plan: Plan) -> tuple[str, ...]:
    """The playground's own classifier if all benchmarks are the playground's; others are chosen by who publishes."""
    ours = all(each.name.startswith("playground/") for each in plan.benchmarks)
    return (PLAYGROUND_DETECTOR,) if ours else ()


def _placed(model: str, device: str | None, dtype: str | None, loading: Mapping[str, Any]) -> tuple[str, str]:
    """Kind of device and number format that ``load_pipeline`` will choose."""
    from sldcore.loading.files import index_of_checkpoint
    from sldcore.loading.index import index_of_hub, read_index
    from sldcore.loading.placing import device_of, fitting_dtype, named_dtype
    from sldcore.playground import MODEL

    where, chosen = device_of(device), named_dtype(dtype)
    if chosen is None:
        path = MODEL if model == PLAYGROUND else Path(model)
        if path.is_dir():
            index = read_index(path)
        elif path.is_file():
            index = index_of_checkpoint(path, loading.get("config"))
        else:
            index = index_of_hub(model)
        chosen = fitting_dtype(where, index)
    return where.type, str(chosen).removeprefix("torch.")


def _staged(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)
