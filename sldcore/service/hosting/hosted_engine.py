"""The engine as a worker uses it: it says which jobs' pictures each pipeline call makes, and shows its steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

from PIL import Image
from torch import Tensor

from sldcore import __version__
from sldcore.catalogue import using
from sldcore.engine import SafetyEngine
from sldcore.filters.base import PictureContext
from sldcore.filters.chain import Chain, Findings
from sldcore.filters.picture_review import PictureReview
from sldcore.frames import over_frames
from sldcore.outcome import Outcome
from sldcore.policy import SafetyPolicy
from sldcore.request import Request, Sample
from sldcore.resolution import check_policies, providers_of
from sldcore.review import as_pixels
from sldcore.session import Session
from sldcore.types import Failure, Predictions, Report, Step


class JobPrompt(str):
    """A prompt that tells whose it is.

    Further passes and attempts are pipeline calls for some samples of a request, with other seeds and policies; the prompt is
    what stays with a sample.
    """

    job: int

    @classmethod
    def of(cls, text: str, job: int) -> Self:
        """The prompt of the ``job``-th job of an engine call."""
        prompt = cls(text)
        prompt.job = job
        return prompt


@dataclass(frozen=True, slots=True)
class PipelineCall:
    """One call of the pipeline: its samples in order, whose jobs they are, and the policies that guide them."""

    jobs: tuple[int, ...]
    samples: tuple[Sample, ...]
    guiding: tuple[SafetyPolicy, ...]
    arguments: Mapping[str, Any]


class Follower(Protocol):
    """Follows one call of :meth:`SafetyEngine.generate` through its pipeline calls."""

    def on_prompts(self, jobs: Sequence[int], findings: Sequence[Findings]) -> None:
        """The prompts were reviewed."""
        ...

    def begins(self, call: PipelineCall) -> None:
        """A pipeline call begins."""
        ...

    def on_step(self, step: Step, predictions: Predictions) -> None:
        """The predictions of a step are known and combined; the scheduler has not made its step."""
        ...

    def ends(self) -> None:
        """The pipeline call is over, whatever came of it."""
        ...


class Watch:
    """A step hook that observes, and passes steps on to who follows at the time."""

    name = "service"
    version = __version__

    def __init__(self) -> None:
        self.follower: Follower | None = None

    def before_guidance(self, step: Step, predictions: Predictions) -> Predictions | None:
        """Observe nothing."""
        return None

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor | None:
        """Pass the step on."""
        if self.follower is not None:
            self.follower.on_step(step, predictions)
        return None


class HostedEngine(SafetyEngine):
    """A :class:`SafetyEngine` that can be followed, and that reviews what it has not made.

    Args:
        pipe: the pipeline.
        chain: where filters are kept; engines of one worker share them.
    """

    def __init__(self, pipe: Any, chain: Chain) -> None:
        self._watch = Watch()
        super().__init__(pipe, "off", step_hooks=(self._watch,))
        self._chain = chain
        self.session: Session | None = None
        """Of the pipeline call under way."""
        self.family = self._family

    @contextmanager
    def followed_by(self, follower: Follower) -> Iterator[None]:
        """Let ``follower`` see the calls made inside; their prompts must be :class:`JobPrompt`."""
        self._watch.follower = follower
        try:
            yield
        finally:
            self._watch.follower = None

    def denoise(
        self,
        samples: Sequence[Sample],
        arguments: Mapping[str, Any],
        guiding: Sequence[SafetyPolicy] | None = None,
    ) -> Outcome:
        """As the engine's, and whoever follows is told."""
        follower = self._watch.follower
        if follower is None:
            return super().denoise(samples, arguments, guiding)
        policies = [sample.policy for sample in samples] if guiding is None else guiding
        follower.begins(PipelineCall(_jobs_of(samples), tuple(samples), tuple(policies), arguments))
        try:
            return super().denoise(samples, arguments, guiding)
        finally:
            follower.ends()
            self.session = None

    def _session(self, guiding: Sequence[SafetyPolicy]) -> Session:
        self.session = super()._session(guiding)
        return self.session

    def prepare(self, policies: Sequence[SafetyPolicy]) -> None:
        """Make what the policies name, and encode their concepts.

        Raises:
            ConfigurationError: something cannot be had.
        """
        with using(self._catalogue):
            check_policies(policies)
            self._chain.prepare(policies)
            self._encoder.prepare(policies, self._family.options_of_call(self.pipe, {}))

    def providers(self, policy: SafetyPolicy) -> dict[str, str]:
        """Who provides what the policy names.

        Raises:
            ConfigurationError: something cannot be had.
        """
        with using(self._catalogue):
            return providers_of(policy)

    def concept_texts(self, policy: SafetyPolicy, arguments: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Concept id to the texts that guide by it in a call with these arguments."""
        options = self._family.options_of_call(self.pipe, arguments)
        return self._encoder.prepare([policy], options).texts_of(policy)

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Findings]:
        """What the policies' filters say of pictures of one size."""
        with using(self._catalogue):
            return self._review(
                [as_pixels(picture) for picture in pictures], contexts, [False] * len(pictures)
            )

    def review_text(self, text: str, policy: SafetyPolicy) -> Findings:
        """What the policy's prompt filters say of a text.

        Raises:
            ConfigurationError: a filter cannot be had.
        """
        own = policy.replace(filters=(), marks=())  # which may have weights to load, and have no part in this
        request = Request.of([text], 0, 1, [own], {}, self._per_prompt)
        with using(self._catalogue):
            self._chain.prepare([own])
            (findings,) = self._review_prompts(request)
        return findings

    def review_views(self, views: Sequence[Image.Image], policy: SafetyPolicy) -> Findings:
        """What the policy's filters say of a picture: of each filter, its word on the view that it finds worst.

        Raises:
            ConfigurationError: a filter cannot be had, or the policy has none.
        """
        with using(self._catalogue):
            return over_frames(PictureReview(policy, self._chain).findings(views))

    def marked(self, picture: Image.Image, context: PictureContext) -> Image.Image | Failure:
        """The picture with the marks of its policy, or why it could not be marked."""
        with using(self._catalogue):
            (marked,) = self._chain.marked([picture], [context])
        return marked

    def signed(self, content: bytes, report: Report, policy: SafetyPolicy) -> bytes:
        """A file's content with the policy's marks of files.

        Raises:
            SafetyFailure: one failed.
        """
        with using(self._catalogue):
            return self._chain.signed(content, report, policy)

    def _review_prompts(self, request: Request) -> list[Findings]:
        findings = super()._review_prompts(request)
        if self._watch.follower is not None:
            self._watch.follower.on_prompts(_jobs_of(request.samples), findings)
        return findings


def _jobs_of(samples: Sequence[Sample]) -> tuple[int, ...]:
    return tuple(sample.prompt.job for sample in samples if isinstance(sample.prompt, JobPrompt))
