"""Policies: which concepts are guided away from, how, when, and what happens if safety fails.

A policy is a value: frozen, comparable, hashable, and the same YAML file wherever it is read. Its digest is the same
for the same behaviour, whatever the order of keys, the name or the description.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, Literal, Self

from pydantic import ValidationError, model_validator

from sldcore.documents import (
    Strict,
    describe_invalid,
    parse_mapping,
    read_mapping,
    to_yaml,
    write_text_atomically,
)
from sldcore.errors import PolicyError, listed, nearest
from sldcore.policy_parts import ConceptUse, GuidanceSpec, Options, SLDOptions, Window

__all__ = [
    "PRESETS",
    "ConceptUse",
    "GuidanceSpec",
    "Options",
    "Preset",
    "SLDOptions",
    "SafetyPolicy",
    "Window",
]


class Preset(StrEnum):
    """The named policies: the model card's four, diffusers' own variant of weak, and none."""

    WEAK = "weak"
    MEDIUM = "medium"
    STRONG = "strong"
    MAX = "max"
    WEAK_DIFFUSERS = "weak-diffusers"
    OFF = "off"


class SafetyPolicy(Strict):
    """What safety means for a generation.

    Raises:
        pydantic.ValidationError: (a ``ValueError``) on direct construction with something that makes no sense;
            ``load``, ``parse``, ``preset`` and ``replace`` raise ``PolicyError`` instead.
    """

    name: str = "custom"
    description: str = ""
    guidance: GuidanceSpec | None = None
    concepts: tuple[ConceptUse, ...] = ()
    on_error: Literal["block", "raise"] = "block"

    @model_validator(mode="after")
    def _guidance_and_concepts(self) -> Self:
        if self.concepts and self.guidance is None:
            raise ValueError(
                "concepts are given but 'guidance' is null; add `guidance: {method: sld}` or drop them"
            )
        if self.guidance is not None and not self.concepts:
            raise ValueError(
                "guidance is given but no concepts; add `concepts: [inappropriate]` or drop guidance"
            )
        return self

    @property
    def guides(self) -> bool:
        """True if this policy changes what is generated; ``off`` does not."""
        return self.guidance is not None

    @property
    def digest(self) -> str:
        """sha256, hex, over everything that decides behaviour: all but ``name`` and ``description``."""
        content = _whole(self.model_dump(mode="json", exclude={"name", "description"}))
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def preset(cls, name: str | Preset) -> SafetyPolicy:
        """One of the named policies.

        Raises:
            PolicyError: There is no preset of this name.
        """
        try:
            return PRESETS[Preset(name)]
        except ValueError:
            names = [preset.value for preset in Preset]
            raise PolicyError(
                f"unknown preset '{name}'{nearest(str(name), names)} (available: {listed(names)}); "
                "your own policy is read with SafetyPolicy.load('policy.yaml')"
            ) from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SafetyPolicy:
        """Read a policy file.

        Raises:
            PolicyError: The file cannot be read, is not plain YAML, or is not a policy.
        """
        return cls._checked(read_mapping(path, error=PolicyError), os.fspath(path))

    @classmethod
    def parse(cls, text: str, source: str = "policy") -> SafetyPolicy:
        """Read a policy from YAML text; ``source`` is what messages call it.

        Raises:
            PolicyError: As ``load``.
        """
        return cls._checked(parse_mapping(text, source=source, error=PolicyError), source)

    def dump(self, path: str | os.PathLike[str] | None = None) -> str:
        """The policy as YAML, complete; also written to ``path`` if given."""
        content = _whole(self.model_dump(mode="json"))
        content["concepts"] = [_whole(_short_concept(use)) for use in self.concepts]
        if not self.description:
            del content["description"]
        text = to_yaml(content)
        if path is not None:
            write_text_atomically(path, text)
        return text

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of policy files."""
        schema = cls.model_json_schema()
        parts = schema["$defs"]
        parts["ConceptUse"] = {"anyOf": [{"type": "string"}, parts["ConceptUse"]]}
        parts["GuidanceSpec"]["if"] = {"properties": {"method": {"const": "sld"}}}
        parts["GuidanceSpec"]["then"] = {"properties": {"options": SLDOptions.model_json_schema()}}
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    def replace(self, **changes: Any) -> SafetyPolicy:
        """A policy with some fields changed, validated again.

        Raises:
            PolicyError: The result makes no sense.
        """
        content = {name: getattr(self, name) for name in type(self).model_fields}
        return self._checked({**content, **changes}, f"policy '{self.name}'")

    @classmethod
    def _checked(cls, content: Mapping[str, Any], source: str) -> SafetyPolicy:
        try:
            return cls.model_validate(content)
        except ValidationError as invalid:
            raise PolicyError(describe_invalid(source, invalid)) from None


def _whole(value: Any) -> Any:
    """Plain data with whole numbers as integers: 15.0 and 15 are the same in a file and in a digest."""
    if isinstance(value, dict):
        return {key: _whole(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short_concept(use: ConceptUse) -> str | dict[str, Any]:
    """A concept as one writes it: a plain string where that says everything, else what is not empty."""
    content = {key: part for key, part in use.model_dump(mode="json").items() if part not in (None, "")}
    return use.use if use.use is not None and use.weight == 1 else content


def _preset(
    preset: Preset, warmup: int, scale: float, threshold: float, momentum: float, beta: float
) -> SafetyPolicy:
    options = SLDOptions(scale=scale, threshold=threshold, momentum_scale=momentum, momentum_beta=beta)
    return SafetyPolicy(
        name=preset.value,
        guidance=GuidanceSpec(options=options.model_dump(), window=Window(start=warmup)),
        concepts=(ConceptUse(use="inappropriate"),),
    )


PRESETS: Final[Mapping[Preset, SafetyPolicy]] = {
    # warm-up delta, scale s_S, threshold lambda, momentum scale s_m, momentum beta: the model card's values
    Preset.WEAK: _preset(Preset.WEAK, 15, 200, 0.0, 0.0, 0.0),
    Preset.MEDIUM: _preset(Preset.MEDIUM, 10, 1000, 0.01, 0.3, 0.4),
    Preset.STRONG: _preset(Preset.STRONG, 7, 2000, 0.025, 0.5, 0.7),
    Preset.MAX: _preset(Preset.MAX, 0, 5000, 1.0, 0.5, 0.7),
    Preset.WEAK_DIFFUSERS: _preset(Preset.WEAK_DIFFUSERS, 15, 20, 0.0, 0.0, 0.0),
    Preset.OFF: SafetyPolicy(name=Preset.OFF.value),
}
"""What ``SafetyPolicy.preset`` returns."""
