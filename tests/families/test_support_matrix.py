"""docs/models.md says what the families and their tests say, and every class that is supported is tested."""

from __future__ import annotations

import re

import pytest
import support_matrix as matrix
import yaml

from sldcore.policy import SafetyPolicy

pytestmark = pytest.mark.filterwarnings("ignore")  # classes that diffusers deprecates are built, too


def test_every_supported_class_is_held_to_the_reference() -> None:
    assert matrix.untested() == set()


def test_the_document_is_as_the_families_are_now() -> None:
    assert matrix.DOCUMENT.read_text() == matrix.document(), "run `make models`"


def test_the_policy_in_the_document_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", matrix.DOCUMENT.read_text(), re.DOTALL)
    policy = SafetyPolicy.model_validate({**yaml.safe_load(text), "concepts": ["inappropriate"]})
    assert policy.guidance is not None and policy.guidance.window.unit == "fraction"
