"""What a pipeline call must have so that its policies can act; looked at before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sldcore.errors import GuidanceError
from sldcore.families.base import Family
from sldcore.policy import SafetyPolicy


def require_guidance(
    pipe: Any,
    family: Family,
    call: Callable[..., Any],
    policies: Sequence[SafetyPolicy],
    arguments: Mapping[str, Any],
) -> None:
    """Refuse at once what the hook would refuse at the first step.

    Raises:
        GuidanceError: a policy guides, and the call turns classifier-free guidance off.
    """
    guiding = [policy.name for policy in policies if policy.guides]
    name = family.guidance_argument
    parameter = inspect.signature(call).parameters.get(name)
    scale = arguments.get(name, parameter.default if parameter else None)
    if guiding and isinstance(scale, int | float) and scale <= 1:
        raise GuidanceError(
            f"{name} is {scale:g}, which turns classifier-free guidance off, and with it policy '{guiding[0]}'. "
            f"Use {name} > 1, or the policy 'off'"
        )
    negative = ("negative_prompt", "negative_prompt_embeds")
    if (
        guiding
        and family.needs_negative_prompt
        and not any(arguments.get(each) is not None for each in negative)
    ):
        raise GuidanceError(
            f"{type(pipe).__name__} guides only with a negative_prompt, and policy '{guiding[0]}' needs its "
            f"unconditional prediction. Give negative_prompt, an empty one ('') will do, or the policy 'off'"
        )


def gated(policy: SafetyPolicy) -> bool:
    """True if a gate of ``policy`` makes pictures again."""
    spec = policy.guidance
    return spec is not None and spec.gate is not None and spec.gate.then == "restart"


def require_seeds(policies: Sequence[SafetyPolicy], seeds: Sequence[int | None]) -> None:
    """Refuse a second pass that could not start from the noise of the first.

    Raises:
        GuidanceError: a gate makes pictures again, and the noise comes from a generator of the caller's.
    """
    asking = [policy.name for policy in policies if gated(policy)]
    if asking and None in seeds:
        raise GuidanceError(
            f"the gate of policy '{asking[0]}' makes pictures again from the same noise, which needs seeds; give seed, not a "
            f"generator of your own"
        )


def require_single_pass(policies: Sequence[SafetyPolicy], surface: str) -> None:
    """Refuse gates that make pictures again where the call is not ours to repeat.

    Raises:
        GuidanceError: a policy has one.
    """
    for policy in policies:
        if gated(policy):
            raise GuidanceError(
                f"the gate of policy '{policy.name}' makes pictures again in which it finds a concept, which {surface} cannot: "
                f"the call of the pipeline is yours. Use SafetyEngine.generate, or a gate with `then: continue`"
            )
