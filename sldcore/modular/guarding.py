"""``guard`` for pipelines that hand their predictions to guiders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any, Final

from sldcore.catalogue import current, using
from sldcore.encoding import RunConcepts
from sldcore.errors import SafetyFailure, SessionError
from sldcore.guidance.base import StepHook
from sldcore.guider import SafetyGuider
from sldcore.modular import api
from sldcore.modular.runs import Runs
from sldcore.policy import SafetyPolicy
from sldcore.resolution import scheduler_of
from sldcore.run import GuidedRun
from sldcore.types import Trace

_installing: Final = Lock()


class ModularSession:
    """What ``guard`` gives for a pipeline with guiders; each call of the pipeline inside the session is one run."""

    def __init__(self, pipe: Any, runs: Runs) -> None:
        self._runs = runs
        self.scheduler = type(pipe.scheduler).__name__

    @property
    def run(self) -> GuidedRun | None:
        """The run of the latest pipeline call; None before the first step."""
        return self._runs.run

    @property
    def trace(self) -> Trace:
        """The trace of the latest pipeline call, moved to the host.

        Raises:
            SafetyFailure: the pipeline has not asked its guider yet.
        """
        return self._runs.trace

    @property
    def concepts(self) -> RunConcepts:
        """The concepts, encoded as the latest call encodes its prompts."""
        return self._runs.concepts


@contextmanager
def guarding(
    pipe: Any, policies: Sequence[SafetyPolicy], step_hooks: Sequence[StepHook] = ()
) -> Iterator[ModularSession]:
    """Put safety guiders around the guiders of ``pipe``, and take them away again, whatever happens.

    Concepts are encoded as each call encodes its prompts: the pipeline's text block tells with which options.

    Raises:
        UnsupportedPipelineError: no guider, or no text block.
        ConceptError: a concept cannot be had, or has a term that is too long.
        SessionError: another session, or a SafetyGuider, guards this pipeline.
        SafetyFailure: at the step that failed; or a guider was replaced inside the ``with`` block.
    """
    catalogue = current()
    runs = Runs(pipe, policies, step_hooks)
    if not runs.texts.needs_a_call():
        runs.encode(runs.texts.options({}))
    with ExitStack() as undo:
        with _installing:
            guiders = _put_in(pipe, runs, undo)
        with using(catalogue):
            chosen = scheduler_of(policies, pipe.scheduler.config)
        if chosen is not None:
            undo.callback(setattr, pipe, "scheduler", pipe.scheduler)
            pipe.scheduler = chosen

        def note(block: Any, inputs: Mapping[str, Any]) -> None:
            _require_in_place(pipe, guiders)
            runs.encode(runs.texts.options(inputs))

        if api.is_modular(pipe):
            undo.enter_context(api.listening(pipe, note))
        yield ModularSession(pipe, runs)
        _require_in_place(pipe, guiders)
        runs.close()


def _put_in(pipe: Any, runs: Runs, undo: ExitStack) -> dict[str, SafetyGuider]:
    own = {name: getattr(pipe, name) for name in api.guider_names(pipe)}
    if any(isinstance(guider, SafetyGuider) for guider in own.values()):
        raise SessionError(
            f"this {type(pipe).__name__} is guarded by another session, or has a SafetyGuider, already; leave that session first, "
            f"or put the guider's base back with pipe.update_components(guider=guider.base)"
        )
    guiders = {}
    for name, base in own.items():
        guiders[name] = SafetyGuider(runs.policies, base).joined(runs)
        undo.callback(_put_back, pipe, name, base, guiders[name])
        setattr(pipe, name, guiders[name])
    return guiders


def _put_back(pipe: Any, name: str, base: Any, guider: SafetyGuider) -> None:
    guider.set_idle()
    setattr(pipe, name, base)


def _require_in_place(pipe: Any, guiders: Mapping[str, SafetyGuider]) -> None:
    for name, guider in guiders.items():
        if getattr(pipe, name) is not guider:
            raise SafetyFailure(
                f"the pipeline's {name} was replaced inside guard(), so its pictures are unguided; set the guider before guard(), "
                f"which puts the safety guider around it"
            )
