"""Perturbed-attention guidance (arXiv 2403.17377): a third part, whose self-attention is replaced by the identity.

Its attention processors split the rows of a call into thirds, so concept rows cannot be in the same call; they are evaluated
in one of their own, with the processors that the perturbed ones stand in for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from diffusers.models import attention_processor

from sldcore.families.base import DiffusersFamily

PERTURBED: Final = "perturbed"
UNPERTURBED: Final[Mapping[str, str]] = {
    "PAGCFGIdentitySelfAttnProcessor2_0": "AttnProcessor2_0",
    "PAGCFGJointAttnProcessor2_0": "JointAttnProcessor2_0",
    "PAGCFGHunyuanAttnProcessor2_0": "HunyuanAttnProcessor2_0",
    "PAGCFGSanaLinearAttnProcessor2_0": "SanaLinearAttnProcessor2_0",
}
"""Class of a perturbed processor to that of the one which does the same to unperturbed rows."""


class PerturbedAttention(DiffusersFamily):
    """For families with ``PAG`` pipelines: [uncond; cond; perturbed] where that guidance is on.

    The perturbed part stays what it is. The pipeline adds ``pag_scale`` times the difference of c' and that part.
    """

    def parts(self, pipe: Any, encoded: Mapping[str, Any]) -> tuple[str, ...]:
        """The family's own, and the perturbed one behind them."""
        parts = super().parts(pipe, encoded)
        return (*parts, PERTURBED) if parts and is_perturbing(pipe) else parts

    def concepts_apart(self, pipe: Any) -> bool:
        """While perturbed-attention guidance is on."""
        return is_perturbing(pipe)

    @contextmanager
    def around_concepts(self, pipe: Any) -> Iterator[None]:
        """Unperturbed attention."""
        modules = [
            module
            for denoiser in self.denoisers(pipe)
            for module in denoiser.modules()
            if type(getattr(module, "processor", None)).__name__ in UNPERTURBED
        ]
        perturbed = [module.processor for module in modules]
        try:
            for module in modules:
                kind = UNPERTURBED[type(module.processor).__name__]
                module.processor = getattr(attention_processor, kind)()
            yield
        finally:
            for module, processor in zip(modules, perturbed, strict=True):
                module.processor = processor


def is_perturbing(pipe: Any) -> bool:
    """During a call: is perturbed-attention guidance on?"""
    return bool(getattr(pipe, "do_perturbed_attention_guidance", False))
