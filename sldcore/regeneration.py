"""Another attempt at pictures that filters flagged: with a new seed, a stronger preset, the flagged category's concept.

Only the flagged pictures of a batch are made again. The seed of attempt n is the picture's own plus n times a large prime, so an
attempt can be made again by itself and does not meet the seeds of its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sldcore.concepts import load_pack
from sldcore.errors import GuidanceError
from sldcore.policy import Action, ConceptUse, FilterUse, PromptFilterUse, SafetyPolicy, Window
from sldcore.types import Attempt, Report, Verdict

STRIDE: Final = 1_000_003
LADDER: Final = ("weak", "medium", "strong", "max")
UNGATED: Final = "without gate"
FIXED: Final = ("latents", "generator")
"""Arguments that fix the noise, with which another attempt would be the same picture."""


@dataclass(frozen=True, slots=True)
class Retry:
    """One picture to make again: its place in the batch, the seed and the policy to use."""

    index: int
    seed: int
    policy: SafetyPolicy


def check(
    policies: Sequence[SafetyPolicy], seeds: Sequence[int | None], arguments: Mapping[str, Any]
) -> None:
    """Whether policies that regenerate can do so in this call.

    Raises:
        GuidanceError: the caller fixes the noise.
    """
    asking = [
        policy.name for policy in policies if any(use.on_flag.do == "regenerate" for use in policy.filters)
    ]
    fixed = [name for name in FIXED if arguments.get(name) is not None]
    if asking and (None in seeds or "latents" in fixed):
        raise GuidanceError(
            f"policy '{asking[0]}' regenerates flagged pictures, which needs seeds; give seed, not "
            f"{' or '.join(fixed) or 'a generator of your own'}"
        )


def retry_of(
    index: int,
    first_seed: int,
    attempt: int,
    policy: SafetyPolicy,
    flagged_by: Sequence[tuple[PromptFilterUse, Verdict]],
    *,
    guided: bool = False,
) -> Retry | None:
    """What to try after ``attempt`` attempts (1, 2, ...) of which the last was flagged; None if its policy tries no more.

    ``guided`` says that a gate found something and the flagged picture was guided from its first step.
    """
    asking = [
        (use, verdict)
        for use, verdict in flagged_by
        if isinstance(use, FilterUse) and use.on_flag.do == "regenerate"
    ]
    if not asking or any(_stops(use) for use, _ in flagged_by):
        return None
    wanted = [use.on_flag for use, _ in asking]
    if attempt > max(action.attempts for action in wanted):
        return None
    seed = first_seed + STRIDE * attempt if any(action.new_seed for action in wanted) else first_seed
    added, stronger = (any(getattr(each, name) for each in wanted) for name in ("add_concept", "stronger"))
    if added:
        policy = _with_concepts(policy, asking)
    open_ = _ungated(policy) if added or stronger else policy
    policy = _stronger(open_) if stronger and (guided or open_ is policy) else open_
    return Retry(index, seed, policy)


def _stops(use: PromptFilterUse) -> bool:
    """True if another filter's flag decides already: it would still be acted upon after another attempt's review."""
    action: Action | str = use.on_flag
    return action == "raise" or (isinstance(action, Action) and action.do == "raise")


def _ungated(policy: SafetyPolicy) -> SafetyPolicy:
    """The policy without its gate, which did not find what a filter did."""
    if policy.guidance is None or policy.guidance.gate is None:
        return policy
    guidance = policy.guidance.model_copy(update={"gate": None})
    return policy.replace(guidance=guidance, name=f"{_base(policy)}, {UNGATED}")


def _stronger(policy: SafetyPolicy) -> SafetyPolicy:
    """The next preset above the policy's guidance, by its scale; as it is if there is none."""
    guidance = policy.guidance
    if guidance is not None and guidance.method != "sld":
        return policy
    scale = float(guidance.options["scale"]) if guidance is not None else 0.0
    for name in LADDER:
        preset = SafetyPolicy.preset(name)
        if preset.guidance is not None and float(preset.guidance.options["scale"]) > scale:
            window = preset.guidance.window
            if guidance is not None:
                window = _earlier(guidance.window, window)
            stronger = preset.guidance.model_copy(update={"window": window})
            concepts = policy.concepts or preset.concepts
            return policy.replace(guidance=stronger, concepts=concepts, name=f"{_base(policy)}, {name}")
    return policy


def _base(policy: SafetyPolicy) -> str:
    name, comma, step = policy.name.rpartition(", ")
    return name if comma and step in (*LADDER, UNGATED) else policy.name


def _earlier(own: Window, other: Window) -> Window:
    """The preset's window, opened no later than the policy's own: a stronger attempt does not wait longer."""
    if own.unit != other.unit:
        return own
    return other if other.start <= own.start else own


def _with_concepts(policy: SafetyPolicy, asking: Sequence[tuple[FilterUse, Verdict]]) -> SafetyPolicy:
    """The policy with the concepts of the flagged categories, as far as there are any and it has not got them."""
    used = {name for concept in policy.concepts for name in concept.use or ()}
    wanted = [
        name
        for use, verdict in asking
        for category in verdict.above
        if (name := _concept_of(use, category)) and name not in used
    ]
    if not wanted or policy.guidance is None:
        return policy
    try:
        added = tuple(ConceptUse(use=(name,)) for name in dict.fromkeys(wanted))
        return policy.replace(concepts=(*policy.concepts, *added))
    except ValueError:  # a name that is none, or a concept that there is not
        return policy


def _concept_of(use: FilterUse, category: str) -> str:
    if category in use.concepts:
        return str(use.concepts[category])
    if "/" in category:  # a filter that scores concepts by their ids
        return category.partition("#")[0]
    default = {concept.id for concept in load_pack("inappropriate").concepts}
    return f"inappropriate/{category}" if category in default else ""


def attempt_of(report: Report) -> Attempt:
    """What is kept of a picture that was made again."""
    return Attempt(report.seed, report.policy, report.policy_digest, report.verdicts)


def joined(earlier: Report, later: Report) -> Report:
    """The report of a later attempt, with the earlier ones."""
    return replace(
        later,
        attempts=earlier.attempts + 1,
        earlier=(*earlier.earlier, attempt_of(earlier)),
        rows=earlier.rows + later.rows,
        plain_rows=earlier.plain_rows + later.plain_rows,
    )
