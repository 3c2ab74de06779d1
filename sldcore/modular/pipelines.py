"""Which pipelines hand their predictions to a guider, and how each encodes a concept's text."""

from __future__ import annotations

from typing import Any

from sldcore.errors import UnsupportedPipelineError, listed
from sldcore.modular import CLASSIC, api
from sldcore.modular.classic import ClassicTexts
from sldcore.modular.texts import ModularTexts


def texts_of(pipe: Any) -> ModularTexts | ClassicTexts:
    """What encodes concepts for ``pipe``.

    Raises:
        UnsupportedPipelineError: it has no guider, or its texts are out of reach.
    """
    names = api.guider_names(pipe) if hasattr(pipe, "components") else ()
    if not names:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has no guider, so a SafetyGuider cannot guide it. Modular pipelines have one where the "
            f"model has classifier-free guidance; for a classic pipeline use guard(pipe, policy) or SafetyEngine"
        )
    if others := set(names) - {"guider", "guider_2", "ocr_guider"}:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has further guiders ({listed(others)}), whose predictions are not those of a picture; "
            f"nothing here guides them"
        )
    if api.is_modular(pipe):
        return ModularTexts(pipe)
    if type(pipe).__name__ not in CLASSIC:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} is a classic pipeline with a guider that is not known; known are {listed(CLASSIC)}"
        )
    return ClassicTexts(pipe)
