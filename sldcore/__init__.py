"""Safety guidance for diffusion models: Safe Latent Diffusion as an engine.

Public names are imported when they are first used, so that ``import sldcore`` loads neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sldcore.catalogue import Catalogue
    from sldcore.concepts import ConceptPack
    from sldcore.engine import SafetyEngine
    from sldcore.guider import SafetyGuider
    from sldcore.loading import load_pipeline
    from sldcore.pipeline import SLDPipeline
    from sldcore.policy import Preset, SafetyPolicy
    from sldcore.session import guard
    from sldcore.types import Concept, Result, Verdict

__version__ = "0.1.0"

__all__ = [
    "Concept",
    "ConceptPack",
    "Preset",
    "Result",
    "SLDPipeline",
    "SafetyEngine",
    "SafetyGuider",
    "SafetyPolicy",
    "Verdict",
    "__version__",
    "guard",
    "load_pipeline",
]

_HOMES = {
    "Concept": "types",
    "ConceptPack": "concepts",
    "Preset": "policy",
    "Result": "types",
    "SLDPipeline": "pipeline",
    "SafetyEngine": "engine",
    "SafetyGuider": "guider",
    "SafetyPolicy": "policy",
    "Verdict": "types",
    "guard": "session",
    "load_pipeline": "loading",
}


def default_catalogue() -> Catalogue:
    """The core's contributions and those of installed plugins, as ``SLD_PLUGINS`` allows them."""
    from sldcore import builtin, catalogue, plugins

    return catalogue.Catalogue(builtin.entries(), plugins.Plugins.from_environment())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sldcore' has no attribute '{name}'")
    value = getattr(import_module(f"sldcore.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
