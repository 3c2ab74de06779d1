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
from sldcore.own_rows import OwnRows, RowSource, Swap, fitted_text, own_rows
from sldcore.types import OwnRow, Row

HOOK_NAME: Final = "sldcore"
installing: Final = RLock()
"""Held while hooks are put on and taken off, so that no two sessions find the same denoiser free."""

Forward = Callable[..., Any]


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
        """The call without the samples ``out`` and with other ``texts`` [1, ...] for some rows; None if nothing changes."""
        return own_rows(self.parts, self.batch, out, texts, self.latents.device)

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
        """An output of :meth:`with_rows` or :meth:`only_own` with an answer for own rows that were not evaluated, too."""
        if own is None or len(own.kept.positions) == self.rows:
            return output
        prediction = prediction_of(output)
        mine, concepts = prediction.tensor_split((len(own.kept.positions),))
        whole = mine.index_select(0, own.answers.to(mine.device))
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
        texts = self._placed(texts) if texts else {}
        if own is not None and own.swaps:
            swaps = tuple(replace(swap, texts=self._placed(swap.texts)) for swap in own.swaps)
            own = replace(own, swaps=swaps)
        extension = _Extension(self.rows, source, texts, group, self.family, keep, own)
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

    def _placed(self, texts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.family.placed(texts, self.bound.arguments)


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
    family: Family
    keep: bool
    own: OwnRows | None = None
    swapped: set[str] = field(default_factory=set)

    def of(self, value: Any, path: str) -> Any:
        """An argument, or a part of one, with concept rows; what is not batch-shaped stays as it is."""
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        listed = self.family.listed_arguments
        if path in listed and isinstance(value, list | tuple) and len(value) == self.rows:
            own = range(self.rows) if self.own is None else self.own.kept.positions
            return [value[position] for position in (*(own if self.keep else ()), *self.source.positions)]
        if isinstance(value, Mapping):
            return {key: self.of(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self.of(item, path) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        return value

    def _tensor(self, value: Tensor, path: str) -> Tensor:
        swaps = [swap for swap in (self.own.swaps if self.own is not None else ()) if path in swap.texts]
        concept = self.texts.get(path)
        if swaps or concept is not None:
            self.swapped.add(path)
        if concept is not None and not self.keep:
            return self._as_in_call(concept, value, self._group_of(value)).contiguous()
        rows_and_texts = [(len(swap.at), swap.texts[path]) for swap in swaps]
        if concept is not None:
            rows_and_texts.append((len(self.source.positions), concept))
        if self._lies_second(value, path, rows_and_texts):  # such as Llama's of HiDream, [layers, rows, L, D]
            turned = [replace(swap, texts={path: swap.texts[path].transpose(0, 1)}) for swap in swaps]
            concept = None if concept is None else concept.transpose(0, 1)
            return self._extended(value.transpose(0, 1), path, turned, concept).transpose(0, 1)
        return self._extended(value, path, swaps, concept)

    def _extended(self, value: Tensor, path: str, swaps: Sequence[Swap], concept: Tensor | None) -> Tensor:
        """``value`` with other texts for own rows, and with concept rows: copies, or the text ``concept``."""
        group = self._group_of(value)
        if not swaps and concept is None and not (value.ndim and value.shape[0] == self.rows * group):
            return value
        own = value if self.own is None else self.own.kept.of(value, group)
        for swap in swaps:
            own = swap.put(path, own, self._as_in_call(swap.texts[path], value, group), group)
        if concept is not None:
            return torch.cat([own, fitted_text(path, self._as_in_call(concept, value, group), own)])
        copies = self.source.of(value, group)
        if not self.keep:
            return copies
        return torch.cat([own, copies]) if len(copies) else own

    def _group_of(self, value: Tensor) -> int:
        """How many entries of ``value`` belong to one row."""
        grouped = self.group > 1 and value.ndim and value.shape[0] == self.rows * self.group
        return self.group if grouped else 1

    def _lies_second(self, value: Tensor, path: str, texts: Sequence[tuple[int, Tensor]]) -> bool:
        """Whether the rows of a text argument are its second dimension; other texts with their numbers of rows tell, too."""
        if path not in self.family.text_arguments or value.ndim < 3 or value.shape[1] != self.rows:
            return False
        first = value.shape[0] in (self.rows, self.rows * self.group)
        return not first or any(text.shape[0] != rows * self.group == rows for rows, text in texts)

    @staticmethod
    def _as_in_call(text: Tensor, value: Tensor, group: int) -> Tensor:
        text = text.to(device=value.device, dtype=value.dtype)
        return text if group == 1 else text.repeat_interleave(group, dim=0)


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
