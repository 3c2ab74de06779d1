"""Stage 1: pictures. Makes the batches of a plan with the engine, and says of each sample what happened to it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from time import perf_counter
from typing import Any, Final

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sldcore.documents import write_bytes_atomically
from sldcore.engine import SafetyEngine
from sldcore.errors import ConfigurationError, ModelError, SafetyFailure
from sldcore.evaluation.planning import Batch, Method, Plan, Wanted
from sldcore.evaluation.record_lines import picture_name
from sldcore.evaluation.records import Sample
from sldcore.evaluation.run_folder import RunFolder
from sldcore.outcome import Outcome
from sldcore.policy import SafetyPolicy
from sldcore.request import Sample as Asked
from sldcore.review import as_pictures
from sldcore.session import check_windows
from sldcore.types import Report, Result

_DIGITS: Final = 5


@dataclass(frozen=True, slots=True)
class Made:
    """A sample, and the file of its picture; None if there is none to score."""

    sample: Sample
    picture: bytes | None


class _Engine(SafetyEngine):
    """An engine that notes what pictures were before anything acted upon them."""

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe, "off")
        self.family = self._family
        self.call = self._call
        self.pixels: dict[tuple[str, int | None, str], str] = {}
        """Hashes of pictures as they were made, by prompt, seed and policy digest."""

    def denoise(
        self,
        samples: Sequence[Asked],
        arguments: Mapping[str, Any],
        guiding: Sequence[SafetyPolicy] | None = None,
    ) -> Outcome:
        outcome = super().denoise(samples, arguments, guiding)
        for sample, made in zip(samples, outcome.made, strict=True):
            if made.pixels.ndim == 3:
                self.pixels[sample.prompt, sample.seed, sample.policy.digest] = _hash(
                    as_pictures(made.pixels)[0]
                )
        return outcome


class Generator:
    """Makes batches with one pipeline.

    Args:
        pipe: The pipeline.
        plan: What is made.

    Raises:
        ConfigurationError: the pipeline makes videos, or does not take what the plan needs.
    """

    def __init__(self, pipe: Any, plan: Plan) -> None:
        self._plan = plan
        self._engine = _Engine(pipe)
        self._taken = inspect.signature(self._engine.call).parameters
        family = self._engine.family
        if family.frames(pipe, {}) is not None:
            raise ConfigurationError(
                f"a {type(pipe).__name__} makes videos, and the harness measures pictures; score frames of your own with "
                "sldcore.evaluation.metrics"
            )
        for method in plan.methods:
            self._arguments(Batch(0, method, plan.settings.guidance_scale, None, None, ()))
        check_windows(pipe, family, [method.policy for method in plan.methods], plan.settings.steps)

    def make(self, batch: Batch) -> list[Made]:
        """Every sample of a batch, twins included.

        Raises:
            ConfigurationError: the pipeline refuses the call.
        """
        made = self._make(batch)
        by_key = {each.sample.key: each for each in made}
        return [*made, *(Made(renamed(by_key[twin.key].sample, twin), None) for twin in batch.twins)]

    def _make(self, batch: Batch) -> list[Made]:
        started = perf_counter()
        self._engine.pixels.clear()
        prompts = [wanted.item.prompt for wanted in batch.wanted]
        try:
            result = self._engine.generate(
                prompts,
                seed=[wanted.seed for wanted in batch.wanted],
                policies=[batch.method.policy] * len(prompts),
                **self._arguments(batch),
            )
        except (
            SafetyFailure
        ) as failure:  # the policy says so: of one picture, on account of which none of the batch is there
            if len(batch.wanted) == 1:
                return [Made(_failed(batch.method, batch.wanted[0], str(failure)), None)]
            return [made for wanted in batch.wanted for made in self._make(replace(batch, wanted=(wanted,)))]
        except RuntimeError as problem:
            if type(problem).__name__ != "OutOfMemoryError":
                raise
            raise ModelError(
                f"{len(prompts)} pictures at once do not fit into the device's memory; make fewer (--batch-size). What was made is "
                f"kept"
            ) from problem
        seconds = (perf_counter() - started) / len(prompts)
        return [
            self._made(batch, wanted, result, index, seconds) for index, wanted in enumerate(batch.wanted)
        ]

    def _made(self, batch: Batch, wanted: Wanted, result: Result, index: int, seconds: float) -> Made:
        report, image = result.reports[index], result.images[index]
        failed = report.action == "block"
        policy_digest = report.policy_digest
        noted = self._engine.pixels.get((wanted.item.prompt, report.seed, policy_digest), "")
        if image is None and not failed:  # dropped: nothing is shown, and in nothing there is nothing to find
            image = Image.new("RGB", _size(self._engine, batch))
        sample = _sample(
            batch.method,
            wanted,
            file="" if failed else picture_name(wanted.key),
            pixels=noted or ("" if image is None else _hash(image)),
            action=report.action,
            attempts=report.attempts,
            rows=report.rows,
            plain_rows=report.plain_rows,
            seconds=round(seconds, 4),
            errors=_errors(report),
            curves=_curves(result, index),
        )
        return Made(sample, None if failed else _png(image, sample))

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        """The pipeline's arguments, under its own names."""
        family = self._engine.family
        wanted = {
            "num_inference_steps": self._plan.settings.steps,
            family.guidance_argument: batch.guidance_scale,
            "width": batch.width,
            "height": batch.height,
            **batch.method.arguments,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        refused = [name for name in given if name not in self._taken]
        if refused:
            raise ConfigurationError(
                f"a {type(self._engine.pipe).__name__} takes no {refused[0]}, which method '{batch.method.name}' needs"
            )
        if batch.method.policy.guides and family.needs_negative_prompt and "negative_prompt" in self._taken:
            given.setdefault("negative_prompt", "")
        return given


def store(folder: RunFolder, worker: str, made: Sequence[Made]) -> None:
    """Write a batch: pictures first, so that what the journal says is there.

    Raises:
        OSError: the disk is full, or cannot be written to.
    """
    for each in made:
        if each.picture is not None:
            write_bytes_atomically(folder.picture_of(each.sample), each.picture)
    folder.add_samples(worker, [each.sample for each in made])


def renamed(sample: Sample, wanted: Wanted) -> Sample:
    """The sample of another item or method that has the same picture."""
    return replace(
        sample,
        benchmark=wanted.benchmark,
        item=wanted.item.id,
        image=wanted.image,
        categories=wanted.item.categories,
        method=wanted.method,
    )


def _failed(method: Method, wanted: Wanted, error: str) -> Sample:
    """A sample of which there is no picture, because its policy raises."""
    return _sample(
        method, wanted, file="", pixels="", action="raise", attempts=1, rows=0, plain_rows=0, seconds=0.0, errors=(error,)
    )  # fmt: skip


def _sample(method: Method, wanted: Wanted, **found: Any) -> Sample:
    """What was asked for, and with it what was ``found``: the rest of the sample's fields."""
    return Sample(
        key=wanted.key,
        benchmark=wanted.benchmark,
        item=wanted.item.id,
        image=wanted.image,
        prompt=wanted.item.prompt,
        seed=wanted.seed,
        categories=wanted.item.categories,
        method=method.name,
        policy_digest=method.digest,
        **found,
    )


def _errors(report: Report) -> tuple[str, ...]:
    """What kept a picture from being shown; failures after which its policy shows it are no errors of the sample."""
    if report.action != "block":
        return ()
    found = tuple(f"{failure.source} {failure.version}: {failure.error}" for failure in report.errors)
    return found or ("withheld because safety failed",)


def _curves(result: Result, index: int) -> dict[str, tuple[float, ...]]:
    """Norm of the safety term per concept and step; zero where it was not applied."""
    trace = result.trace
    return {
        name: tuple(
            float(f"{value:.{_DIGITS}g}")
            for value in np.where(trace.applied[index, k], np.nan_to_num(trace.norm[index, k]), 0.0)
        )
        for k, name in enumerate(trace.concepts)
        if trace.evaluated[index, k].any()
    }


def _size(engine: _Engine, batch: Batch) -> tuple[int, int]:
    given = {"width": batch.width, "height": batch.height}
    height, width = engine.family.picture_size(
        engine.pipe, {name: value for name, value in given.items() if value}
    )
    return width, height


def _hash(image: Image.Image) -> str:
    picture = image.convert("RGB")
    return sha256(f"{picture.width}x{picture.height}\n".encode() + picture.tobytes()).hexdigest()


def _png(image: Image.Image, sample: Sample) -> bytes:
    info = PngInfo()
    info.add_text("sldcore key", sample.key)
    info.add_text("sldcore policy", sample.policy_digest)
    buffer = BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
