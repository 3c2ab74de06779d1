"""Which of two policies is stricter: a partial order, for operators that allow requests to add safety and never to take it away.

A policy is at least as strict as a floor if nothing that the floor does is missing, weaker, or of another kind that cannot be
compared:

    guidance   the same method; of ``sld`` no option below the floor's, and the momentum no slower than presets make up for; the
               window open wherever the floor's is; no gate and no savings that the floor has not
    concepts   each of the floor's, by its text, with no less weight and strength, and its window as wide, and none before it that
               may be taken for a part of it; where one may take another's place (methods other than ``sld``, gates that guide
               by what they find) the same ones
    filters    each of the floor's with the same options; no threshold above, no category left out, nothing in shadow or
               allowed on error that the floor does not allow so, and no milder action: flag < blur, pixelate < the rest.
               What is allowed on error gets no less time and names no further category, so that no error can be provoked
    attempts   the same of what ``regenerate`` turns the policy into: a preset's options, without gate, some concepts
               taken out
    the rest   marks and step hooks as the floor's (a further hook may undo guidance), filter mode, no further plugin files

The relation is reflexive and transitive. Two policies of which each is as strict as the other do the same, but for what this
order leaves aside: names, time limits of what is withheld on error, requirements, schedulers where the floor names none, how often
an action tries again, and shades of what shows nothing of a picture. It does not read texts: whoever may write concepts of their own
can guide away from what is harmless, and whoever chooses the number of steps decides how much of a run is left after a warm-up
in steps.
"""

from __future__ import annotations

from collections.abc import Iterator

from sldcore.policy import SafetyPolicy
from sldcore.strictness.filters import weaker_filters
from sldcore.strictness.guidance import weaker_guidance

__all__ = ["at_least", "weaker_where"]


def weaker_where(policy: SafetyPolicy, floor: SafetyPolicy) -> tuple[str, ...]:
    """In what ``policy`` is weaker than ``floor``, or cannot be compared with it; empty if it is at least as strict.

    Raises:
        ConfigurationError: one of them names something that cannot be had.
    """
    errors = policy.on_error, floor.on_error
    return (
        *weaker_guidance(policy, floor),
        *weaker_filters("filter", policy.filters, floor.filters, *errors),
        *weaker_filters("prompt filter", policy.prompt_filters, floor.prompt_filters, *errors),
        *_rest(policy, floor),
    )


def _rest(policy: SafetyPolicy, floor: SafetyPolicy) -> Iterator[str]:
    same = (policy.filter_mode, policy.filters) == (floor.filter_mode, floor.filters)
    needed = any(not use.shadow for use in floor.filters)
    if policy.filter_mode == "first_flag" and len(policy.filters) > 1 and needed and not same:
        yield "it stops at the first filter that flags, before one of the floor's may have looked"
    if floor.scheduler is not None and policy.scheduler != floor.scheduler:
        yield f"its scheduler is not the floor's '{floor.scheduler.use}'"
    for wanted in floor.marks:
        if wanted not in policy.marks:
            yield f"mark '{wanted.use}' with the floor's options is missing"
    if further := [file for file in policy.plugins if file not in floor.plugins]:
        yield f"it brings plugin files that the floor has not: {', '.join(further)}"


def at_least(policy: SafetyPolicy, floor: SafetyPolicy) -> bool:
    """True if ``policy`` is at least as strict as ``floor``.

    Raises:
        ConfigurationError: as :func:`weaker_where`.
    """
    return not weaker_where(policy, floor)
