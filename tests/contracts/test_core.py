"""Core's own contributions pass the contracts that plugins are measured by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sldcore import builtin
from sldcore.contributions import KINDS, Contribution, FamilyKind, WindowKind
from sldcore.testing import FamilyContract
from sldcore.testing.check import case_of, names_of_tests
from sldcore.testing.contracts import CONTRACTS

# Policies give the core's windows both ends, so they have no defaults.
ATTRIBUTES: dict[type[Contribution], dict[str, Any]] = {WindowKind: {"options": {"start": 0.2, "stop": None}}}
NAMED: dict[str, dict[str, Any]] = {"prompt-terms": {"options": {"terms": "gore, beheading"}}}
# Each runs its contract beside its own tests, on a small model that these save first.
NEED_A_MODEL = ("safety-checker", "clip-concepts", "q16", "image-classifier", "vlm-judge")
# Likewise: one reads prompts, one a file of references, and two take one concept only.
NEED_MORE = {
    "safree": "test_safree",
    "safe-denoiser": "test_safe_denoiser",
    "negative": "test_negative",
    "sld+negative": "test_negative",
}
CONTRIBUTIONS = [
    entry.contribution
    for entry in builtin.entries()
    if entry.contribution.name not in (*NEED_A_MODEL, *NEED_MORE)
]
# Other families run theirs in tests/families/test_family_contracts.py, each on a pipeline of its own.
ON_FAKES = [
    each for each in CONTRIBUTIONS if not isinstance(each, FamilyKind) or each.name == "stable-diffusion"
]


@pytest.mark.parametrize(
    ("contribution", "test"),
    [
        pytest.param(each, test, id=f"{each.kind} {each.name}: {test}")
        for each in ON_FAKES
        for test in names_of_tests(CONTRACTS[type(each)])
    ],
)
def test_core_contribution_keeps_its_contract(contribution: Contribution, test: str) -> None:
    case = case_of(contribution, **NAMED.get(contribution.name, ATTRIBUTES.get(type(contribution), {})))
    getattr(case(), test)()


class TestStableDiffusionOnRealComponents(FamilyContract):
    """The family once more, on diffusers' own pipeline and transformers' own text encoder."""

    (contribution,) = (each for each in CONTRIBUTIONS if each.name == "stable-diffusion")

    @pytest.fixture(autouse=True)
    def _real(self, parts: dict[str, Any]) -> None:
        import tiny_pipelines

        self.pipeline = tiny_pipelines.pipeline(**parts)


@pytest.mark.parametrize("name", NEED_A_MODEL)
def test_what_needs_a_model_runs_its_contract_elsewhere(name: str) -> None:
    tests = (Path(__file__).parent.parent / "filters" / f"test_{name.replace('-', '_')}.py").read_text(
        "utf-8"
    )
    assert "(PostFilterContract)" in tests


@pytest.mark.parametrize("name", NEED_MORE.values())
def test_methods_that_need_more_than_numbers_run_their_contract_elsewhere(name: str) -> None:
    tests = (Path(__file__).parent.parent / "guidance" / f"{name}.py").read_text("utf-8")
    assert "(GuidanceContract)" in tests


def test_every_kind_has_a_contract() -> None:
    assert set(CONTRACTS) == set(KINDS)


def test_every_kind_of_the_core_is_tested() -> None:
    kinds = {type(each).__name__ for each in CONTRIBUTIONS}
    assert kinds >= {"ConceptProvider", "GuidanceMethod", "WindowKind", "SchedulerKind", "FamilyKind"}
