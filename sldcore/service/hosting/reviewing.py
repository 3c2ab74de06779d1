"""Texts and pictures of clients, reviewed with a policy's filters as prompts and generated pictures are.

Each is reviewed by itself: a filter that one of them breaks says nothing of the others.
"""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from time import perf_counter

from sldcore.errors import PolicyError
from sldcore.filters.chain import Findings
from sldcore.filters.file_review import unreadable
from sldcore.filters.picture_files import View, views
from sldcore.filters.picture_review import categories_of, judged_report
from sldcore.policy import SafetyPolicy
from sldcore.provenance import report_document
from sldcore.service.hosting.hosted_models import HostedModel
from sldcore.service.jobs import ReviewAnswer, ReviewJob
from sldcore.types import Report


def reviewed(model: HostedModel, job: ReviewJob) -> ReviewAnswer:
    """What the filters say: the account of a picture, with ``categories`` and ``scores``.

    ``categories`` are those that were flagged, and ``scores`` the highest of each category, by filters that act. What could not
    be reviewed, because a filter fails or hangs or the picture cannot be decoded, counts as flagged: its ``action`` is ``block``
    and ``errors`` says why.

    Raises:
        ConfigurationError: the policy has no filter for this kind of input, or one cannot be had.
    """
    _require_filters(job)
    started = perf_counter()
    findings = _of_text(model, job.text, job.policy) if job.text is not None else _of_picture(model, job)
    seconds = perf_counter() - started
    blank = Report(job.text or "", None, job.policy.name, job.policy.digest, {})
    report = judged_report(blank, findings, job.policy)
    account = {
        **report_document(report),
        "flagged": report.flagged or bool(report.errors),
        "categories": list(categories_of(findings)),
        "scores": _scores(report),
    }
    return ReviewAnswer(job.id, account, model.facts_of_review(job.policy), {"review": seconds})


def _require_filters(job: ReviewJob) -> None:
    if (job.text is None) == (job.picture is None):
        raise PolicyError("a review takes either a text or a picture")
    kind, filters = (
        ("texts", job.policy.prompt_filters) if job.text is not None else ("pictures", job.policy.filters)
    )
    if not filters:
        raise PolicyError(
            f"policy '{job.policy.name}' has no filters for {kind}, so nothing would be reviewed"
        )


def _of_text(model: HostedModel, text: str, policy: SafetyPolicy) -> Findings:
    return model.engine.review_text(text, policy)


def _of_picture(model: HostedModel, job: ReviewJob) -> Findings:
    try:
        seen: list[View] = list(views(BytesIO(job.picture or b"")))
    except Exception as problem:  # decoders raise all sorts of things over broken files
        return Findings(failures=[replace(unreadable(problem), error=_reason(problem))])
    return model.engine.review_views([view.picture for view in seen], job.policy)


def _reason(problem: Exception) -> str:
    """Why a picture cannot be decoded, without the address that Pillow puts in place of a file's name."""
    text = "it is no picture of a known kind" if "identify" in str(problem) else str(problem)
    return f"{type(problem).__name__}: {text}"


def _scores(report: Report) -> dict[str, float]:
    """The highest score of each category."""
    scores: dict[str, float] = {}
    for verdict in report.verdicts:
        if not verdict.shadow:
            for category, score in verdict.scores.items():
                scores[category] = max(float(score), scores.get(category, 0.0))
    return scores
