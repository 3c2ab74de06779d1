"""What sldcore uses of diffusers' guiders and modular pipelines, which diffusers calls experimental: here, and nowhere else.

A modular pipeline is a sequence of *blocks* that read from and write to a state. Its denoising block asks the pipeline's
*guider* for *batches* of denoiser inputs (conditional, unconditional, ...), evaluates each, and gives them back with their
predictions; what the guider makes of them goes to the scheduler. diffusers 0.40 and 0.42 were tried.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import diffusers
from torch import nn

from sldcore.errors import ConfigurationError, UnsupportedPipelineError, listed

try:
    from diffusers import guiders
    from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
    from diffusers.guiders.guider_utils import BaseGuidance as BaseGuidance
    from diffusers.modular_pipelines.modular_pipeline import BlockState, ModularPipeline, PipelineState
except ImportError as error:
    raise UnsupportedPipelineError(
        f"diffusers {diffusers.__version__} has no guiders for modular pipelines ({error}); use diffusers 0.40 or newer"
    ) from error

COND: Final = "pred_cond"
UNCOND: Final = "pred_uncond"
USED: Final = (
    "_identifier_key",
    "set_state",
    "prepare_inputs",
    "prepare_inputs_from_block_state",
    "prepare_models",
    "cleanup_models",
    "num_conditions",
    "is_conditional",
)
"""Attributes of a guider that :class:`sldcore.SafetyGuider` calls or replaces."""


def require_known(guider: type) -> None:
    """Refuse a diffusers whose guiders have become something else.

    Raises:
        UnsupportedPipelineError: it lacks what is used of it.
    """
    if missing := [name for name in USED if not hasattr(guider, name)]:
        raise UnsupportedPipelineError(
            f"the guiders of diffusers {diffusers.__version__} have no {listed(missing)}, which SafetyGuider uses; "
            f"diffusers calls them experimental. Use diffusers 0.40 to 0.42, or guard() on a classic pipeline"
        )


require_known(BaseGuidance)

if TYPE_CHECKING:
    Batch: TypeAlias = Any
    Denoiser: TypeAlias = nn.Module
else:
    Batch, Denoiser = BlockState, nn.Module


def identifier(batch: Batch) -> str:
    """Which prediction a batch is for, such as ``pred_cond``."""
    return str(getattr(batch, BaseGuidance._identifier_key))


def fields(batch: Batch) -> dict[str, Any]:
    """The denoiser inputs of a batch."""
    return {name: value for name, value in vars(batch).items() if name != BaseGuidance._identifier_key}


def new_batch(inputs: Mapping[str, Any], name: str) -> Batch:
    """A batch of denoiser inputs for one prediction."""
    return BlockState(**inputs, **{BaseGuidance._identifier_key: name})


def everywhere(guider: Any) -> Any:
    """A copy of ``guider`` that guides at every step, whatever its own range is; its state is apart."""
    twin = copy.copy(guider)
    twin._num_inference_steps = None
    return twin


def to_config(guider: Any) -> dict[str, Any]:
    """A guider's class and configuration, fit for JSON."""
    config: dict[str, Any] = json.loads(guider.to_json_string())
    return config


def from_config(config: Mapping[str, Any]) -> Any:
    """The guider of a configuration; only diffusers' own are made, whatever a file says.

    Raises:
        ConfigurationError: it names no guider of this diffusers.
    """
    name = str(config.get("_class_name", ""))
    kind = getattr(guiders, name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseGuidance)):
        known = [each for each in vars(guiders) if isinstance(getattr(guiders, each), type)]
        raise ConfigurationError(
            f"the base guider '{name}' is none of diffusers {diffusers.__version__}: {listed(known)}. Give your own as "
            f"base=, such as SafetyGuider.from_pretrained(path, base=guider)"
        )
    made: Any = kind
    return made.from_config(dict(config))


def is_modular(pipe: Any) -> bool:
    """Is it a modular pipeline, and not a classic one that has a guider?"""
    return isinstance(pipe, ModularPipeline)


def guider_names(pipe: Any) -> tuple[str, ...]:
    """The attributes of a pipeline that hold its guiders."""
    parts = pipe.components.items()
    return tuple(sorted(name for name, part in parts if isinstance(part, BaseGuidance)))


def text_block(pipe: Any) -> Any:
    """The block that encodes a modular pipeline's prompts.

    Raises:
        UnsupportedPipelineError: there is none.
    """
    path = _path_to_text(pipe._blocks)
    if path is None:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has no block named 'text_encoder', so concepts cannot be encoded; its blocks are "
            f"{listed(getattr(pipe._blocks, 'sub_blocks', {}))}. Keep the text block in the pipeline, even where you hand "
            f"in prompt embeddings"
        )
    block = pipe._blocks
    for name in path:
        block = block.sub_blocks[name]
    return block


def block_inputs(block: Any) -> dict[str, Any]:
    """Names and defaults of what a block reads."""
    return {each.name: each.default for each in block.inputs if each.name}


def required_inputs(block: Any) -> set[str]:
    """Names of what a block cannot do without."""
    return {each.name for each in block.inputs if each.name and each.required}


def run_block(pipe: Any, block: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a block makes of ``inputs``, by name; the pipeline's own state is not touched."""
    state = PipelineState()
    for name, value in inputs.items():
        state.set(name, value)
    _, state = block(pipe, state)
    return {name: state.get(name) for name in block.intermediate_output_names}


@contextmanager
def listening(pipe: Any, note: Callable[[Any, Mapping[str, Any]], None]) -> Iterator[None]:
    """Call ``note(block, inputs)`` before the pipeline's text block runs, until the end of the ``with`` block.

    The blocks may be shared with other pipelines, so this one gets copies of those on the way to the text block.
    """
    own, path = pipe._blocks, _path_to_text(pipe._blocks)
    if path is None:
        yield
        return
    pipe._blocks = _replaced(own, path, lambda block: _noting(block, note))
    try:
        yield
    finally:
        pipe._blocks = own


def _path_to_text(blocks: Any) -> tuple[str, ...] | None:
    subs = getattr(blocks, "sub_blocks", None) or {}
    if "text_encoder" in subs:
        return ("text_encoder",)
    for name, block in subs.items():
        if (rest := _path_to_text(block)) is not None:
            return (name, *rest)
    return None


def _replaced(blocks: Any, path: tuple[str, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(blocks)
    twin = copy.copy(blocks)
    twin.sub_blocks = copy.copy(blocks.sub_blocks)
    twin.sub_blocks[path[0]] = _replaced(blocks.sub_blocks[path[0]], path[1:], change)
    return twin


def _noting(block: Any, note: Callable[[Any, Mapping[str, Any]], None]) -> Any:
    """A copy of ``block``, of a subclass that calls ``note`` first."""
    kind = type(block)

    def call(self: Any, components: Any, state: Any) -> Any:
        note(block, {name: state.get(name) for name in block_inputs(block)})
        return kind.__call__(self, components, state)

    twin = copy.copy(block)
    twin.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return twin


def model_name(pipe: Any) -> str:
    """What diffusers calls the pipeline's architecture, or its class."""
    return str(getattr(getattr(pipe, "_blocks", None), "model_name", None) or type(pipe).__name__)


def default_guider() -> Any:
    """Classifier-free guidance, as pipelines have it that name no other."""
    return ClassifierFreeGuidance()
