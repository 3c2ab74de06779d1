"""Step hook ``step-recorder``: previews and statistics of every denoising step, written to a folder after the last one.

A policy says ``step_hooks: [{use: step-recorder, options: {folder: records}}]``. It observes and changes nothing; a record
that cannot be written withholds the pictures, like any step hook that fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import Field

from sldcore.contributions import StepHookKind
from sldcore.documents import Strict
from sldcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from sldcore.guidance.base import StepHook

SLD_API: Final = 1
__version__ = "0.1.0"


class RecorderOptions(Strict):
    """Options of the step hook ``step-recorder``.

    ``folder`` is where records are put, each run in a folder of its own: ``run-0001``, ``run-0002`` and so on. ``every``
    says which steps get a preview: every one, every second, ...; the last always does. ``size`` is the largest height and
    width of a preview in latent pixels; larger latents are averaged down.
    """

    folder: str = Field(default="step-records", min_length=1)
    every: int = Field(default=1, ge=1, strict=True)
    size: int = Field(default=64, ge=4, le=512, strict=True)


def _create(options: RecorderOptions) -> StepHook:
    from sld_step_recorder.recorder import StepRecorder

    return StepRecorder(options)


@hookimpl
def sld_step_hooks() -> list[StepHookKind]:
    """The recorder."""
    description = "writes previews and statistics of every step to a folder"
    return [
        StepHookKind(name="step-recorder", description=description, options=RecorderOptions, create=_create)
    ]
