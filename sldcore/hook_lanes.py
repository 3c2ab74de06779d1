"""Step hooks of a run: each sees, and may replace, what belongs to the samples of the policies that name it.

To a hook its samples look like a run of their own: rows are numbered within them. Replacements are checked and put back; editing in
place is an error, since it would reach what is shared and could not be told from doing nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sldcore.guidance.base import StepHook
from sldcore.types import Predictions, Row, Step


@dataclass(slots=True)
class HookLane:
    """A step hook and its samples; ``index`` is None if these are all of the batch."""

    hook: StepHook
    samples: tuple[int, ...]
    index: Tensor | None
    _own_rows: dict[tuple[Row, ...], Tensor] = field(default_factory=dict)

    def before(self, step: Step, predictions: Predictions) -> Predictions:
        """What the predictions are after the hook; the same object if it only observes.

        Raises:
            TypeError: it gives something else than predictions of the same shapes, or edits in place.
        """
        shown = self._shown(predictions)
        before = versions(shown)
        edited = self.hook.before_guidance(step, shown)
        require_untouched(before, shown)
        if edited is None or edited is shown:
            return predictions
        _check_predictions(edited, shown)
        return self._put_back(predictions, edited)

    def after(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor:
        """What the guided prediction is after the hook; the same object if it only observes.

        Raises:
            TypeError: as :meth:`before`.
        """
        shown = self._shown(predictions)
        whole = guided.clone() if guided.is_inference() else guided
        own = whole if self.index is None else guided.index_select(0, self.index)
        before = versions(shown, own)
        edited = self.hook.after_guidance(step, shown, own)
        require_untouched(before, shown, own)
        if edited is None or edited is own:
            return guided
        check_like(edited, own, "the guided prediction")
        return edited if self.index is None else guided.index_copy(0, self.index, edited)

    def _shown(self, predictions: Predictions) -> Predictions:
        if self.index is None:
            return _cloned(predictions) if predictions.cond.is_inference() else predictions
        rows = self._rows(predictions)
        latents = predictions.latents
        return Predictions(
            predictions.uncond.index_select(0, self.index),
            predictions.cond.index_select(0, self.index),
            predictions.concepts.index_select(0, rows),
            tuple(
                Row(self.samples.index(row.sample), row.concept)
                for row in predictions.rows
                if row.sample in self.samples
            ),
            None if latents is None else latents.index_select(0, self.index),
        )

    def _put_back(self, predictions: Predictions, edited: Predictions) -> Predictions:
        if self.index is None:
            return edited
        return replace(
            predictions,
            uncond=predictions.uncond.index_copy(0, self.index, edited.uncond),
            cond=predictions.cond.index_copy(0, self.index, edited.cond),
            concepts=predictions.concepts.index_copy(0, self._rows(predictions), edited.concepts),
        )

    def _rows(self, predictions: Predictions) -> Tensor:
        """Where the hook's own concept rows are; made once for each set of rows, so that no step waits for the host."""
        if predictions.rows not in self._own_rows:
            own = [i for i, row in enumerate(predictions.rows) if row.sample in self.samples]
            self._own_rows[predictions.rows] = torch.tensor(
                own, dtype=torch.int64, device=predictions.concepts.device
            )
        return self._own_rows[predictions.rows]


def _cloned(predictions: Predictions) -> Predictions:
    """Copies, for tensors that do not tell when they are edited in place."""
    latents = predictions.latents
    return replace(
        predictions,
        uncond=predictions.uncond.clone(),
        cond=predictions.cond.clone(),
        concepts=predictions.concepts.clone(),
        latents=None if latents is None else latents.clone(),
    )


def versions(predictions: Predictions, *others: Tensor) -> list[int]:
    """How often each tensor has been changed in place; known on the host."""
    given = [predictions.uncond, predictions.cond, predictions.concepts, predictions.latents, *others]
    return [-1 if tensor is None or tensor.is_inference() else tensor._version for tensor in given]


def require_untouched(before: Sequence[int], predictions: Predictions, *others: Tensor) -> None:
    """Refuse what was edited in place since.

    Raises:
        TypeError: something was.
    """
    if versions(predictions, *others) != list(before):
        raise TypeError("what it was given was edited in place; return a replacement instead")


def check_like(value: Any, model: Tensor, what: str) -> None:
    """Whether ``value`` can stand in for ``model``.

    Raises:
        TypeError: another shape, type or device, or no tensor.
    """
    if not isinstance(value, Tensor) or _kind(value) != _kind(model):
        got = _kind(value) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{what} must stay a tensor {_kind(model)}, got {got}")


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _check_predictions(edited: Any, predictions: Predictions) -> None:
    for name in ("uncond", "cond", "concepts"):
        check_like(getattr(edited, name), getattr(predictions, name), name)
    if edited.rows != predictions.rows or edited.latents is not predictions.latents:
        raise TypeError("a step hook cannot change which rows were evaluated, nor the latents")
