"""The hook: measures on the device while the loop runs, and moves everything to the host once, after the last step."""

from __future__ import annotations

import torch
from torch import Tensor

from sld_step_recorder import RecorderOptions, __version__
from sld_step_recorder.measuring import measured, preview, quantities
from sld_step_recorder.record import Record, check_folder, write_record
from sldcore.types import Predictions, Step

PICTURED = ("latents", "guided", "safety")
"""The quantities that get previews, where there are any."""


class StepRecorder:
    """Records one run; see :func:`sld_step_recorder.measuring.quantities` for what."""

    name = "step-recorder"
    version = __version__

    def __init__(self, options: RecorderOptions) -> None:
        self._options = options
        self._steps: list[Step] = []
        self._statistics: list[Tensor] = []  # [Q, 3, B] each
        self._previews: list[Tensor] = []  # [P, B, 3, h, w] each
        self._pictured: list[int] = []

    def before_guidance(self, step: Step, predictions: Predictions) -> None:
        """Find out at the first step, not after the last, whether the record can be written.

        Raises:
            PluginError: it cannot.
        """
        if not self._steps:
            check_folder(self._options.folder)

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> None:
        """Measure; after the last step, write the record.

        Raises:
            PluginError: the record cannot be written.
        """
        seen = quantities(predictions, guided)
        last = step.index == step.total - 1
        self._steps.append(step)
        self._statistics.append(torch.stack([measured(each) for each in seen.values()]))
        if guided.ndim == 4 and (last or step.index % self._options.every == 0):
            pictured = [preview(seen[name], self._options.size) for name in PICTURED if name in seen]
            self._previews.append(torch.stack(pictured))
            self._pictured.append(step.index)
        if last:
            write_record(self._options.folder, self._on_host(seen))

    def _on_host(self, seen: dict[str, Tensor]) -> Record:
        return Record(
            recorder=f"{self.name} {self.version}",
            steps=tuple(self._steps),
            quantities=tuple(seen),
            statistics=torch.stack(self._statistics).cpu().numpy(),
            pictured=tuple(name for name in PICTURED if name in seen),
            previews=torch.stack(self._previews).cpu().numpy() if self._previews else None,
            preview_steps=tuple(self._pictured),
        )
