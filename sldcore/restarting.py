"""Second passes: pictures in which a gate found a concept are made again from the same noise, guided from the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sldcore.catalogue import using
from sldcore.concepts import resolve
from sldcore.errors import ConceptError
from sldcore.outcome import PENDING, Outcome, replaced
from sldcore.policy import ConceptUse, SafetyPolicy, Window
from sldcore.resolution import catalogue_for
from sldcore.types import Probe, Report


@dataclass(frozen=True, slots=True)
class Restart:
    """One picture to make again: its place in the batch, and the policy that guides it."""

    index: int
    policy: SafetyPolicy


def restarts_of(outcome: Outcome) -> list[Restart]:
    """The pictures that are to be made again."""
    return [
        Restart(index, guided_policy(made.context.policy, _deciding(made.report)))
        for index, made in enumerate(outcome.made)
        if PENDING in made.findings.failures
    ]


def _deciding(report: Report) -> Probe:
    """The probe that asked for another pass; of a pipeline that goes through its timesteps again, not always the last."""
    return next(probe for probe in report.probes if probe.restarts)


def guided_policy(policy: SafetyPolicy, probe: Probe) -> SafetyPolicy:
    """What guides the second pass: ``policy`` without its gate, against its concepts, the one that was found, or both."""
    spec = policy.guidance
    if spec is None or spec.gate is None:
        return policy
    gate, guidance = spec.gate, spec.model_copy(update={"gate": None})
    if gate.guide == "policy":
        return policy.replace(guidance=guidance)
    found = max(probe.relevance, key=lambda name: probe.relevance[name]).partition("#")[0]
    window = None if gate.found_until == 1 else Window(unit="fraction", stop=gate.found_until)
    with using(catalogue_for([policy])):  # concepts may be of the policy's own plugins
        own = {each.concept.id for each in resolve(policy.concepts)} if policy.concepts else set()
        if gate.guide == "both" and found in own:
            return policy.replace(guidance=guidance)
        chosen = _use_of(found, gate.concepts or policy.concepts, window)
        kept = policy.concepts if gate.guide == "both" else ()
        return policy.replace(guidance=guidance, concepts=(*kept, chosen))


def _use_of(name: str, uses: Sequence[ConceptUse], window: Window | None) -> ConceptUse:
    """One concept of some uses, as a use of its own; ``window`` takes the place of the use's."""
    for use in uses:
        only_out = all(each.startswith("!") for each in use.use or ("",))
        if not only_out and name in {each.concept.id for each in resolve([_without_exclusions(use)])}:
            named = {} if use.use is None else {"use": (name,)}
            return use.model_copy(update={**named, "window": window or use.window})
    raise ConceptError(f"concept '{name}' was found, and is none of those that were looked for")


def _without_exclusions(use: ConceptUse) -> ConceptUse:
    """What a use names, without what it takes out again: that may be in another use."""
    if use.use is None:
        return use
    return use.model_copy(update={"use": tuple(name for name in use.use if not name.startswith("!"))})


def joined(first: Report, second: Report) -> Report:
    """The report of the second pass, with what the first one saw and cost.

    ``plain_rows`` are those of one pass: what the picture would have cost without guidance.
    """
    plain = second.plain_rows or first.plain_rows  # none if there was no second pass
    return replace(second, probes=first.probes, rows=first.rows + second.rows, plain_rows=plain)


def together(first: Outcome, chosen: Sequence[int], second: Outcome) -> Outcome:
    """One outcome of both passes; the trace of a picture that was made again is that of its second pass.

    Rows of the first pass that are no longer in the trace count among its plain rows.
    """
    for index, made in zip(chosen, second.made, strict=True):
        made.report = joined(first.made[index].report, made.report)
    outcome = replaced(first, chosen, second)
    rows = sum(each.report.rows for each in outcome.made)
    trace = replace(outcome.trace, plain_rows=rows - int(outcome.trace.evaluated.sum()))
    return replace(outcome, trace=trace)
