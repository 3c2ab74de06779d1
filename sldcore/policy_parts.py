"""The parts of a policy: when guidance acts, how, against which concepts, and what else runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sldcore.documents import Strict, describe_invalid, refuse_unknown_keys
from sldcore.errors import listed

RANGE_UNITS: Final = ("steps", "fraction", "noise")
"""Units of a window that has a start and a stop."""

Scalar = float | int | str | bool


def _number(value: object) -> object:
    # Pydantic reads true as 1 and "7" as 7; in a safety setting that is a slip of the pen.
    if isinstance(value, bool | str):
        raise ValueError(f"expected a number, got {value!r}")
    return value


Number = Annotated[float, BeforeValidator(_number)]


class Options(Mapping[str, Scalar]):
    """Options of a contribution: a mapping that cannot be changed and can be hashed."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Scalar]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> Scalar:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self._told_apart() == other._told_apart()

    def __hash__(self) -> int:
        return hash(self._told_apart())

    def _told_apart(self) -> frozenset[tuple[str, bool, Scalar]]:
        # Python takes True and 1 for equal; a digest, and a plugin, need not.
        return frozenset((key, isinstance(value, bool), value) for key, value in self._items.items())

    def __repr__(self) -> str:
        return repr(self._items)


def _scalars_only(options: object) -> object:
    if isinstance(options, Mapping):
        for key, value in options.items():
            if not isinstance(value, float | int | str) or (isinstance(value, float) and not isfinite(value)):
                raise ValueError(
                    f"option '{key}' must be a finite number, a text, true or false, got {value!r:.80}"
                )
    return options


GivenOptions = Annotated[
    Mapping[str, Scalar],
    BeforeValidator(_scalars_only),
    AfterValidator(Options),
    PlainSerializer(dict, return_type=dict[str, Scalar]),
]
"""Options as a policy gives them; the contribution's own model checks them when the policy is resolved."""


class Window(Strict):
    """When guidance acts.

    ``steps``: denoiser calls with start <= index < stop. ``fraction``: start <= index / total < stop, both in 0..1.
    ``noise``: noise levels sqrt(1 - alpha_bar) (or flow's sigma) with stop < level <= start; they fall from 1 to 0
    during a run, so ``start`` is the higher one, 1 by default. ``stop=None`` means until the end. Any other unit is the
    name of a window that a plugin contributes, and takes ``options`` in place of start and stop.
    """

    unit: str = Field(default="steps", min_length=1)
    start: Number = 0.0
    stop: Number | None = None
    options: GivenOptions = Field(default_factory=lambda: Options({}), validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _start_of_unit(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("unit") == "noise":
            return {"start": 1.0, **data}
        return data

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.unit not in RANGE_UNITS:
            if self.start != 0 or self.stop is not None:
                raise ValueError(
                    f"start and stop belong to the units {listed(RANGE_UNITS)}; give window '{self.unit}' its options"
                )
            return self
        if self.options:
            raise ValueError(f"unit '{self.unit}' has start and stop, and no options")
        ends = [("start", self.start)] + ([("stop", self.stop)] if self.stop is not None else [])
        for name, value in ends:
            if self.unit == "steps" and (value < 0 or value != int(value)):
                raise ValueError(f"{name} must be a whole number of steps, 0 or more, got {value:g}")
            if self.unit != "steps" and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in 0..1 for unit '{self.unit}', got {value:g}")
        falling = self.unit == "noise"
        if self.stop is not None and (self.stop >= self.start if falling else self.stop <= self.start):
            order = "below" if falling else "above"
            raise ValueError(
                f"stop ({self.stop:g}) must be {order} start ({self.start:g}), or the window is empty"
            )
        return self


class SLDOptions(Strict):
    """Options of the method ``sld``: the paper's s_S, lambda, s_m and beta_m (arXiv 2211.05105, section 3.2)."""

    scale: Number = Field(default=1000.0, ge=0)
    threshold: Number = 0.01
    momentum_scale: Number = Field(default=0.3, ge=0, le=1)
    momentum_beta: Number = Field(default=0.4, ge=0, lt=1)


def _probabilities(values: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
    for name, value in values.items():
        if isinstance(value, bool | str) or not 0 <= value <= 1:
            raise ValueError(f"the threshold of '{name}' must be a number in 0..1, got {value!r}")
    return values


Thresholds = Annotated[GivenOptions, AfterValidator(_probabilities)]

NAME: Final = r"^[a-z0-9][a-z0-9_+-]*$"
PackUse = Annotated[str, StringConstraints(pattern=r"^!?[a-z0-9][a-z0-9_-]*(/(\*|[a-z0-9][a-z0-9_-]*))?$")]


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class ConceptUse(Strict):
    """Concepts of a policy: ``use`` names some of packs, ``text`` is one's own; exactly one of them.

    ``use`` is ``pack`` (the pack's whole text), ``pack/concept``, or ``pack/*`` (each concept of the pack); or a list of
    these, which share what else is said here. ``!pack/concept`` takes a concept out again, whatever uses it. A plain
    string stands for ``use``. ``prefix`` is put in front of ``text``, and again in front of each part if the text is
    longer than the text encoder's window. ``weight`` scales the safety term and ``strength`` the method's own scale, both
    on top of the pack's; ``window`` says when these concepts act, inside the window of the guidance (what a method makes of
    the steps before it opens, such as momentum, is the method's).
    """

    use: Annotated[tuple[PackUse, ...], BeforeValidator(_one_or_more)] | None = None
    text: str | None = None
    prefix: str = ""
    weight: Number = Field(default=1.0, ge=0)
    strength: Number = Field(default=1.0, gt=0)
    window: Window | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_string(cls, data: Any) -> Any:
        return {"use": data} if isinstance(data, str) else data

    @field_validator("text", "prefix")
    @classmethod
    def _stripped(cls, value: str | None) -> str | None:
        return re.sub(r"\s+", " ", value).strip() if value is not None else None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.use is None) == (self.text is None):
            raise ValueError("give exactly one of 'use' (concepts of packs) and 'text' (your own)")
        if self.text == "":
            raise ValueError("'text' is empty; describe what to guide away from")
        if self.use is not None and self.prefix:
            raise ValueError("'prefix' belongs to 'text'; a pack brings its own prefix")
        only_out = bool(self.use) and all(name.startswith("!") for name in self.use or ())
        if only_out and (self.weight, self.strength, self.window) != (1.0, 1.0, None):
            raise ValueError(
                "what is taken out with '!' has no weight, strength or window; write it by itself"
            )
        return self


def _falling_or_rising(positions: tuple[float, ...], unit: str) -> bool:
    ordered = sorted(set(positions), reverse=unit == "noise")
    return list(positions) == ordered


def _switch(value: object) -> object:
    # YAML reads a bare on or off as true or false.
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Gate(Strict):
    """Guides only pictures in which a concept shows: the relevance of concepts is probed, and the answer decides.

    ``probes`` are positions in ``unit``: denoiser calls, fractions of the run, or noise levels. At each, the concepts in
    ``concepts`` (the policy's own by default) are evaluated, and guidance acts on a picture for which one of them has a
    relevance (see ``sldcore.guidance.gate``) of at least ``threshold``; once it acts, at least ``release`` keeps it
    acting (a method that replaces the pipeline's own texts acts to the end, since nothing can be told from these any more). ``start`` says whether it acts before the first probe. ``then: restart`` makes a picture that is found relevant
    again, guided from its first step; ``continue`` guides from the probe on. ``guide`` says by which concepts: ``policy`` (the
    policy's), ``found`` (the one of the highest relevance), or ``both``; ``found_until`` ends guidance by what was found at that
    fraction of the run.
    """

    probes: tuple[Number, ...] = Field(default=(0.14,), min_length=1, max_length=20)
    unit: Literal["steps", "fraction", "noise"] = "fraction"
    concepts: tuple[ConceptUse, ...] = ()
    threshold: Number = Field(default=0.3, ge=-1, le=1)
    release: Number | None = Field(default=None, ge=-1, le=1)
    start: Annotated[Literal["off", "on"], BeforeValidator(_switch)] = "off"
    then: Literal["restart", "continue"] = "restart"
    guide: Literal["policy", "found", "both"] = "policy"
    found_until: Number = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for at in self.probes:
            if self.unit == "steps" and (at < 0 or at != int(at)):
                raise ValueError(f"probes in steps are whole numbers, 0 or more, got {at:g}")
            if self.unit != "steps" and not 0 <= at <= 1:
                raise ValueError(f"probes must be in 0..1 for unit '{self.unit}', got {at:g}")
        if not _falling_or_rising(self.probes, self.unit):
            order = "fall" if self.unit == "noise" else "rise"
            raise ValueError(f"probes must {order}, got {listed(f'{at:g}' for at in self.probes)}")
        if self.release is not None and self.release > self.threshold:
            raise ValueError(f"release ({self.release:g}) must not be above threshold ({self.threshold:g})")
        if self.start == "on" and self.then == "restart":
            raise ValueError("a picture that is guided from the start needs no restart; use `then: continue`")
        if self.found_until != 1 and self.guide == "policy":
            raise ValueError("found_until needs `guide: found` or `guide: both`")
        if any(use.window is not None for use in self.concepts):
            raise ValueError("concepts of a gate have no window: they are looked at where it probes")
        return self


MOMENTUM_METHODS: Final = ("sld", "sld+negative")
"""Methods whose warm-up builds momentum by SLD's equations from all of a sample's concepts."""


class Savings(Strict):
    """Fewer concept rows than the method asks for, at the price of a known approximation; none by default.

    ``concept_every: n`` evaluates concept rows at every n-th denoiser call for which the method asks for them, and takes what
    they said for the calls in between. ``momentum_error: x`` cuts the calls before the window that only build SLD's
    momentum, as long as the bound of what is neglected is at most x of the bound of the whole.
    """

    concept_every: int = Field(default=1, ge=1, strict=True)
    momentum_error: Number = Field(default=0.0, ge=0, lt=1)


class GuidanceSpec(Strict):
    """Which guidance method runs, with which options, when, behind which gate, and with which approximate savings.

    Options of ``sld`` are checked at once and stored complete; those of other methods when the policy is resolved.
    """

    method: str = Field(default="sld", min_length=1)
    options: GivenOptions = Field(default_factory=lambda: Options({}), validate_default=True)
    window: Window = Window()
    gate: Gate | None = None
    savings: Savings | None = None

    @field_validator("options")
    @classmethod
    def _complete(cls, options: Mapping[str, Scalar], info: ValidationInfo) -> Mapping[str, Scalar]:
        if info.data.get("method") != "sld":
            return options
        refuse_unknown_keys(options, SLDOptions.model_fields, "option of method 'sld',")
        try:
            return Options(SLDOptions.model_validate(dict(options)).model_dump())
        except ValidationError as invalid:
            raise ValueError(describe_invalid("method 'sld'", invalid)) from None

    @model_validator(mode="after")
    def _momentum_to_save(self) -> Self:
        if self.savings is not None and self.savings.momentum_error and self.method not in MOMENTUM_METHODS:
            raise ValueError(
                f"momentum_error shortens the warm-up of {' and '.join(MOMENTUM_METHODS)}, and method '{self.method}' has none of "
                f"that kind; leave momentum_error out, or use concept_every"
            )
        return self


class Use(Strict):
    """Something that a policy names, with its options. A plain string stands for ``use``."""

    use: str = Field(pattern=NAME)
    options: GivenOptions = Field(default_factory=lambda: Options({}), validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _plain_string(cls, data: Any) -> Any:
        return {"use": data} if isinstance(data, str) else data


class Action(Strict):
    """What happens to a flagged picture. A plain string stands for ``do``.

    ``flag`` shows it and says so; ``black``, ``blur``, ``pixelate`` and ``replace`` show something else; ``drop`` shows nothing;
    ``raise`` raises. ``blur`` and ``pixelate`` destroy what they cover, the whole picture or the filter's boxes (``area``).
    ``replace`` shows ``picture`` (a file), or a card with the reason. ``regenerate`` makes up to ``attempts`` further
    pictures, each with a new seed, a stronger preset and the flagged category's concept as asked, and does ``then`` if the
    last one is flagged too.
    """

    do: Literal["flag", "black", "blur", "pixelate", "replace", "drop", "raise", "regenerate"] = "black"
    area: Literal["whole", "boxes"] = "whole"
    picture: str | None = None
    attempts: int = Field(default=3, ge=1, le=20)
    new_seed: bool = True
    stronger: bool = True
    add_concept: bool = True
    then: Literal["flag", "black", "blur", "pixelate", "replace", "drop", "raise"] = "black"

    @model_validator(mode="before")
    @classmethod
    def _plain_string(cls, data: Any) -> Any:
        return {"do": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _fields_of_do(self) -> Self:
        own = {"blur": {"area"}, "pixelate": {"area"}, "replace": {"picture"}}
        retry = {"attempts", "new_seed", "stronger", "add_concept", "then"}
        allowed = retry if self.do == "regenerate" else own.get(self.do, set())
        if foreign := self.model_fields_set - {"do"} - allowed:
            raise ValueError(f"'{self.do}' takes no {listed(foreign)} (it takes: {listed(allowed)})")
        if self.do == "regenerate" and not (self.new_seed or self.stronger or self.add_concept):
            raise ValueError("regenerate must change something: new_seed, stronger or add_concept")
        return self

    @property
    def final(self) -> Action:
        """What is done when there are no further attempts."""
        return Action(do=self.then) if self.do == "regenerate" else self


class PromptFilterUse(Use):
    """A prompt filter of a policy: ``threshold`` and ``thresholds`` (per category) in place of its own.

    ``on_flag``: ``black`` withholds the prompt's pictures, which are not generated; ``flag`` only says so; ``raise`` raises.
    ``shadow`` records and never acts. ``timeout`` in seconds. ``on_error``: the policy's, if it says nothing itself; ``allow``
    shows what could not be reviewed, and the report says so.
    """

    on_flag: Literal["black", "flag", "raise"] = "black"
    threshold: Number | None = Field(default=None, ge=0, le=1)
    thresholds: Thresholds = Field(default_factory=lambda: Options({}), validate_default=True)
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    shadow: bool = False
    timeout: Number = Field(default=120.0, gt=0)
    on_error: Literal["block", "raise", "allow"] | None = None

    @model_validator(mode="after")
    def _only_or_ignore(self) -> Self:
        if self.only and self.ignore:
            raise ValueError("give 'only' or 'ignore', not both")
        return self

    @property
    def judges(self) -> bool:
        """True if the policy decides what is flagged, and not the filter alone."""
        return self.threshold is not None or bool(self.thresholds or self.only or self.ignore)


class FilterUse(PromptFilterUse):
    """A post-filter of a policy. As :class:`PromptFilterUse`, with more actions.

    ``concepts`` maps a category to the concept that ``regenerate`` adds for it, such as ``{gore: violence/gore}``; without it,
    a category that ``inappropriate`` has too adds that.
    """

    on_flag: Action = Action()  # type: ignore[assignment]
    concepts: GivenOptions = Field(default_factory=lambda: Options({}), validate_default=True)
