"""Contracts: the tests that every contribution of a kind must pass, as classes to inherit from.

They need no pytest. :mod:`sldcore.testing.check` runs them on what is installed.
"""

from __future__ import annotations

from typing import Final

from sldcore.contributions import Contribution
from sldcore.testing.contracts.base import Contract, NamedContract, does_not_apply, require
from sldcore.testing.contracts.commands import CommandContract
from sldcore.testing.contracts.families import FamilyContract
from sldcore.testing.contracts.filters import MarkContract, PostFilterContract, PromptFilterContract
from sldcore.testing.contracts.guidance import GuidanceContract
from sldcore.testing.contracts.hooks import StepHookContract
from sldcore.testing.contracts.packs import ConceptContract
from sldcore.testing.contracts.schedules import SchedulerContract, WindowContract

__all__ = [
    "CONTRACTS",
    "CommandContract",
    "ConceptContract",
    "Contract",
    "FamilyContract",
    "GuidanceContract",
    "MarkContract",
    "NamedContract",
    "PostFilterContract",
    "PromptFilterContract",
    "SchedulerContract",
    "StepHookContract",
    "WindowContract",
    "does_not_apply",
    "require",
]

CONTRACTS: Final[dict[type[Contribution], type[Contract]]] = {
    contract.kind: contract
    for contract in (
        ConceptContract,
        GuidanceContract,
        WindowContract,
        SchedulerContract,
        PostFilterContract,
        PromptFilterContract,
        MarkContract,
        StepHookContract,
        FamilyContract,
        CommandContract,
    )
}
"""The contract of each kind of contribution."""
