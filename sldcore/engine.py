"""The engine: applies policies to a diffusers pipeline and gives back only what may be shown.

resolve → encode → review of prompts → denoise → review of pictures → further attempts → actions → result
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sldcore import __version__, regeneration, restarting
from sldcore.audit import AuditLog
from sldcore.call_checks import require_guidance, require_seeds
from sldcore.catalogue import current, using
from sldcore.encoding import ConceptEncoder, text_vectors
from sldcore.errors import ConfigurationError
from sldcore.families import family_of
from sldcore.filters.base import PictureContext, PromptContext
from sldcore.filters.chain import Chain, Findings
from sldcore.filters.pipeline_checker import reviewing
from sldcore.frames import Pixels, all_frames, over_frames, pixels_of
from sldcore.guidance.base import StepHook
from sldcore.outcome import (
    Outcome,
    add_prompt,
    failures_of,
    is_plain,
    judged,
    pending,
    read_only,
    replaced,
    report_of,
    stopped,
    trace_of,
)
from sldcore.policy import SafetyPolicy
from sldcore.provenance import library_versions
from sldcore.regeneration import Retry
from sldcore.request import Request, Sample, per_prompt_argument, prompts_of, wants_arrays
from sldcore.resolution import providers_of
from sldcore.review import CHECKER, MARKED, Made, decide, mark, picture_of
from sldcore.session import Session, as_policy
from sldcore.tracing import empty_trace
from sldcore.types import Failure, Report, Result


class SafetyEngine:
    """Generates pictures with a diffusers pipeline under safety policies.

    Args:
        pipe: a pipeline of a supported class; it stays the caller's and is not changed between calls.
        policy: what applies where a call names no other; a policy or the name of a preset.
        step_hooks: objects that see, and may edit, every step.
        audit: where every picture is recorded before it is given back; if that fails, no picture is.

    Raises:
        UnsupportedPipelineError: no family knows the pipeline.
        PolicyError: there is no preset of that name.
    """

    def __init__(
        self,
        pipe: Any,
        policy: SafetyPolicy | str,
        step_hooks: Sequence[StepHook] = (),
        audit: AuditLog | None = None,
    ) -> None:
        self._audit = audit
        self.pipe = pipe
        self.policy = as_policy(policy)
        self._catalogue = current()
        self._family = family_of(pipe)
        self._encoder = ConceptEncoder(pipe, self._family)
        self._chain = Chain()
        self._hooks = tuple(step_hooks)
        self._call: Callable[..., Any] = getattr(pipe, "plain_call", pipe)
        self._per_prompt = per_prompt_argument(self._call)

    def generate(
        self,
        prompt: str | Sequence[str] | None,
        seed: int | Sequence[int] | None = 0,
        num_images: int = 1,
        policies: Sequence[SafetyPolicy | str] | None = None,
        **pipeline_arguments: Any,
    ) -> Result:
        """Make ``num_images`` pictures of each prompt, in one batch.

        Args:
            prompt: one prompt or several; None with ``prompt_embeds``.
            seed: a number, from which the pictures of *every* prompt take seed, seed + 1, ... (so that a prompt gives the
                same picture alone and in a batch); one number per prompt or per picture; or None with a ``generator``
                of your own among the pipeline's arguments.
            num_images: pictures per prompt.
            policies: one policy, or name of a preset, per prompt; the engine's for all by default.
            **pipeline_arguments: passed to the pipeline (steps, guidance_scale, negative_prompt, image, ...).

        Returns:
            Pictures in the pipeline's order, all of a prompt together, after the actions of their policies; of a video
            pipeline, lists of frames. A withheld picture is black, a dropped one None; its report says why.

        Raises:
            ConfigurationError: the request cannot be carried out as it stands; nothing was generated.
            SessionError: the pipeline is in use by another session.
            SafetyFailure: a policy says ``raise`` for what happened.
        """
        as_arrays = wants_arrays(pipeline_arguments.pop("output_type", "pil"))
        prompts = len(prompts_of(prompt, pipeline_arguments))
        chosen = [self.policy] * prompts if policies is None else [as_policy(each) for each in policies]
        request = Request.of(prompt, seed, num_images, chosen, pipeline_arguments, self._per_prompt)
        used = [sample.policy for sample in request.samples]
        seeds = [sample.seed for sample in request.samples]
        regeneration.check(used, seeds, pipeline_arguments)
        require_seeds(used, seeds)
        require_guidance(self.pipe, self._family, self._call, used, pipeline_arguments)
        with using(self._catalogue):
            self._chain.prepare(dict.fromkeys(used))
            on_prompts = self._review_prompts(request)
            outcome = self._first(request, on_prompts)
            outcome = self._further(request, outcome, on_prompts)
            provenance = self._provenance(outcome, request)
            try:
                images = [picture_of(each, each.context.policy, as_arrays) for each in outcome.made]
                mark(self._chain, outcome.made, images, as_arrays)
            finally:  # what raises is to be found in the log, too
                self._record(outcome, provenance)
        return Result(images, outcome.reports, outcome.trace, provenance)

    def denoise(
        self,
        samples: Sequence[Sample],
        arguments: Mapping[str, Any],
        guiding: Sequence[SafetyPolicy] | None = None,
    ) -> Outcome:
        """One pipeline call for ``samples`` with the pipeline's own ``arguments``, guided and reviewed.

        ``guiding`` are the policies that guide, if others than those that judge. Pictures that a gate wants made again are
        withheld.
        """
        policies = [sample.policy for sample in samples]
        guiding = policies if guiding is None else guiding
        require_guidance(self.pipe, self._family, self._call, guiding, arguments)
        with using(self._catalogue):
            self._chain.prepare(dict.fromkeys(policies))
            session = self._session(guiding)
            concepts = session.concepts(self._family.options_of_call(self.pipe, arguments))
            with session.active(), reviewing(self.pipe) as checker:
                output = self._call(**{**arguments, "output_type": "np", "return_dict": True})
            pixels = pixels_of(output, len(samples))
            failures = failures_of(session, samples, pixels, checker)
            pixels = [np.nan_to_num(each, nan=0.0, posinf=1.0, neginf=0.0) for each in pixels]
            trace = trace_of(session, samples)
            contexts = [
                PictureContext(
                    sample.prompt,
                    sample.seed,
                    sample.policy,
                    MappingProxyType(concepts.texts_of(guide)),  # filters must not rewrite the report
                    read_only(trace.heat[index]),
                )
                for index, (sample, guide) in enumerate(zip(samples, guiding, strict=True))
            ]
            again = pending(session)
            skipped = [bool(each) or index in again for index, each in enumerate(failures)]
            findings = self._review(pixels, contexts, skipped)
        made = []
        for index, (sample, found) in enumerate(zip(samples, findings, strict=True)):
            found.failures[:0] = failures[index]
            for verdict in checker.of(index)[0]:
                found.verdicts.insert(0, verdict)
                found.flagged_by += [(CHECKER, verdict)] if verdict.flagged else []
            report = report_of(sample, contexts[index], session.runs, index)
            report = judged(report, found, sample.policy, again=index in again)
            made.append(Made(pixels[index], report, found, contexts[index]))
        return Outcome(tuple(made), trace, session.scheduler)

    def _session(self, guiding: Sequence[SafetyPolicy]) -> Session:
        """The session of one pipeline call."""
        return Session(self.pipe, self._family, self._encoder, guiding, self._hooks, strict=False)

    def _carried_out(self, request: Request) -> Outcome:
        """The pictures of a request, those that a gate wants guided in a second pass."""
        outcome = self.denoise(request.samples, request.call())
        restarts = restarting.restarts_of(outcome)
        if not restarts:
            return outcome
        chosen = [restart.index for restart in restarts]
        part = request.part(chosen, [request.samples[index] for index in chosen])
        try:
            second = self.denoise(part.samples, part.call(), [restart.policy for restart in restarts])
        except ConfigurationError as problem:  # such as a method that takes no second concept
            second = self._failed("gate", outcome, chosen, part.samples, problem)
        return restarting.together(outcome, chosen, second)

    def _review(
        self, pixels: Sequence[Pixels], contexts: Sequence[PictureContext], skip: Sequence[bool]
    ) -> list[Findings]:
        """Findings of the filters per sample; of a video every frame is reviewed."""
        pictures, counts = all_frames(pixels)
        which = [index for index, count in enumerate(counts) for _ in range(count)]
        found = iter(self._chain.pictures(pictures, [contexts[i] for i in which], [skip[i] for i in which]))
        return [over_frames([next(found) for _ in range(count)]) for count in counts]

    def file_of(self, content: bytes, report: Report, policy: SafetyPolicy) -> bytes:
        """The content of a picture's file with the marks that belong on files, such as signed credentials.

        Call it last when you save a picture of :meth:`generate`; whatever changes the file afterwards breaks a signature. Pictures
        that are withheld are not marked.

        Raises:
            SafetyFailure: a mark failed; the file must not be written.
        """
        if report.action in MARKED:
            with using(self._catalogue):
                return self._chain.signed(content, report, policy)
        return content

    def _record(self, outcome: Outcome, provenance: Mapping[str, Any]) -> None:
        if self._audit is not None:
            for report in outcome.reports:
                self._audit.record(report, provenance)

    def _first(self, request: Request, on_prompts: Sequence[Findings]) -> Outcome:
        """The first attempt at every picture whose prompt passes the prompt filters."""
        gone = [
            stopped(findings, sample.policy)
            for findings, sample in zip(on_prompts, request.samples, strict=True)
        ]
        kept = [index for index, out in enumerate(gone) if not out]
        if len(kept) == len(gone):
            outcome = self._carried_out(request)
        else:
            outcome = self._without(request, on_prompts)
            if kept:
                part = request.part(kept, [request.samples[index] for index in kept])
                outcome = replaced(outcome, kept, self._carried_out(part))
        for index in kept:
            add_prompt(outcome.made[index], on_prompts[index])
        return outcome

    def _further(self, request: Request, outcome: Outcome, on_prompts: Sequence[Findings]) -> Outcome:
        """Further attempts at pictures that were flagged, where their policies say so."""
        attempt = 1
        while retries := self._retries(request, outcome, attempt):
            chosen = [retry.index for retry in retries]
            samples = [Sample(request.samples[r.index].prompt, r.seed, r.policy) for r in retries]
            part = request.part(chosen, samples)
            try:
                later = self._carried_out(part)
            except ConfigurationError as problem:  # such as a preset that starts after the last step
                later = self._failed("regeneration", outcome, chosen, samples, problem)
            for index, made in zip(chosen, later.made, strict=True):
                add_prompt(made, on_prompts[index])
                made.report = regeneration.joined(outcome.made[index].report, made.report)
            outcome = replaced(outcome, chosen, later)
            attempt += 1
        return outcome

    def _failed(
        self,
        source: str,
        outcome: Outcome,
        chosen: Sequence[int],
        samples: Sequence[Sample],
        problem: ConfigurationError,
    ) -> Outcome:
        """Attempts that could not be made: their pictures are withheld, and the reports say why."""
        made = []
        for index, sample in zip(chosen, samples, strict=True):
            context = PictureContext(sample.prompt, sample.seed, sample.policy)
            findings = Findings(failures=[Failure(source, __version__, str(problem))])
            report = decide(report_of(sample, context), findings, sample.policy)
            made.append(Made(np.zeros_like(outcome.made[index].pixels), report, findings, context))
        return Outcome(tuple(made), empty_trace(len(made)))

    def _retries(self, request: Request, outcome: Outcome, attempt: int) -> list[Retry]:
        found = []
        for index, made in enumerate(outcome.made):
            seed = request.samples[index].seed
            if made.report.attempts == attempt and made.report.action != "block" and seed is not None:
                guided = any(probe.restarts for probe in made.report.probes)
                retry = regeneration.retry_of(
                    index, seed, attempt, made.context.policy, made.findings.flagged_by, guided=guided
                )
                found += [retry] if retry is not None else []
        return found

    def _review_prompts(self, request: Request) -> list[Findings]:
        """Findings per sample; each prompt is reviewed once for each policy."""
        asked = dict.fromkeys((sample.prompt, sample.policy) for sample in request.samples)
        if not any(policy.prompt_filters for _, policy in asked):
            return [Findings() for _ in request.samples]
        options = self._family.options_of_call(self.pipe, request.arguments)
        concepts = self._encoder.prepare([policy for _, policy in asked], options)

        def encode(texts: Sequence[str]) -> NDArray[np.float32]:
            return text_vectors(self._family, self.pipe, texts)

        contexts = [PromptContext(policy, concepts.texts_of(policy), encode) for _, policy in asked]
        findings = dict(zip(asked, self._chain.prompts([text for text, _ in asked], contexts), strict=True))
        return [
            Findings(list(own.verdicts), list(own.failures), list(own.flagged_by))
            for own in (findings[sample.prompt, sample.policy] for sample in request.samples)
        ]

    def _without(self, request: Request, findings: Sequence[Findings]) -> Outcome:
        """Pictures that are not made: black, of the size that they would have had."""
        height, width = self._family.picture_size(self.pipe, request.arguments)
        count = self._family.frames(self.pipe, request.arguments)
        frames = () if count is None else (count,)
        made = []
        for sample, found in zip(request.samples, findings, strict=True):
            context = PictureContext(sample.prompt, sample.seed, sample.policy)
            report = decide(report_of(sample, context), found, sample.policy)
            made.append(Made(np.zeros((*frames, height, width, 3), np.float32), report, found, context))
        return Outcome(tuple(made), empty_trace(len(made)))

    def _provenance(self, outcome: Outcome, request: Request) -> dict[str, Any]:
        denoiser = self._family.denoisers(self.pipe)[0]
        arguments = {**request.arguments, self._per_prompt or "num_images": request.num_images}
        policies = dict.fromkeys(
            [*(sample.policy for sample in request.samples), *(each.context.policy for each in outcome.made)]
        )
        return {
            "model": str(self.pipe.name_or_path or type(self.pipe).__name__),
            "model_class": type(self.pipe).__name__,
            "arguments": {name: value for name, value in arguments.items() if is_plain(value)},
            "scheduler": outcome.scheduler or type(self.pipe.scheduler).__name__,
            "versions": library_versions(),
            "device": str(self.pipe._execution_device),
            "dtype": str(next(denoiser.parameters()).dtype).removeprefix("torch."),
            "policies": {policy.digest: policy.dump() for policy in policies},
            "providers": {policy.digest: providers_of(policy) for policy in policies},
        }
