"""The contracts of windows and noise schedulers: everything that is about steps."""

# ruff: noqa: D102  (the name of a test is its documentation)

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Final

from sldcore.contributions import SchedulerKind, WindowKind
from sldcore.errors import ConfigurationError
from sldcore.testing.contracts.base import Contract, require
from sldcore.testing.samples import schedule
from sldcore.types import Step

LENGTHS: Final = (1, 7, 50)
"""Numbers of denoiser calls in the runs that windows are tested with."""

STABLE_DIFFUSION: Final[Mapping[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
}
"""The config of a Stable Diffusion pipeline's scheduler, with the rarer prediction type."""

FLOW: Final[Mapping[str, Any]] = {"num_train_timesteps": 1000, "shift": 3.0}
"""The config of a rectified-flow pipeline's scheduler."""


class WindowContract(Contract):
    """For :class:`sldcore.contributions.WindowKind`."""

    kind = WindowKind

    def make(self) -> Callable[[Step], float]:
        """A new function from step to strength."""
        made: Callable[[Step], float] = self.subject.create(self.checked_options)
        return made

    def use(self, made: Callable[[Step], float]) -> int:
        """Every step of a run."""
        plan = schedule(50)
        for index in range(len(plan)):
            made(plan.step(index))
        return len(plan)

    def test_strengths_are_numbers_from_0_to_1_at_every_step(self) -> None:
        made = self.make()
        for step in _steps():
            value = made(step)
            where = f"at step {step.index} of {step.total} the strength is {value!r}"
            require(
                isinstance(value, int | float), f"{where}, not a number; windows are evaluated on the host"
            )
            require(isfinite(value) and 0 <= value <= 1, f"{where}; it must be in 0..1")

    def test_it_opens_in_a_run_of_50_steps(self) -> None:
        made, plan = self.make(), schedule(50)
        opens = any(made(plan.step(index)) > 0 for index in range(len(plan)))
        require(opens, "with these options it is closed at each of 50 steps, so guidance would never act")

    def test_a_strength_depends_on_the_step_alone(self) -> None:
        made, steps = self.make(), _steps()
        forwards = [made(step) for step in steps]
        backwards = [made(step) for step in reversed(steps)][::-1]
        require(forwards == backwards, "strengths differ when the steps are asked for in another order")

    def test_the_same_options_give_the_same_strengths(self) -> None:
        one, two = self.make(), self.make()
        same = [one(step) for step in _steps()] == [two(step) for step in _steps()]
        require(same, "two windows made of the same options differ")


class SchedulerContract(Contract):
    """For :class:`sldcore.contributions.SchedulerKind`; ``config`` is that of the pipeline's own scheduler.

    Left out, ``config`` is Stable Diffusion's, or a rectified-flow model's where the contribution refuses that.
    """

    kind = SchedulerKind
    config: Mapping[str, Any] | None = None

    def make(self) -> Any:
        """A new scheduler."""
        return self._made(self._config())

    def use(self, made: Any) -> int:
        """A short denoising loop."""
        import torch

        made.set_timesteps(8)
        sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * getattr(
            made, "init_noise_sigma", 1.0
        )
        for timestep in made.timesteps:
            given = made.scale_model_input(sample, timestep) if hasattr(made, "scale_model_input") else sample
            sample = made.step(0.1 * given, timestep, sample, return_dict=False)[0]
        require(bool(sample.isfinite().all()), "a denoising loop of 8 steps gives NaN or Inf")
        return len(made.timesteps)

    def _config(self) -> Mapping[str, Any]:
        if self.config is not None:
            return self.config
        try:
            self._made(STABLE_DIFFUSION)
        except ConfigurationError:
            return FLOW
        return STABLE_DIFFUSION

    def _made(self, config: Mapping[str, Any]) -> Any:
        from diffusers.configuration_utils import FrozenDict

        return self.subject.create(FrozenDict(config), self.checked_options)

    def test_it_is_a_scheduler_of_diffusers(self) -> None:
        from diffusers import ConfigMixin, SchedulerMixin

        made = self.make()
        is_one = isinstance(made, SchedulerMixin) and isinstance(made, ConfigMixin)
        require(is_one, f"{type(made).__name__} is not a diffusers SchedulerMixin with a config")

    def test_it_keeps_what_the_pipeline_was_trained_with(self) -> None:
        made, config = self.make().config, self._config()
        for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
            if name in config:
                got = made.get(name)
                require(
                    got == config[name], f"{name} is {got!r}, and the model was trained with {config[name]!r}"
                )

    def test_the_number_of_steps_can_be_chosen(self) -> None:
        made = self.make()
        for steps in (5, 20):
            made.set_timesteps(steps)
            timesteps = made.timesteps.tolist()
            require(
                len(timesteps) >= steps,
                f"{steps} steps were asked for, and there are {len(timesteps)} timesteps",
            )
            require(
                timesteps == sorted(timesteps, reverse=True), "timesteps do not fall from noise to picture"
            )

    def test_a_denoising_loop_runs(self) -> None:
        self.use(self.make())

    def test_it_can_be_made_from_its_own_config(self) -> None:
        made = self.make()
        again = type(made).from_config(made.config)
        require(
            _timesteps(again) == _timesteps(made), "made again from its own config it has other timesteps"
        )

    def test_its_noise_levels_can_be_told(self) -> None:
        from sldcore.families.noise import discrete_schedule

        made = self.make()
        made.set_timesteps(10)
        if "beta_start" in self._config():
            levels = discrete_schedule(made, len(made.timesteps)).noise_levels
            require(all(0 <= level <= 1 for level in levels), f"noise levels {levels} are not in 0..1")

    def test_each_run_has_a_scheduler_of_its_own(self) -> None:
        one, two = self.make(), self.make()
        require(
            one is not two, "the factory gives the same object twice, so that two runs would share its state"
        )
        before = _timesteps(two)
        one.set_timesteps(5)
        require(two.timesteps.tolist() == before, "setting one scheduler's timesteps changes another's")

    def test_the_same_config_gives_the_same_timesteps(self) -> None:
        require(
            _timesteps(self.make()) == _timesteps(self.make()), "two schedulers of the same config differ"
        )

    def test_the_config_it_is_given_is_not_changed(self) -> None:
        config = dict(self._config())
        try:
            self.subject.create(config, self.checked_options)
        except (ConfigurationError, AttributeError):  # needs diffusers' own mapping, which cannot be changed
            return
        require(config == dict(self._config()), "it changes the config of the pipeline's own scheduler")


def _steps() -> list[Step]:
    plans = [schedule(length) for length in LENGTHS]
    return [plan.step(index) for plan in plans for index in range(len(plan))]


def _timesteps(scheduler: Any) -> list[float]:
    scheduler.set_timesteps(10)
    return [float(value) for value in scheduler.timesteps.tolist()]
