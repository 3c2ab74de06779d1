"""The playground: a tiny Stable Diffusion pipeline, its picture world, its classifier and its prompts.

It is a toy, and labelled as one: see ``docs/playground.md``. Importing this package loads no torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sldcore.errors import ModelError

if TYPE_CHECKING:
    from sldcore.playground.classifier import SceneClassifier

__all__ = ["MODEL", "PROMPT_SETS", "load_classifier"]

MODEL: Final = Path(__file__).with_name("model")
"""The folder of the trained weights, a diffusers pipeline with ``classifier.safetensors`` beside it."""


@cache
def load_classifier(model: Path = MODEL) -> SceneClassifier:
    """The classifier of a playground model, float32, in evaluation mode; loaded once per folder.

    Raises:
        ModelError: The folder holds no classifier.
    """
    from sldcore.playground.classifier import SceneClassifier

    path = model / "classifier.safetensors"
    if not path.exists():
        raise ModelError(
            f"{model} holds no playground classifier ({path.name}); `sld playground train` makes one"
        )
    return SceneClassifier.load(path)


def __getattr__(name: str) -> Any:
    if name == "PROMPT_SETS":
        from sldcore.playground.prompts import PROMPT_SETS

        return PROMPT_SETS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
