"""The one seam: a hook on the denoiser that adds concept rows to its call and hands back [u; c'].

*A concept row is the conditional row of its sample with the text swapped*: every tensor argument whose first
dimension is the call's 2B rows, at any depth, is extended by copying the sample's conditional row; text arguments
are extended by the concept's. The pipeline then sees an output of the shape that it asked for.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any, Final

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from sldcore.errors import GuidanceError, SessionError
from sldcore.families.base import COND, UNCOND, Family
from sldcore.types import OwnRow, Row

HOOK_NAME: Final = "sldcore"
installing: Final = RLock()
"""Held while hooks are put on and taken off, so that no two sessions find the same denoiser free."""

Forward = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where the conditional rows of some concept rows stand in a call: on the host, and as an index on the device.

    A slice if it is all of them in order, which needs no copy.
    """

    positions: tuple[int, ...]
    index: Tensor | slice

    def of(self, value: Tensor, group: int = 1) -> Tensor:
        """The rows of ``value``, each of them ``group`` entries."""
        grouped = value if group == 1 else value.reshape(-1, group, *value.shape[1:])
        rows = (
            grouped[self.index]
            if isinstance(self.index, slice)
            else grouped.index_select(0, self.index.to(value.device))
        )
        return rows if group == 1 else rows.flatten(0, 1)


@dataclass(frozen=True, slots=True)
class OwnRows:
    """What becomes of a call's own rows: which of them are evaluated, and which get another text.

    ``kept`` are their positions in the call and ``texts`` the other texts, [S, ...] by argument, for the rows at ``swapped``
    (positions among those kept).
    """

    kept: RowSource
    swapped: Tensor | None = None
    texts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DenoiserCall:
    """One call of the denoiser with B rows for each of its ``parts``."""

    family: Family
    bound: inspect.BoundArguments
    parts: tuple[str, ...]
    batch: int
    positional: int = 0
    """How many arguments the pipeline gives by position."""

    @classmethod
    def bind(
        cls, family: Family, signature: inspect.Signature, args: Any, kwargs: Any, parts: tuple[str, ...] = ()
    ) -> DenoiserCall:
        """Name the arguments of a positional or keyword call with these parts, [uncond; cond] by default.

        Raises:
            GuidanceError: the call's rows cannot be as many parts.
        """
        parts = parts or (UNCOND, COND)
        bound = signature.bind(*args, **kwargs)
        latents: Tensor = bound.arguments[family.latents_argument]
        if latents.shape[0] % len(parts) and not family.is_aside(bound.arguments):
            raise GuidanceError(
                f"the denoiser was called with {latents.shape[0]} rows, which are not {len(parts)} equal parts "
                f"({', '.join(parts)}); safety guidance needs classifier-free guidance with all parts in one call"
            )
        return cls(family, bound, parts, latents.shape[0] // len(parts), len(args))

    def kept(self) -> DenoiserCall:
        """The call as it is now, though the pipeline puts other things into its dicts and lists later."""
        arguments = OrderedDict((name, _kept(value)) for name, value in self.bound.arguments.items())
        return replace(self, bound=inspect.BoundArguments(self.bound.signature, arguments))

    def evaluate(self, forward: Forward, bound: inspect.BoundArguments | None = None) -> Any:
        """Call the denoiser, with the call's own arguments or others in their form.

        What the pipeline gives by name stays so: hooks of diffusers (FasterCache) look for it there.
        """
        bound = self.bound if bound is None else bound
        by_position: list[Any] = []
        by_name: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                by_name |= value
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                by_position += value
            elif len(by_position) < self.positional:
                by_position.append(value)
            else:
                by_name[name] = value
        return forward(*by_position, **by_name)

    @property
    def rows(self) -> int:
        """Rows of the call."""
        return self.batch * len(self.parts)

    @property
    def latents(self) -> Tensor:
        """The latents [rows, ...]."""
        latents: Tensor = self.bound.arguments[self.family.latents_argument]
        return latents

    @property
    def conditional_latents(self) -> Tensor:
        """The latents of the conditional part, [B, ...]."""
        return self.latents.chunk(len(self.parts))[self.parts.index(COND)]

    def conditional_rows(self, rows: Sequence[Row]) -> RowSource:
        """Where the conditional row of each row's sample stands in this call."""
        first = self.parts.index(COND) * self.batch
        positions = tuple(first + row.sample for row in rows)
        if positions == tuple(range(first, first + self.batch)):
            return RowSource(positions, slice(first, first + self.batch))
        return RowSource(positions, torch.tensor(positions, device=self.latents.device))

    def own_rows(self, out: frozenset[int], texts: Mapping[OwnRow, Mapping[str, Tensor]]) -> OwnRows | None:
        """The call without the samples ``out`` and with other ``texts`` [1, ...] for some rows; None if nothing changes.

        One row stays where all samples are out, so that there is something to evaluate.
        """
        own = [OwnRow(sample, part) for part in self.parts for sample in range(self.batch)]
        kept = [position for position, row in enumerate(own) if row.sample not in out] or [0]
        swapped = [index for index, position in enumerate(kept) if own[position] in texts]
        if len(kept) == len(own) and not swapped:
            return None
        device = self.latents.device
        everything = len(kept) == len(own)
        index: Tensor | slice = slice(None) if everything else torch.tensor(kept, device=device)
        source = RowSource(tuple(kept), index)
        if not swapped:
            return OwnRows(source)
        chosen = [texts[own[kept[position]]] for position in swapped]
        merged = {name: torch.cat([each[name].to(device) for each in chosen]) for name in chosen[0]}
        return OwnRows(source, torch.tensor(swapped, device=device), merged)

    def with_rows(
        self, source: RowSource, texts: Mapping[str, Tensor], own: OwnRows | None = None
    ) -> inspect.BoundArguments:
        """The call's arguments with R concept rows appended.

        ``source`` is :meth:`conditional_rows` of the rows; ``texts`` the rows' concept texts by argument, [R, ...]; ``own`` what
        becomes of the call's own rows, which stay as they are without it.

        Raises:
            GuidanceError: a text argument cannot be extended by the concept's.
        """
        return self._arguments(source, texts, keep=True, own=own)

    def only_own(self, own: OwnRows) -> inspect.BoundArguments:
        """The arguments of a call with some of its own rows and no other ones.

        Raises:
            GuidanceError: as :meth:`with_rows`.
        """
        return self._arguments(RowSource((), slice(0, 0)), {}, keep=True, own=own)

    def spread(self, output: Any, own: OwnRows | None) -> Any:
        """An output of :meth:`with_rows` or :meth:`only_own` with 0 in the place of own rows that were not evaluated."""
        if own is None or len(own.kept.positions) == self.rows:
            return output
        prediction = prediction_of(output)
        mine, concepts = prediction.tensor_split((len(own.kept.positions),))
        whole = mine.new_zeros((self.rows, *mine.shape[1:])).index_copy(0, _positions(own.kept, mine), mine)
        return with_prediction(output, torch.cat([whole, concepts]), self.rows + len(concepts))

    def only_rows(self, source: RowSource, texts: Mapping[str, Tensor]) -> inspect.BoundArguments:
        """The arguments of a call with R concept rows and nothing else.

        Raises:
            GuidanceError: the pipeline calls its denoiser without a text argument.
        """
        return self._arguments(source, texts, keep=False)

    def predictions(self, output: Any) -> tuple[dict[str, Tensor], Tensor]:
        """The prediction of each part [B, ...], and those of concept rows [R, ...], of an output with rows + R rows."""
        prediction = self.noise(output)
        own, concepts = prediction.tensor_split((self.rows,))
        return dict(zip(self.parts, own.chunk(len(self.parts)), strict=True)), concepts

    def noise(self, output: Any) -> Tensor:
        """The noise prediction of an output; denoisers that predict their variance too give it in further channels."""
        prediction = prediction_of(output)
        return prediction.chunk(2, dim=1)[0] if self._predicts_variance(prediction) else prediction

    def cut(self, output: Any) -> Any:
        """``output`` without its concept rows."""
        return with_prediction(output, prediction_of(output)[: self.rows], self.rows)

    def join(self, output: Any, parts: Mapping[str, Tensor]) -> Any:
        """``output`` with its noise prediction replaced by those of the parts, every other tensor cut to the call's rows."""
        noise = torch.cat([parts[name] for name in self.parts])
        whole = prediction_of(output)
        if self._predicts_variance(whole):
            noise = torch.cat([noise, whole[: self.rows].chunk(2, dim=1)[1]], dim=1)
        return with_prediction(output, noise, self.rows)

    def _predicts_variance(self, prediction: Tensor) -> bool:
        return prediction.ndim > 3 and prediction.shape[1] == 2 * self.latents.shape[1]

    def _arguments(
        self, source: RowSource, texts: Mapping[str, Tensor], *, keep: bool, own: OwnRows | None = None
    ) -> inspect.BoundArguments:
        group = self.family.rows_per_sample(self.bound.arguments)
        texts = self.family.placed(texts, self.bound.arguments) if texts else {}
        if own is not None and own.texts:
            own = replace(own, texts=self.family.placed(own.texts, self.bound.arguments))
        extension = _Extension(self.rows, source, texts, group, self.family.listed_arguments, keep, own)
        shared = self.family.shared_arguments
        arguments = {
            name: value if name in shared else extension.of(value, name)
            for name, value in self.bound.arguments.items()
        }
        wanted = [*texts, *(own.texts if own is not None else ())]
        if missing := [name for name in wanted if name not in extension.swapped]:
            raise GuidanceError(
                f"the pipeline calls its denoiser without {missing[0]}, so no concept can be put there"
            )
        return inspect.BoundArguments(self.bound.signature, OrderedDict(arguments))


def _kept(value: Any) -> Any:
    """``value`` with containers of its own around the same tensors."""
    if isinstance(value, dict):
        return {key: _kept(item) for key, item in value.items()}
    return [_kept(item) for item in value] if isinstance(value, list) else value


@dataclass(slots=True)
class _Extension:
    """Concept rows for every argument of a call with ``rows`` rows: behind its own ones, or (``keep`` false) alone."""

    rows: int
    source: RowSource
    texts: Mapping[str, Tensor]
    group: int
    listed: tuple[str, ...]
    keep: bool
    own: OwnRows | None = None
    swapped: set[str] = field(default_factory=set)

    def of(self, value: Any, path: str) -> Any:
        """An argument, or a part of one, with concept rows; what is not batch-shaped stays as it is."""
        if isinstance(value, Tensor) and (path in self.texts or (self.own and path in self.own.texts)):
            self.swapped.add(path)
            return self._text(value, path)
        if path in self.listed and isinstance(value, list | tuple) and len(value) == self.rows:
            own = range(self.rows) if self.own is None else self.own.kept.positions
            return [value[position] for position in (*(own if self.keep else ()), *self.source.positions)]
        if isinstance(value, Tensor):
            return self._copies(value)
        if isinstance(value, Mapping):
            return {key: self.of(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self.of(item, path) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    def _copies(self, value: Tensor) -> Tensor:
        for group in dict.fromkeys((1, self.group)):
            if value.ndim and value.shape[0] == self.rows * group:
                return self._joined(self._kept(value, group), self.source.of(value, group))
        return value

    def _text(self, value: Tensor, path: str) -> Tensor:
        group = self.group if self.group > 1 and value.shape[0] == self.rows * self.group else 1
        own = self._kept(value, group)
        if self.own is not None and path in self.own.texts and self.own.swapped is not None:
            others = self._as_in_call(path, self.own.texts[path], value, group)
            own = _put(own, self.own.swapped, others, group)
        if path not in self.texts:
            copies = self.source.of(value, group)
            return self._joined(own, copies)
        concept = self._as_in_call(path, self.texts[path], value, group)
        return torch.cat([own, _fitted(path, concept, value)]) if self.keep else concept.contiguous()

    def _as_in_call(self, path: str, text: Tensor, value: Tensor, group: int) -> Tensor:
        text = text.to(device=value.device, dtype=value.dtype)
        return text if group == 1 else text.repeat_interleave(group, dim=0)

    def _kept(self, value: Tensor, group: int) -> Tensor:
        return value if self.own is None else self.own.kept.of(value, group)

    def _joined(self, own: Tensor, copies: Tensor) -> Tensor:
        if not self.keep:
            return copies
        return torch.cat([own, copies]) if len(copies) else own


def _put(value: Tensor, at: Tensor, rows: Tensor, group: int) -> Tensor:
    """``value`` [N * group, ...] with other rows [S * group, ...] at the N-positions ``at``."""
    fitted = _fitted("text", rows, value)
    grouped = value.reshape(-1, group, *value.shape[1:])
    return grouped.index_copy(0, at.to(value.device), fitted.reshape(-1, group, *value.shape[1:])).flatten(
        0, 1
    )


def _positions(source: RowSource, like: Tensor) -> Tensor:
    if isinstance(source.index, Tensor):
        return source.index.to(like.device)
    return torch.tensor(source.positions, device=like.device)


def _fitted(name: str, concept: Tensor, value: Tensor) -> Tensor:
    """A concept's text [R, L, ...] at the length that the call's has.

    Prompts longer than the encoder's window arrive as several windows in a row; a concept's states are repeated to the
    same length then, which leaves attention over them exactly as it is.

    Raises:
        GuidanceError: the call's length is no multiple.
    """
    if concept.ndim < 2 or value.shape[1] == concept.shape[1]:
        return concept
    times, rest = divmod(value.shape[1], concept.shape[1])
    if rest:
        raise GuidanceError(
            f"{name} has {value.shape[1]} tokens and the concept {concept.shape[1]}; prompt embeddings must be a whole "
            f"number of the text encoder's windows long"
        )
    return concept.repeat(1, times, *(1,) * (concept.ndim - 2))


def prediction_of(output: Any) -> Tensor:
    """The prediction in what a denoiser returns.

    Raises:
        GuidanceError: there is none.
    """
    first = next(iter(output.values())) if isinstance(output, BaseOutput) else output
    first = first[0] if isinstance(first, tuple | list) else first
    if not isinstance(first, Tensor):
        raise GuidanceError(f"the denoiser returned {type(output).__name__} instead of a prediction")
    return first


def with_prediction(output: Any, prediction: Tensor, rows: int) -> Any:
    """``output`` with another prediction, every other tensor cut to ``rows`` rows."""

    def cut(value: Any) -> Any:
        return value[:rows] if isinstance(value, Tensor) and value.ndim and value.shape[0] > rows else value

    if isinstance(output, BaseOutput):
        name, *others = output
        return type(output)(**{name: prediction, **{other: cut(output[other]) for other in others}})
    if isinstance(output, tuple):
        return (prediction, *(cut(value) for value in output[1:]))
    return prediction


class DenoiserHook(ModelHook):  # type: ignore[misc]
    """Sends every denoiser call through ``intercept(forward, args, kwargs)``."""

    def __init__(self, intercept: Callable[[Forward, Any, Any], Any]) -> None:
        super().__init__()
        self._intercept = intercept

    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What the denoiser's forward becomes while the hook is installed."""
        return self._intercept(self.fn_ref.original_forward, args, kwargs)


def forward_signature(module: nn.Module) -> inspect.Signature:
    """Signature of the denoiser's own forward, whatever compiles or wraps it."""
    plain = getattr(module, "_orig_mod", module)
    signature = inspect.signature(type(plain).forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def install(module: nn.Module, intercept: Callable[[Forward, Any, Any], Any]) -> HookRegistry:
    """Put the hook on ``module``.

    Raises:
        SessionError: another session guards this denoiser.
    """
    with installing:
        registry = _registry_of(module)
        if registry.get_hook(HOOK_NAME) is not None:
            raise SessionError(
                f"this {type(module).__name__} is guarded by another session already; leave that one first, or give each "
                f"session a pipeline with a denoiser of its own"
            )
        registry.register_hook(DenoiserHook(intercept), HOOK_NAME)
    return registry


def _registry_of(module: nn.Module) -> HookRegistry:
    """The registry that hooks ``module`` itself.

    A module and its compiled form share the attribute that holds the registry, but are called apart.
    """
    registry = HookRegistry.check_if_exists_or_initialize(module)
    if registry._module_ref is not module and not registry.hooks:
        registry = module._diffusers_hook = HookRegistry(module)
    return registry


def remove(registry: HookRegistry) -> None:
    """Take the hook off again."""
    registry.remove_hook(HOOK_NAME, recurse=False)
