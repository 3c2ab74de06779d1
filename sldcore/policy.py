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
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as PackageRequirement
from pydantic import AfterValidator, PrivateAttr, ValidationError, model_validator

from sldcore.documents import (
    Strict,
    describe_invalid,
    parse_mapping,
    read_mapping,
    to_yaml,
    write_text_atomically,
)
from sldcore.errors import PolicyError, listed, nearest
from sldcore.policy_parts import (
    Action,
    ConceptUse,
    FilterUse,
    Gate,
    GuidanceSpec,
    Options,
    PromptFilterUse,
    Savings,
    SLDOptions,
    Use,
    Window,
)

__all__ = [
    "Action",
    "ConceptUse",
    "FilterUse",
    "Gate",
    "GuidanceSpec",
    "Options",
    "Preset",
    "PromptFilterUse",
    "SLDOptions",
    "SafetyPolicy",
    "Savings",
    "Use",
    "Window",
]


def _requirement(text: str) -> str:
    try:
        requirement = PackageRequirement(text)
    except InvalidRequirement as invalid:
        raise ValueError(
            f"{text!r} is not a requirement such as 'sld-guidance-sega>=1.0': {invalid}"
        ) from None
    if requirement.url or "extra" in str(requirement.marker or ""):
        raise ValueError(f"{text!r}: give a name with versions; addresses and extras cannot be checked")
    return str(requirement)


Requirement = Annotated[str, AfterValidator(_requirement)]


class Preset(StrEnum):
    """The named policies: the model card's four, diffusers' own variant of weak, none; and ours.

    ``*-noise`` are the card's with windows in noise level, which mean the same whatever the number of steps. ``gated`` guides only
    pictures in which a concept shows.
    """

    WEAK = "weak"
    MEDIUM = "medium"
    STRONG = "strong"
    MAX = "max"
    WEAK_DIFFUSERS = "weak-diffusers"
    OFF = "off"
    WEAK_NOISE = "weak-noise"
    MEDIUM_NOISE = "medium-noise"
    STRONG_NOISE = "strong-noise"
    MAX_NOISE = "max-noise"
    GATED = "gated"


class SafetyPolicy(Strict):
    """What safety means for a generation.

    ``filters``, ``prompt_filters``, ``marks`` and ``step_hooks`` run in the order given; ``filter_mode: first_flag`` stops at the
    first filter that flags a picture. ``requires`` are distributions with versions
    as pip writes them (``sld-guidance-sega>=1.0,<2``); they must be installed, or nothing starts. ``plugins`` are plugin
    files without a distribution; ``load`` finds them relative to the policy's folder, and refuses those outside it.

    Raises:
        pydantic.ValidationError: (a ``ValueError``) on direct construction with something that makes no sense;
            ``load``, ``parse``, ``preset`` and ``replace`` raise ``PolicyError`` instead.
    """

    name: str = "custom"
    description: str = ""
    guidance: GuidanceSpec | None = None
    concepts: tuple[ConceptUse, ...] = ()
    scheduler: Use | None = None
    step_hooks: tuple[Use, ...] = ()
    prompt_filters: tuple[PromptFilterUse, ...] = ()
    filters: tuple[FilterUse, ...] = ()
    filter_mode: Literal["all", "first_flag"] = "all"
    marks: tuple[Use, ...] = ()
    on_error: Literal["block", "raise"] = "block"
    requires: tuple[Requirement, ...] = ()
    plugins: tuple[str, ...] = ()
    _folder: Path | None = PrivateAttr(default=None)
    _contents: tuple[str, ...] = PrivateAttr(default=())

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
    def probed(self) -> tuple[ConceptUse, ...]:
        """What the guidance's gate looks for, if these are other concepts than those that guide."""
        gate = self.guidance.gate if self.guidance is not None else None
        return gate.concepts if gate is not None else ()

    @property
    def unguided(self) -> SafetyPolicy:
        """What this policy is compared with: its filters and its scheduler, without guidance and step hooks.

        Filters that would try again, guided, do what they do at last instead.
        """
        filters = tuple(use.model_copy(update={"on_flag": use.on_flag.final}) for use in self.filters)
        changes = {"guidance": None, "concepts": (), "step_hooks": (), "filters": filters}
        return self.replace(**changes, name=f"{self.name}, unguided") if self.guides else self

    @property
    def digest(self) -> str:
        """sha256, hex, over everything that decides behaviour: all but ``name``, ``description`` and where files lie."""
        # Without defaults, so that digests stay what they are when policies gain fields.
        content = _whole(self.model_dump(mode="json", exclude={"name", "description"}, exclude_defaults=True))
        if self.plugins:
            content["plugins"] = [
                [file.name, _hash_of(file) if known is None else known]
                for file, known in zip(
                    self.plugin_files, self._contents or (None,) * len(self.plugins), strict=True
                )
            ]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def preset(cls, name: str | Preset) -> SafetyPolicy:
        """One of the named policies.

        Raises:
            PolicyError: There is no preset of this name.
        """
        from sldcore.presets import PRESETS  # which are policies

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
            PolicyError: The file cannot be read, is not plain YAML, is not a policy, or names a plugin file that lies
                outside its folder.
        """
        source = os.fspath(path)
        policy = cls._checked(read_mapping(path, error=PolicyError), source)
        return policy._in_folder(Path(path).parent, source)

    @classmethod
    def parse(
        cls, text: str, source: str = "policy", folder: str | os.PathLike[str] | None = None
    ) -> SafetyPolicy:
        """Read a policy from YAML text; ``source`` is what messages call it.

        Args:
            text: The document.
            source: What to call it in messages.
            folder: Where its plugin files lie. Without one, a policy that names some is refused: text may come from anywhere.

        Raises:
            PolicyError: As ``load``.
        """
        policy = cls._checked(parse_mapping(text, source=source, error=PolicyError), source)
        if policy.plugins and folder is None:
            raise PolicyError(
                f"{source}: plugins: a policy that names plugin files must be read from a file, or with folder=..."
            )
        return policy if folder is None else policy._in_folder(Path(folder), source)

    @property
    def plugin_files(self) -> tuple[Path, ...]:
        """The plugin files, in the policy's folder if it was read from one."""
        return tuple(self._folder / file if self._folder else Path(file) for file in self.plugins)

    def require_unchanged(self) -> None:
        """Refuse plugin files that have changed since the policy was read: its digest speaks of them as they were.

        Raises:
            PolicyError: one has.
        """
        for file, known in zip(self.plugin_files, self._contents, strict=False):
            if _hash_of(file) != known:
                raise PolicyError(
                    f"policy '{self.name}': {file} has changed since the policy was read; read it again"
                )

    def _in_folder(self, folder: Path, source: str) -> SafetyPolicy:
        """The policy with its plugin files in ``folder``, their contents noted."""
        files = [_inside(folder, file, source) for file in self.plugins]
        if files:
            self._folder = folder.resolve()
            self._contents = tuple(_hash_of(file) for file in files)
        return self

    def dump(self, path: str | os.PathLike[str] | None = None) -> str:
        """The policy as YAML, complete; also written to ``path`` if given."""
        content = _whole(self.model_dump(mode="json"))
        for name in ("concepts", "step_hooks", "prompt_filters", "filters", "marks"):
            content[name] = [_whole(_short(use)) for use in getattr(self, name)]
        if self.scheduler is not None:
            content["scheduler"] = _whole(_short(self.scheduler))
        if self.guidance is not None:
            if not self.guidance.window.options:
                del content["guidance"]["window"]["options"]
            for name in ("gate", "savings"):
                if content["guidance"][name] is None:
                    del content["guidance"][name]
            if self.guidance.gate is not None:
                content["guidance"]["gate"]["concepts"] = [_whole(_short(use)) for use in self.probed]
        for name in (
            "description",
            "scheduler",
            "step_hooks",
            "prompt_filters",
            "filters",
            "requires",
            "plugins",
        ):
            if not content[name]:
                del content[name]
        text = to_yaml(content)
        if path is not None:
            write_text_atomically(path, text)
        return text

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of policy files."""
        schema = cls.model_json_schema()
        parts = schema["$defs"]
        for use in ("ConceptUse", "Use", "PromptFilterUse", "FilterUse", "Action"):
            parts[use] = {"anyOf": [{"type": "string"}, parts[use]]}
        several = parts["ConceptUse"]["anyOf"][1]["properties"]["use"]
        several["anyOf"].insert(0, {"type": "string"})
        parts["GuidanceSpec"]["if"] = {"properties": {"method": {"const": "sld"}}}
        parts["GuidanceSpec"]["then"] = {"properties": {"options": SLDOptions.model_json_schema()}}
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    def replace(self, **changes: Any) -> SafetyPolicy:
        """A policy with some fields changed, validated again.

        Raises:
            PolicyError: The result makes no sense.
        """
        content = {name: getattr(self, name) for name in type(self).model_fields}
        changed = self._checked({**content, **changes}, f"policy '{self.name}'")
        if changed.plugins == self.plugins:
            changed._folder, changed._contents = self._folder, self._contents
        return changed

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


def _short(use: Strict) -> str | dict[str, Any]:
    """A use as one writes it: a plain string where that says everything, else what is not its default."""
    content = use.model_dump(mode="json", exclude_defaults=True)
    names = content.get("use")
    if isinstance(names, list) and len(names) == 1:
        content["use"] = names[0]
    action = content.get("on_flag")
    if isinstance(action, dict) and list(action) == ["do"]:
        content["on_flag"] = action["do"]
    return content["use"] if list(content) == ["use"] and isinstance(content["use"], str) else content


def _hash_of(file: Path) -> str:
    """sha256 of a file's content, empty if it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def _inside(folder: Path, file: str, source: str) -> Path:
    """``file`` in ``folder``, where it must lie."""
    try:
        place = (folder / file).resolve()
        inside = not Path(file).is_absolute() and place.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as problem:  # a null byte, a circle of links
        raise PolicyError(f"{source}: plugins: {file!r} is no path: {problem}") from None
    if place.suffix != ".py":
        raise PolicyError(f"{source}: plugins: {file!r} is not a Python file (its name must end in .py)")
    if not inside:
        raise PolicyError(
            f"{source}: plugins: '{file}' lies outside the policy's folder; put the file beside the policy, or give it "
            f"on the command line with --plugin"
        )
    return place
