"""One optimisation that can be interrupted and resumed without a trace.

AdamW with a one-cycle rate and a moving average of the weights. Every step draws its random numbers from a
generator seeded with (seed, stage, step), so steps do not depend on how often the process was restarted.
Checkpoints are safetensors: tensors as they are, the rest as JSON in the header (which keeps floats exactly).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from sldcore.documents import write_bytes_atomically

Report = Callable[[str, int, int, float], None]
"""Called as ``report(stage, step, steps, loss)``."""

CHECKPOINT_EVERY: Final = 250


@dataclass(frozen=True, slots=True)
class Stage:
    """What one optimisation is to do."""

    name: str
    steps: int
    seed: int
    learning_rate: float
    ema_decay: float = 0.999

    def generator(self, step: int) -> torch.Generator:
        """The random numbers of one step."""
        mixed = np.random.SeedSequence([self.seed, *self.name.encode(), step]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an optimisation ended: the smoothed loss, and the seconds it took over all its processes.

    ``seconds_before`` is the part that earlier processes spent.
    """

    loss: float
    seconds: float
    seconds_before: float


def optimise(
    stage: Stage,
    module: nn.Module,
    loss_of: Callable[[torch.Generator], Tensor],
    folder: Path,
    report: Report,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> Outcome:
    """Train ``module`` and leave the moving average of its weights in it, in evaluation mode.

    ``folder`` holds the stage's checkpoint while it runs and its weights once it is done; a stage that is
    done is not repeated.
    """
    finished, checkpoint = folder / f"{stage.name}.safetensors", folder / f"{stage.name}.checkpoint"
    if finished.exists():
        module.load_state_dict(load_file(finished))
        module.eval()
        facts = _header(finished)
        return Outcome(facts["loss"], facts["seconds"], facts["seconds"])
    progress = _Progress(stage, module)
    if checkpoint.exists():
        progress.load(checkpoint)
    module.train()
    before, started = progress.seconds, time.monotonic()
    for step in range(progress.step, stage.steps):
        progress.advance(loss_of(stage.generator(step)))
        progress.seconds = before + time.monotonic() - started
        report(stage.name, progress.step, stage.steps, progress.loss)
        if progress.step % checkpoint_every == 0 and progress.step < stage.steps:
            progress.save(checkpoint)
    module.load_state_dict(progress.average)
    module.eval()
    _write(finished, progress.average, {"loss": progress.loss, "seconds": progress.seconds})
    checkpoint.unlink(missing_ok=True)
    return Outcome(progress.loss, progress.seconds, before)


@dataclass(slots=True)
class _Progress:
    """Everything that changes from step to step."""

    stage: Stage
    module: nn.Module
    optimiser: torch.optim.AdamW = field(init=False)
    rate: OneCycleLR = field(init=False)
    average: dict[str, Tensor] = field(init=False)
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        highest, steps = self.stage.learning_rate, self.stage.steps
        self.optimiser = torch.optim.AdamW(self.module.parameters(), lr=highest, weight_decay=0.01)
        warm_up = max(0.1, 2 / steps)
        self.rate = OneCycleLR(self.optimiser, max_lr=highest, total_steps=steps, pct_start=warm_up)
        self.average = {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def advance(self, loss: Tensor) -> None:
        """One step down the gradient of ``loss``."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimiser.step()
        self.rate.step()
        self._follow(min(self.stage.ema_decay, (1 + self.step) / (10 + self.step)))
        self.loss = loss.item() if self.step == 0 else 0.98 * self.loss + 0.02 * loss.item()
        self.step += 1

    @torch.no_grad()
    def _follow(self, keep: float) -> None:
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)

    def save(self, path: Path) -> None:
        state = self.optimiser.state_dict()
        tensors = {
            **{f"module/{name}": value for name, value in self.module.state_dict().items()},
            **{f"average/{name}": value for name, value in self.average.items()},
            **{
                f"optimiser/{index}/{name}": value
                for index, values in state["state"].items()
                for name, value in values.items()
            },
        }
        facts = {
            "step": self.step,
            "loss": self.loss,
            "seconds": self.seconds,
            "groups": state["param_groups"],
            "rate": self.rate.state_dict(),
        }
        _write(path, tensors, facts)

    def load(self, path: Path) -> None:
        facts, state = _header(path), dict[int, dict[str, Tensor]]()
        tensors: dict[str, dict[str, Tensor]] = {"module": {}, "average": {}, "optimiser": {}}
        for name, value in load_file(path).items():
            part, _, rest = name.partition("/")
            tensors[part][rest] = value
        for name, value in tensors["optimiser"].items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        self.module.load_state_dict(tensors["module"])
        self.average = tensors["average"]
        self.optimiser.load_state_dict({"state": state, "param_groups": facts["groups"]})
        self.rate.load_state_dict(facts["rate"])
        self.step, self.loss, self.seconds = facts["step"], facts["loss"], facts["seconds"]


def _write(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    whole = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    write_bytes_atomically(path, save(whole, metadata={"facts": json.dumps(facts)}))


def _header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
    return facts
