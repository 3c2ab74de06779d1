"""Modular Diffusers: safety guidance in pipelines that hand their predictions to a *guider*.

``api`` is the only place that touches what diffusers calls experimental.
"""

from __future__ import annotations

from typing import Any, Final

CLASSIC: Final = ("HunyuanImagePipeline", "HunyuanVideo15Pipeline")
"""Classic pipelines that hand their predictions to a guider, as modular ones do."""


def takes_guider(pipe: Any) -> bool:
    """Is ``pipe`` to be guided through its guider? By names, so that nothing is imported for one that is not."""
    names = {kind.__name__ for kind in type(pipe).__mro__}
    return "ModularPipeline" in names or not names.isdisjoint(CLASSIC)
