"""Pictures of a Stable Diffusion in miniature behind a gate."""

from __future__ import annotations

from typing import Any

import tiny_pipelines

from sldcore import Result, SafetyEngine, SafetyPolicy
from sldcore.policy import Gate

PARTS = tiny_pipelines.parts()
PROMPTS = ["a red knight", "a blue house", "a green tree"]
STEPS = 6
CALL: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "np"}
CLOSE = 5e-4  # other batches, other last bits, and max makes much of them


def pipeline(**components: Any) -> Any:
    return tiny_pipelines.pipeline(**{**PARTS, **components})


def gated(threshold: float, name: str = "max", **fields: Any) -> SafetyPolicy:
    policy = SafetyPolicy.preset(name)
    gate = Gate.model_validate(
        {"probes": (2,), "unit": "steps", "concepts": ("inappropriate/*",), "threshold": threshold, **fields}
    )
    assert policy.guidance is not None
    return policy.replace(name="gated", guidance=policy.guidance.model_copy(update={"gate": gate}))


def made(policy: Any, prompts: Any = PROMPTS, pipe: Any = None, **call: Any) -> Result:
    """Of one policy for all prompts, or of a list of one each."""
    policies = list(policy) if isinstance(policy, list) else None
    engine = SafetyEngine(pipe or pipeline(), "off" if policies else policy)
    return engine.generate(prompts, seed=7, policies=policies, **{**CALL, **call})
