"""Policies that come with a request: read as data that a stranger wrote, and kept to what the operator's policies bring.

What is allowed is listed, and everything else refused, fields that policies gain later included:

    free          guidance by ``sld`` with its numbers, windows in steps, fraction or noise level, concepts of packs, thresholds,
                  categories, actions, what becomes of errors
    as listed     everything with options or time limits (filters, prompt filters, marks, step hooks, schedulers, other guidance
                  methods, windows of plugins), gates, savings, concepts in one's own words, pictures to show instead, further
                  attempts, errors that raise: only as one of the operator's policies has it
    never         plugin files, requirements; name and description are dropped

Own words are not free because guidance away from something harmless can lead to harm, and time limits because a filter that was too
slow once is not called again, by anybody.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from sldcore.catalogue import using
from sldcore.concepts import resolve
from sldcore.documents import describe_invalid
from sldcore.errors import ConfigurationError, PolicyError, SLDError, listed, nearest
from sldcore.policy import (
    Action,
    ConceptUse,
    FilterUse,
    Gate,
    GuidanceSpec,
    PromptFilterUse,
    SafetyPolicy,
    Savings,
    Use,
    Window,
)
from sldcore.policy_parts import RANGE_UNITS, PackUse
from sldcore.presets import PRESETS
from sldcore.resolution import catalogue_for, check_policies
from sldcore.service.rights.untrusted import require_small

NAME: Final = "inline"
DROPPED: Final = ("name", "description")
MOST_CONCEPTS: Final = 16
"""Concepts of an inline policy, unless one of the operator's has more: each costs a row of the denoiser."""

FREE_ACTIONS: Final = ("flag", "black", "blur", "pixelate", "drop")
FREE_IN_FILTERS: Final = frozenset(
    {"on_flag", "threshold", "thresholds", "only", "ignore", "shadow", "on_error", "concepts"}
)
_CATEGORY: Final = re.compile(r"[\w#+.,:&' /-]{1,100}")

_PACK_USE: Final = TypeAdapter[str](PackUse)

U = TypeVar("U", bound=Use)


class Forbidden(SLDError):
    """Something that a key may not ask for."""


class InlinePolicies:
    """Reads inline policies; ``listed`` are the operator's, those first whose options fill in what a request leaves out."""

    def __init__(self, listed: Sequence[SafetyPolicy]) -> None:
        self._listed = tuple(dict.fromkeys(listed))
        known = (*self._listed, *PRESETS.values())
        specs = [policy.guidance for policy in known if policy.guidance is not None]
        self._specs = tuple(policy.guidance for policy in self._listed if policy.guidance is not None)
        self._gates: set[Gate | None] = {None, *(spec.gate for spec in specs)}
        self._savings: set[Savings | None] = {None, *(spec.savings for spec in self._specs)}
        concepts = [use for policy in self._listed for use in (*policy.concepts, *policy.probed)]
        self._texts = {(use.text, use.prefix) for use in concepts if use.text is not None}
        self._windows = {use.window for use in concepts} | {spec.window for spec in specs}
        self._actions = [use.on_flag for policy in self._listed for use in policy.filters]
        uses = [use for policy in self._listed for use in (*policy.filters, *policy.prompt_filters)]
        self._raises = "raise" in {policy.on_error for policy in self._listed} | {
            use.on_error for use in uses
        }
        self._most_concepts = max([MOST_CONCEPTS, *map(_concept_count, self._listed)])
        self._checks = {
            "guidance": self._guidance,
            "concepts": self._concepts,
            "scheduler": self._scheduler,
            "step_hooks": self._step_hooks,
            "prompt_filters": self._prompt_filters,
            "filters": self._filters,
            "filter_mode": lambda policy: policy.filter_mode,
            "marks": self._marks,
            "on_error": self._on_error,
        }

    def read(self, content: Mapping[str, Any]) -> SafetyPolicy:
        """The policy that a request brings, named ``inline``, with options that it left out filled in.

        Raises:
            PolicyError: it is no policy, or names what cannot be had.
            Forbidden: it names what only the operator may bring.
        """
        require_small(content)
        for name in SafetyPolicy.model_fields:
            if name in content and name not in self._checks and name not in DROPPED:
                raise Forbidden(
                    f"policy: '{name}' is for policies of the operator only; leave it out "
                    f"(a request may say: {listed(self._checks)})"
                )
        try:
            given = SafetyPolicy.model_validate(dict(content))
        except ValidationError as invalid:
            raise PolicyError(describe_invalid("policy", invalid)) from None
        try:
            changes = {name: check(given) for name, check in self._checks.items()}
            policy = given.replace(**changes, name=NAME, description="")
            check_policies([policy])
        except ConfigurationError as problem:
            raise PolicyError(f"policy: {str(problem).removeprefix('policy: ')}") from None
        if (count := _concept_count(policy)) > self._most_concepts:
            raise Forbidden(
                f"policy: concepts: {count} concepts, and a request may name {self._most_concepts}; a pack as a whole is one"
            )
        return policy

    def _guidance(self, policy: SafetyPolicy) -> GuidanceSpec | None:
        own = policy.guidance
        if own is None:
            return None
        like = [spec for spec in self._specs if spec.method == own.method]
        if own.method != "sld":
            if not like:
                methods = {spec.method for spec in self._specs} | {"sld"}
                raise _not_listed("guidance.method", own.method, methods)
            fitting = [spec.options for spec in like if not own.options or spec.options == own.options]
            if not fitting:
                raise _other("guidance.options", own.method)
            own = own.model_copy(update={"options": fitting[0]})
        self._window("guidance.window", own.window)
        if own.gate not in self._gates:
            raise _other("guidance.gate")
        if own.savings not in self._savings:
            raise _other("guidance.savings")
        free = {"method", "options", "window", "gate", "savings"}
        _require_default("guidance", own, GuidanceSpec(method=own.method, options=own.options), free)
        return own

    def _window(self, field: str, window: Window | None) -> None:
        if window is not None and window.unit not in RANGE_UNITS and window not in self._windows:
            units = {each.unit for each in self._windows if each is not None}
            raise _not_listed(f"{field}.unit", window.unit, {*units, *RANGE_UNITS})

    def _concepts(self, policy: SafetyPolicy) -> tuple[ConceptUse, ...]:
        for index, use in enumerate(policy.concepts):
            if use.text is not None and (use.text, use.prefix) not in self._texts:
                raise Forbidden(
                    f"policy: concepts.{index}.text: a request names concepts of packs, such as "
                    "{use: inappropriate}; texts are for policies of the operator only"
                )
            self._window(f"concepts.{index}.window", use.window)
            free = {"use", "text", "prefix", "weight", "strength", "window"}
            _require_default(f"concepts.{index}", use, ConceptUse(text="any"), free)
        return policy.concepts

    def _scheduler(self, policy: SafetyPolicy) -> Use | None:
        if policy.scheduler is None:
            return None
        (found,) = _all_as_listed("scheduler", [policy.scheduler], [[p.scheduler] for p in self._listed])
        return found

    def _step_hooks(self, policy: SafetyPolicy) -> tuple[Use, ...]:
        return _all_as_listed("step_hooks", policy.step_hooks, [p.step_hooks for p in self._listed])

    def _marks(self, policy: SafetyPolicy) -> tuple[Use, ...]:
        return _all_as_listed("marks", policy.marks, [p.marks for p in self._listed])

    def _prompt_filters(self, policy: SafetyPolicy) -> tuple[PromptFilterUse, ...]:
        uses = _all_as_listed(
            "prompt_filters", policy.prompt_filters, [p.prompt_filters for p in self._listed], FREE_IN_FILTERS
        )
        raising = {use.on_flag for each in self._listed for use in each.prompt_filters}
        for index, use in enumerate(uses):
            self._judging(f"prompt_filters.{index}", use)
            if use.on_flag == "raise" and "raise" not in raising:
                raise _other(f"prompt_filters.{index}.on_flag", "raise")
        return uses

    def _filters(self, policy: SafetyPolicy) -> tuple[FilterUse, ...]:
        uses = _all_as_listed("filters", policy.filters, [p.filters for p in self._listed], FREE_IN_FILTERS)
        for index, use in enumerate(uses):
            self._judging(f"filters.{index}", use)
            self._action(f"filters.{index}.on_flag", use.on_flag)
            for category, concept in use.concepts.items():
                _require_category(f"filters.{index}.concepts", category)
                _require_pack_concept(f"filters.{index}.concepts.{category}", concept)
        return uses

    def _judging(self, field: str, use: PromptFilterUse) -> None:
        for name in ("thresholds", "only", "ignore"):
            for category in getattr(use, name):
                _require_category(f"{field}.{name}", category)
        if use.on_error == "raise" and not self._raises:
            raise _other(f"{field}.on_error", "raise")

    def _action(self, field: str, action: Action) -> None:
        """Whether a request may ask for an action: those that name no file, and cost no more than the operator's."""
        if action.do in FREE_ACTIONS or action == Action(do="replace") or action in self._actions:
            return
        again = [each for each in self._actions if each.do == "regenerate"]
        if action.do != "regenerate" or not again:
            raise _other(field, action.do)
        most = max(each.attempts for each in again)
        if action.attempts > most:
            raise Forbidden(
                f"policy: {field}.attempts is {action.attempts}, and a request may ask for {most}"
            )
        if action.then == "raise" and all(each.then != "raise" for each in again):
            raise _other(f"{field}.then", "raise")

    def _on_error(self, policy: SafetyPolicy) -> str:
        if policy.on_error == "raise" and not self._raises:
            raise _other("on_error", "raise")
        return policy.on_error


def _concept_count(policy: SafetyPolicy) -> int:
    with using(catalogue_for([policy])):
        return len(resolve(policy.concepts))


def _all_as_listed(
    field: str, uses: Sequence[U], known: Sequence[Iterable[U | None]], free: frozenset[str] = frozenset()
) -> tuple[U, ...]:
    """Uses as the operator's policies have them but for what is ``free``, and none more often than in one of these."""
    there = [use for own in known for use in own if use is not None]
    found = tuple(_as_listed(f"{field}.{index}", use, there, free) for index, use in enumerate(uses))
    counts = [Counter((use.use, use.options) for use in own if use is not None) for own in known]
    for name, count in Counter((use.use, use.options) for use in found).items():
        most = max((each[name] for each in counts), default=0)
        if count > most:
            raise Forbidden(
                f"policy: {field}: '{name[0]}' is named {count} times, and a request may name it {most} times"
            )
    return found


def _as_listed(field: str, use: U, known: Sequence[U], free: frozenset[str]) -> U:
    """The use with what it leaves out and is not free filled in from the operator's use that is like it."""
    named = [each for each in known if each.use == use.use]
    if not named:
        raise _not_listed(field, use.use, {each.use for each in known})
    bound = [name for name in type(use).model_fields if name not in free]
    said = {name for name in bound if name in use.model_fields_set and name != "use"}
    if not use.options:
        said.discard("options")
    for each in named:
        if all(getattr(each, name) == getattr(use, name) for name in said):
            return use.model_copy(update={name: getattr(each, name) for name in bound})
    raise _other(f"{field}.{' and '.join(sorted(said))}", use.use)


def _require_default(field: str, own: Any, plain: Any, free: set[str]) -> None:
    """Refuse fields that are neither free nor at their default: what policies gain later is not allowed by oversight."""
    for name in type(own).model_fields:
        if name not in free and getattr(own, name) != getattr(plain, name):
            raise _other(f"{field}.{name}")


def _not_listed(field: str, name: str, known: Iterable[str]) -> Forbidden:
    names = sorted(known)
    return Forbidden(
        f"policy: {field}: '{name}' is in none of the operator's policies{nearest(name, names)} (a request may name: "
        f"{listed(names)})"
    )


def _other(field: str, what: str = "") -> Forbidden:
    of = f" of '{what}'" if what else ""
    return Forbidden(
        f"policy: {field}: what is said{of} is in none of the operator's policies; leave it out, or say it as one of them does"
    )


def _require_category(field: str, category: str) -> None:
    if not _CATEGORY.fullmatch(category):
        raise PolicyError(f"policy: {field}: {category!r:.80} cannot be a category")


def _require_pack_concept(field: str, concept: object) -> None:
    try:
        name = _PACK_USE.validate_python(concept)
        if name.startswith("!"):
            raise ValueError("a request takes no concept out in further attempts")
        resolve([ConceptUse(use=(name,))])
    except ValidationError:
        raise PolicyError(f"policy: {field}: {concept!r:.80} is no concept; write pack/concept") from None
    except SLDError:
        raise
    except ValueError as problem:
        raise Forbidden(f"policy: {field}: {problem}") from None
