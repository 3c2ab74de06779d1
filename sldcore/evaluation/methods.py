"""The conditions of a run: policies by the name of a preset or by file, and a plain negative prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sldcore.catalogue import using
from sldcore.concepts import load_pack, resolve
from sldcore.errors import ConfigurationError, PolicyError, listed, nearest
from sldcore.evaluation.planning import Method
from sldcore.policy import Preset, SafetyPolicy
from sldcore.resolution import catalogue_for, check_policies, common_scheduler, providers_of

NEGATIVE: Final = "negative"
"""The method without safety guidance whose negative prompt is the default concept's text."""


def methods_named(
    asked: Sequence[str | SafetyPolicy], negative_prompt: str | None = None
) -> tuple[Method, ...]:
    """The methods of a run, each with what its policy names looked up.

    Args:
        asked: Presets, policy files, policies, or ``negative``; a text may hold several, with commas between.
        negative_prompt: What ``negative`` uses instead of the default concept's text.

    Raises:
        ConfigurationError: one cannot be had.
    """
    names: list[str | SafetyPolicy] = []
    for each in asked:
        names += (
            [each]
            if isinstance(each, SafetyPolicy)
            else [part.strip() for part in each.split(",") if part.strip()]
        )
    if not names:
        raise ConfigurationError(f"no policy is given; available: {listed(_known())}, or a YAML file")
    methods = tuple(_method(name, negative_prompt) for name in names)
    for method in methods:
        common_scheduler([method.policy])
    return methods


def _method(asked: str | SafetyPolicy, negative_prompt: str | None) -> Method:
    if asked == NEGATIVE:
        text = load_pack("inappropriate").whole().text if negative_prompt is None else negative_prompt
        return Method(NEGATIVE, SafetyPolicy.preset(Preset.OFF), {"negative_prompt": text})
    policy = asked if isinstance(asked, SafetyPolicy) else _policy(asked)
    check_policies([policy])
    return Method(policy.name, policy, {}, _resolved(policy))


def _resolved(policy: SafetyPolicy) -> dict[str, Any]:
    """What the names in a policy stand for now: plugins with their versions, and concepts as they are read."""
    with using(catalogue_for([policy])):
        concepts = [
            {
                "id": used.concept.id,
                "text": used.concept.text,
                "weight": used.concept.weight,
                "strength": used.concept.strength,
                **({"embedding": used.concept.embedding.digest} if used.concept.embedding else {}),
            }
            for used in resolve(policy.concepts)
        ]
        return {"concepts": concepts, "providers": providers_of(policy)}


def _policy(name: str) -> SafetyPolicy:
    path = Path(name)
    if name in [preset.value for preset in Preset]:
        return SafetyPolicy.preset(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return SafetyPolicy.load(path)
    raise PolicyError(
        f"'{name}' is neither a preset nor a file{nearest(name, _known())} (available: {listed(_known())}; a policy file ends in "
        ".yaml)"
    )


def _known() -> list[str]:
    return [*(preset.value for preset in Preset), NEGATIVE]
