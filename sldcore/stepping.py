"""How the steps of a run are carried out on a denoiser: with all parts in one call, or with a call for each.

Both hand the pipeline outputs of the shape that it asked for, with c' in place of c; so whatever the pipeline makes of
its predictions (guidance scale, rescaling, normalisation) is made of the safe one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import ref

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import StateManager
from torch import Tensor, nn

from sldcore.denoiser import DenoiserCall, Forward, with_prediction
from sldcore.encoding import RunConcepts
from sldcore.errors import GuidanceError
from sldcore.families.base import COND, UNCOND, Family
from sldcore.own_rows import OwnRows, RowSource
from sldcore.run import GuidedRun, StepPlan
from sldcore.types import Predictions, Row

_CACHE: Final = "sldcore"


class Stepper(Protocol):
    """Carries out the steps of one run."""

    def call(self, module: nn.Module, forward: Forward, call: DenoiserCall) -> Any:
        """One call of the denoiser: what the pipeline is given for it."""
        ...

    @property
    def waiting(self) -> bool:
        """True while a step lacks a call that must come before the next step."""
        ...


class Inputs:
    """What concept rows copy and which texts they get; made once for each set of rows, so that no step waits for the host."""

    def __init__(self, concepts: RunConcepts) -> None:
        self._concepts = concepts
        self._made: dict[tuple[Row, ...], tuple[RowSource, dict[str, Tensor]]] = {}
        self._own: dict[tuple[Any, ...], tuple[OwnRows | None, tuple[Any, ...]]] = {}

    def of(self, rows: tuple[Row, ...], call: DenoiserCall) -> tuple[RowSource, dict[str, Tensor]]:
        """Sources and texts for ``rows`` of ``call``."""
        if rows not in self._made:
            self._made[rows] = (
                call.conditional_rows(rows),
                self._concepts.for_rows(rows, call.latents.device),
            )
        return self._made[rows]

    def own(self, plan: StepPlan, call: DenoiserCall) -> OwnRows | None:
        """What becomes of the call's own rows at a step."""
        if not plan.left_out and not plan.own_texts:
            return None
        # Mappings of texts are told apart by identity, and held, so that none can be mistaken for an earlier one.
        texts = tuple(plan.own_texts.items())
        key = (
            plan.left_out,
            call.parts,
            tuple((row, text if isinstance(text, int) else id(text)) for row, text in texts),
        )
        if key not in self._own:
            arguments = {
                row: self._concepts.arguments[text] if isinstance(text, int) else text for row, text in texts
            }
            self._own[key] = (call.own_rows(plan.left_out, arguments), texts)
        return self._own[key][0]

    def name_of_shape(self, row: Row) -> str:
        """The same for all rows whose texts have the same shape, so that they can be in one call."""
        shapes = [[value.shape for value in texts.values()] for texts in self._concepts.arguments]
        first = shapes.index(shapes[row.concept])
        return f"{_CACHE}-{first}" if first else _CACHE


class Caches:
    """Whether denoisers reuse what they computed at earlier steps; looked for once per run, not at every call."""

    def __init__(self) -> None:
        self._in_use: dict[int, bool] = {}  # by the denoiser's identity

    def in_use(self, module: nn.Module) -> bool:
        """Whether ``module`` has caches."""
        if id(module) not in self._in_use:
            enabled = bool(getattr(module, "is_cache_enabled", False))
            self._in_use[id(module)] = enabled or bool(caches_of(module))
        return self._in_use[id(module)]

    @contextmanager
    def kept_apart(self, module: nn.Module, name: str) -> Iterator[None]:
        """Keep what caches hold of concept rows apart from what they hold of the pipeline's own calls."""
        if self.in_use(module):
            with module.cache_context(name):  # type: ignore[operator]
                yield
        else:
            yield


class Together:
    """All parts in one call; concept rows are appended to it."""

    waiting: Final = False

    def __init__(self, run: GuidedRun, concepts: RunConcepts, pipe: Any, family: Family) -> None:
        self._run, self._pipe, self._family = run, pipe, family
        self._inputs = Inputs(concepts)
        self._caches = Caches()

    def call(self, module: nn.Module, forward: Forward, call: DenoiserCall) -> Any:
        """One step: extend, evaluate, combine, hand back the parts with c'."""
        if self._family.is_aside(call.bound.arguments):
            return call.evaluate(forward)
        # What a cache remembers is of all rows, so that none of them can be left out.
        plan = self._run.begin(sparing=not self._caches.in_use(module))
        own = self._inputs.own(plan, call)
        if not self._run.changes(plan):
            return _evaluated(call, forward, own)
        output, parts, concepts = self._evaluate(module, forward, call, plan, own)
        given = Predictions(parts[UNCOND], parts[COND], concepts, plan.rows, call.conditional_latents)
        uncond, cond = self._run.finish(plan, given)
        if cond is given.cond and uncond is given.uncond:
            return call.cut(output)
        return call.join(output, {**parts, UNCOND: uncond, COND: cond})

    def _evaluate(
        self, module: nn.Module, forward: Forward, call: DenoiserCall, plan: StepPlan, own: OwnRows | None
    ) -> tuple[Any, dict[str, Tensor], Tensor]:
        """The output, the prediction of each part, and those of the concept rows."""
        apart = plan.observed or self._family.concepts_apart(self._pipe) or self._caches.in_use(module)
        if plan.rows and not apart:
            bound = call.with_rows(*self._inputs.of(plan.rows, call), own)
            output = call.spread(call.evaluate(forward, bound), own)
            return output, *call.predictions(output)
        kept = call.kept()  # some denoisers take things out of the lists that they are given
        output = _evaluated(call, forward, own)
        parts, concepts = call.predictions(output)
        if plan.rows:
            with self._family.around_concepts(self._pipe):
                concepts = alone(
                    module, forward, kept, plan.rows, self._inputs, self._inputs.name_of_shape, self._caches
                )
        return output, parts, concepts


@dataclass(frozen=True, slots=True)
class _Pending:
    """The first of a step's two calls: its output has been handed out, and is corrected when the second is known."""

    plan: StepPlan
    call: DenoiserCall
    position: Any
    prediction: Tensor
    is_held: Callable[[], bool]


class Apart:
    """A call for each part: the prediction that was handed out first is corrected in place once both are known.

    Concept rows are calls of their own, one per concept and after both parts: their texts may have any length, and parts are
    evaluated exactly as without guidance.
    """

    def __init__(
        self,
        run: GuidedRun,
        concepts: RunConcepts,
        pipe: Any,
        family: Family,
        order: tuple[str, ...],
        position: Callable[[], Any],
    ) -> None:
        self._run, self._pipe, self._family, self._order = run, pipe, family, order
        self._position = position
        self._inputs = Inputs(concepts)
        self._caches = Caches()
        self._pending: _Pending | None = None

    @property
    def waiting(self) -> bool:
        """True between the two calls of a step that guidance or a step hook may change."""
        return self._pending is not None and self._run.changes(self._pending.plan)

    @property
    def next_part(self) -> str:
        """Which part the next call is, as far as the scheduler tells: it moves on between steps."""
        return self._order[1] if self._continues() else self._order[0]

    def call(self, module: nn.Module, forward: Forward, call: DenoiserCall) -> Any:
        """One part of a step."""
        kept = call.kept()
        if self._pending is not None and self._continues():
            pending, self._pending = self._pending, None
            output = _evaluated(call, forward, self._inputs.own(pending.plan, call))
            return self._second(module, forward, kept, output, pending)
        if self.waiting:
            raise GuidanceError(
                "the denoiser was called once at a step and not again, so there is no unconditional prediction; "
                "classifier-free guidance is off or took another form. "
                f"Use {self._family.guidance_argument} > 1{_and_negative(self._family)}, or the policy 'off'"
            )
        plan = self._run.begin(sparing=not self._caches.in_use(module))
        output = _evaluated(call, forward, self._inputs.own(plan, call))
        return self._first(kept, output, plan)

    def _continues(self) -> bool:
        return self._pending is not None and self._pending.position == self._position()

    def _first(self, call: DenoiserCall, output: Any, plan: StepPlan) -> Any:
        prediction = call.noise(output)
        if self._run.changes(plan):
            with torch.inference_mode(False):  # views of a normal tensor keep it alive, in inference mode too
                prediction = prediction.clone()  # and it is not what a compiled denoiser writes to again
            output = with_prediction(output, prediction, call.rows)
        handed = ref(prediction)
        self._pending = _Pending(
            plan, call, self._position(), prediction.detach(), lambda: handed() is not None
        )
        return output

    def _second(
        self, module: nn.Module, forward: Forward, call: DenoiserCall, output: Any, pending: _Pending
    ) -> Any:
        if not self._run.changes(pending.plan):
            return output
        if not pending.is_held():
            raise GuidanceError(
                f"{type(self._pipe).__name__} did not keep the prediction that it was given, so it cannot be corrected; this "
                f"version of diffusers is not supported for it"
            )
        calls = dict(zip(self._order, (pending.call, call), strict=True))
        parts = dict(zip(self._order, (pending.prediction.clone(), call.noise(output)), strict=True))
        rows = pending.plan.rows
        concepts = parts[COND][:0]
        if rows:
            with self._family.around_concepts(self._pipe):
                concepts = alone(
                    module,
                    forward,
                    calls[COND],
                    rows,
                    self._inputs,
                    lambda row: f"{_CACHE}-{row.concept}",
                    self._caches,
                )
        given = Predictions(parts[UNCOND], parts[COND], concepts, rows, calls[COND].latents)
        uncond, cond = self._run.finish(pending.plan, given)
        made = {UNCOND: uncond, COND: cond}
        first, second = self._order
        if made[first] is not parts[first]:
            pending.prediction.copy_(made[first])
        return output if made[second] is parts[second] else with_prediction(output, made[second], call.rows)


def _evaluated(call: DenoiserCall, forward: Forward, own: OwnRows | None) -> Any:
    """The output for the call's own rows, those that are left out answered with others'."""
    if own is None:
        return call.evaluate(forward)
    return call.spread(call.evaluate(forward, call.only_own(own)), own)


def alone(
    module: nn.Module,
    forward: Forward,
    call: DenoiserCall,
    rows: tuple[Row, ...],
    inputs: Inputs,
    group: Callable[[Row], str],
    caches: Caches,
) -> Tensor:
    """The predictions of ``rows``, [R, ...] in their order, with a call, and a cache, for those of one ``group``."""
    made: dict[Row, Tensor] = {}
    for name in dict.fromkeys(group(row) for row in rows):
        own = tuple(row for row in rows if group(row) == name)
        bound = call.only_rows(*inputs.of(own, call))
        with caches.kept_apart(module, name):
            prediction = call.noise(call.evaluate(forward, bound))
        made.update(zip(own, prediction.tensor_split(len(own)), strict=True))
    return torch.cat([made[row] for row in rows])


def _and_negative(family: Family) -> str:
    return " and a negative_prompt (an empty one will do)" if family.needs_negative_prompt else ""


def caches_of(module: nn.Module) -> list[ModelHook]:
    """Hooks of diffusers, anywhere in the denoiser, that reuse at one step what was computed at another.

    However they were put on: ``enable_cache`` marks the denoiser, functions such as ``apply_first_block_cache`` do not.
    """
    registries = (getattr(each, "_diffusers_hook", None) for each in module.modules())
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    return [hook for hook in hooks if hook._is_stateful]


def require_separable_caches(modules: Iterable[nn.Module]) -> None:
    """Refuse caches that do not tell the denoiser's calls apart: concepts would be answered with what was computed for others.

    Raises:
        GuidanceError: one keeps a single state for all calls, or the denoiser cannot say which call is made.
    """
    for module in modules:
        for hook in caches_of(module):
            separable = any(isinstance(value, StateManager) for value in vars(hook).values())
            if not separable or not hasattr(module, "cache_context"):
                raise GuidanceError(
                    f"the denoiser reuses earlier computations through {type(hook).__name__}, which does not keep concepts "
                    f"apart from the pipeline's own calls, so guidance would act on the wrong predictions. Use a cache with "
                    f"contexts (FirstBlockCache, MagCache, TaylorSeer), disable_cache(), or the policy 'off'"
                )
