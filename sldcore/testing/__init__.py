"""The kit for plugin authors: contracts to inherit tests from, fakes that need no weights, and a pytest plugin.

    from sldcore.testing import GuidanceContract

    class TestHalf(GuidanceContract):
        contribution = my_plugin.HALF

Every test of the contract now runs on that contribution. ``contribution`` may be a method too; ``options`` are what to test
with, the defaults if it is left out. Fakes: :class:`FakePipeline` and the makers ``schedule``, ``predictions`` and
``guided_samples``. Fixtures and the marker are described in :mod:`sldcore.testing.plugin`. Nothing here needs pytest but
that plugin.

Names are imported when they are first used: pytest loads this package wherever it is installed, and must not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sldcore.testing.check import check_contribution
    from sldcore.testing.contracts import (
        CommandContract,
        ConceptContract,
        Contract,
        FamilyContract,
        GuidanceContract,
        MarkContract,
        PostFilterContract,
        PromptFilterContract,
        SchedulerContract,
        StepHookContract,
        WindowContract,
    )
    from sldcore.testing.fakes import FakePipeline
    from sldcore.testing.samples import guided_samples, predictions, schedule
    from sldcore.testing.sources import catalogue_of

__all__ = [
    "CommandContract",
    "ConceptContract",
    "Contract",
    "FakePipeline",
    "FamilyContract",
    "GuidanceContract",
    "MarkContract",
    "PostFilterContract",
    "PromptFilterContract",
    "SchedulerContract",
    "StepHookContract",
    "WindowContract",
    "catalogue_of",
    "check_contribution",
    "guided_samples",
    "predictions",
    "schedule",
]

_HOMES = {
    "FakePipeline": "fakes",
    "catalogue_of": "sources",
    "check_contribution": "check",
    "guided_samples": "samples",
    "predictions": "samples",
    "schedule": "samples",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sldcore.testing' has no attribute '{name}'")
    value = getattr(import_module(f"sldcore.testing.{_HOMES.get(name, 'contracts')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
