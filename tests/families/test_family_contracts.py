"""Every family of the core keeps the contract that families of plugins are measured by, on a pipeline of its own."""

from __future__ import annotations

from typing import Any

import cases_images
import cases_transformers
import cases_video
import pytest
from family_checks import Case

from sldcore.contributions import FamilyKind
from sldcore.families.known import KINDS
from sldcore.testing.check import case_of, names_of_tests
from sldcore.testing.contracts import CONTRACTS

pytestmark = pytest.mark.filterwarnings("ignore")  # a few classes are deprecated by diffusers
CASES = [*cases_images.CASES, *cases_transformers.CASES, *cases_video.CASES]
WITHOUT_PICTURES = ("stable-cascade-prior",)
"""Its output are embeddings, which the contract does not know how to compare; the common checks do."""
FAMILIES = [kind for kind in KINDS if kind.name not in ("stable-diffusion", *WITHOUT_PICTURES)]


def case_for(kind: FamilyKind) -> Case:
    """The first case of the family whose calls need nothing but a text."""
    family = type(kind.create())
    return next(case for case in CASES if case.family is family)


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("test", names_of_tests(CONTRACTS[FamilyKind]))
def test_a_family_keeps_its_contract(kind: FamilyKind, test: str) -> None:
    case = case_for(kind)
    attributes: dict[str, Any] = {
        "pipeline": case.pipe(),  # made by now: copies come from pickles, and the contract allows none
        "arguments": {**case.call, "output_type": "latent"},
    }
    getattr(case_of(kind, **attributes)(), test)()
