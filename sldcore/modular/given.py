"""The policies that a guider is given: as they are, by name, or as a saved configuration holds them."""

from __future__ import annotations

from collections.abc import Sequence

from sldcore.errors import GuidanceError
from sldcore.policy import SafetyPolicy

Policies = SafetyPolicy | str | Sequence[SafetyPolicy | str]


def policies_of(policy: Policies) -> tuple[SafetyPolicy, ...]:
    """Policies from themselves, presets' names, or the YAML that a configuration holds.

    Raises:
        GuidanceError: there is none.
    """
    given = [policy] if isinstance(policy, SafetyPolicy | str) else list(policy)
    if not given:
        raise GuidanceError("SafetyGuider was given an empty list of policies; give one, or one per picture")
    return tuple(_policy(each) for each in given)


def _policy(given: SafetyPolicy | str) -> SafetyPolicy:
    if isinstance(given, SafetyPolicy):
        return given
    is_yaml = "\n" in given
    return SafetyPolicy.parse(given, "the guider's configuration") if is_yaml else SafetyPolicy.preset(given)


def require_guidance_only(policies: Sequence[SafetyPolicy]) -> None:
    """Refuse what a guider cannot do.

    Raises:
        GuidanceError: a policy names a scheduler, filters or marks.
    """
    for policy in policies:
        if policy.filters or policy.prompt_filters or policy.marks or policy.scheduler is not None:
            raise GuidanceError(
                f"policy '{policy.name}' names a scheduler, filters or marks, and a guider only guides; use "
                f"policy.replace(scheduler=None, filters=(), prompt_filters=(), marks=()), or guard() for the scheduler"
            )
