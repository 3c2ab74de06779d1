"""The one seam: a hook on the denoiser that adds concept rows to its call and hands back [u; c'].

*A concept row is the conditional row of its sample with the text swapped*: every tensor argument whose first
dimension is the call's 2B rows, at any depth, is extended by copying the sample's conditional row; text arguments
are extended by the concept's. The pipeline then sees an output of the shape that it asked for.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, Final

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from sldcore.errors import GuidanceError, SessionError
from sldcore.families.base import Family
from sldcore.types import Row

HOOK_NAME: Final = "sldcore"
installing: Final = RLock()
"""Held while hooks are put on and taken off, so that no two sessions find the same denoiser free."""

Forward = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class DenoiserCall:
    """One call of the denoiser with its 2B rows."""

    family: Family
    bound: inspect.BoundArguments
    batch: int

    @classmethod
    def bind(cls, family: Family, signature: inspect.Signature, args: Any, kwargs: Any) -> DenoiserCall:
        """Name the arguments of a positional or keyword call.

        Raises:
            GuidanceError: the call's rows cannot be two halves.
        """
        bound = signature.bind(*args, **kwargs)
        latents: Tensor = bound.arguments[family.latents_argument]
        if latents.shape[0] % 2:
            raise GuidanceError(
                f"the denoiser was called with {latents.shape[0]} rows, which are not two halves; safety guidance needs "
                f"classifier-free guidance (guidance_scale > 1) with both halves in one call"
            )
        return cls(family, bound, latents.shape[0] // 2)

    @property
    def latents(self) -> Tensor:
        """The latents [2B, ...]."""
        latents: Tensor = self.bound.arguments[self.family.latents_argument]
        return latents

    @property
    def conditional_latents(self) -> Tensor:
        """The latents of the conditional half, [B, ...]."""
        one, two = self.latents.chunk(2)
        return one if self.family.cond_first else two

    def conditional_rows(self, rows: Sequence[Row]) -> Tensor | slice:
        """Where the conditional row of each row's sample stands in this call; a slice if it is all of them."""
        first_cond = 0 if self.family.cond_first else self.batch
        samples = [row.sample for row in rows]
        if samples == list(range(self.batch)):
            return slice(first_cond, first_cond + self.batch)
        return torch.tensor([first_cond + sample for sample in samples], device=self.latents.device)

    def with_rows(self, source: Tensor | slice, texts: Mapping[str, Tensor]) -> inspect.BoundArguments:
        """The call's arguments with R concept rows appended.

        ``source`` is :meth:`conditional_rows` of the rows; ``texts`` the rows' concept texts by argument, [R, ...].

        Raises:
            GuidanceError: a text argument cannot be extended by the concept's.
        """
        arguments = {
            name: _append_text(name, value, texts[name])
            if name in texts and value is not None
            else _append_copies(value, 2 * self.batch, source)
            for name, value in self.bound.arguments.items()
        }
        missing = [name for name in texts if arguments.get(name) is None]
        if missing:
            raise GuidanceError(
                f"the pipeline calls its denoiser without {missing[0]}, so no concept can be put there"
            )
        return inspect.BoundArguments(self.bound.signature, OrderedDict(arguments))

    def split(self, output: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Unconditional, conditional and concept predictions of an output with 2B + R rows."""
        prediction = _prediction(output)
        one, two, rows = prediction.tensor_split((self.batch, 2 * self.batch))
        return (two, one, rows) if self.family.cond_first else (one, two, rows)

    def cut(self, output: Any) -> Any:
        """``output`` without its concept rows."""
        return _with_prediction(output, _prediction(output)[: 2 * self.batch], 2 * self.batch)

    def join(self, output: Any, uncond: Tensor, cond: Tensor) -> Any:
        """``output`` with its prediction replaced by the two halves, and every other tensor cut to 2B rows."""
        halves = torch.cat([cond, uncond] if self.family.cond_first else [uncond, cond])
        return _with_prediction(output, halves, 2 * self.batch)


def _append_copies(value: Any, rows: int, source: Tensor | slice) -> Any:
    """Extend every tensor with ``rows`` rows in a nested argument by the rows named by ``source``."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] != rows:
            return value
        extra = value[source] if isinstance(source, slice) else value.index_select(0, source.to(value.device))
        return torch.cat([value, extra])
    if isinstance(value, Mapping):
        return {key: _append_copies(item, rows, source) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_append_copies(item, rows, source) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _append_text(name: str, value: Tensor, concept: Tensor) -> Tensor:
    """Append concept rows to a text argument [2B, L, ...].

    Prompts longer than the encoder's window arrive as several windows in a row; a concept's states are repeated to the
    same length then, which leaves attention over them exactly as it is.
    """
    concept = concept.to(device=value.device, dtype=value.dtype)
    if concept.ndim >= 2 and value.shape[1] != concept.shape[1]:
        times, rest = divmod(value.shape[1], concept.shape[1])
        if rest:
            raise GuidanceError(
                f"{name} has {value.shape[1]} tokens and the concept {concept.shape[1]}; prompt embeddings must be a whole "
                f"number of the text encoder's windows long"
            )
        concept = concept.repeat(1, times, *(1,) * (concept.ndim - 2))
    return torch.cat([value, concept])


def _prediction(output: Any) -> Tensor:
    first = next(iter(output.values())) if isinstance(output, BaseOutput) else output
    first = first[0] if isinstance(first, tuple | list) else first
    if not isinstance(first, Tensor):
        raise GuidanceError(f"the denoiser returned {type(output).__name__} instead of a prediction")
    return first


def _with_prediction(output: Any, prediction: Tensor, rows: int) -> Any:
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
