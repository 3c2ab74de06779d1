"""From names to objects: what is missing or does not take its options is an error, and the order is the policy's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from pydantic import Field

from sldcore.builtin import entries
from sldcore.catalogue import Catalogue, using
from sldcore.contributions import (
    GuidanceMethod,
    NoOptions,
    PostFilterKind,
    SchedulerKind,
    StepHookKind,
    WindowKind,
)
from sldcore.documents import Strict
from sldcore.errors import ConfigurationError, PluginError, PolicyError
from sldcore.policy import FilterUse, SafetyPolicy
from sldcore.resolution import (
    check_policies,
    filters_of,
    make_filter,
    providers_of,
    resolve_policy,
    scheduler_of,
)
from sldcore.types import Verdict

Contribute = Callable[..., None]


@pytest.fixture(autouse=True)
def no_plugins() -> Iterator[None]:
    """The core's catalogue as it is without plugins; the kit's own says how to ask for them."""
    with using(Catalogue(entries())):
        yield


class Clean:
    """A filter that flags nothing."""

    name, version = "clean", "1.0"

    def review(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> list[Verdict]:
        return [Verdict("clean", "1.0", False) for _ in pictures]


class Level(Strict):
    level: float = Field(default=0.5, ge=0, le=1)


def kind(name: str, before: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> PostFilterKind:
    return PostFilterKind(
        name=name, options=Level, create=lambda options: Clean(), before=before, after=after
    )


def order(*names: str) -> list[str]:
    policy = SafetyPolicy(filters=tuple(FilterUse(use=name) for name in names))
    return [found.name for _, found in filters_of(policy)]


def parsed(text: str) -> SafetyPolicy:
    return SafetyPolicy.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "guidance: {method: sdl}\nconcepts: [inappropriate]",
            r"no guidance method is called 'sdl'; did you mean 'sld'",
        ),
        (
            "guidance: {window: {unit: second}}\nconcepts: [inappropriate]",
            r"no window is called 'second'.*fraction, noise, steps",
        ),
        (
            "guidance: {}\nconcepts: [{use: inappropriate, window: {unit: second}}]",
            r"no window is called 'second'",
        ),
        ("scheduler: eular", r"no scheduler is called 'eular'; did you mean 'euler'"),
        ("filters: [nothing]", r"no filter is called 'nothing'.*installed with pip"),
        ("prompt_filters: [nothing]", r"no prompt filter is called 'nothing'"),
        ("step_hooks: [nothing]", r"no step hook is called 'nothing'"),
        (
            "scheduler: {use: euler, options: {speed: 3}}",
            r"options of scheduler 'euler'.*unknown key 'speed'",
        ),
        ("requires: [sld-x>=1]", r"plugins are off here, and sld-x>=1 is required"),
    ],
)
def test_what_a_policy_names_and_cannot_be_had_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_policies([parsed(text)])


def test_the_presets_can_be_had() -> None:
    check_policies([SafetyPolicy.preset(name) for name in ("weak", "medium", "strong", "max", "off")])


def test_checking_loads_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys; from sldcore import SafetyPolicy; from sldcore.resolution import check_policies; "
        "check_policies([SafetyPolicy.preset('max'), SafetyPolicy.parse('scheduler: euler')]); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_options_of_a_method_are_checked_and_completed(plugin_catalogue: Contribute) -> None:
    class Nothing:
        name, version = "nothing", "1"

        def start(self, samples: Any, schedule: Any) -> Any:
            raise NotImplementedError

    plugin_catalogue(GuidanceMethod(name="nothing", options=Level, create=Nothing))
    policy = parsed("guidance: {method: nothing}\nconcepts: [inappropriate]")
    spec = resolve_policy(policy).spec
    assert spec is not None and dict(spec.options) == {"level": 0.5}
    wrong = parsed("guidance: {method: nothing, options: {level: 2}}\nconcepts: [inappropriate]")
    with pytest.raises(
        PluginError, match=r"options of guidance method 'nothing': level: .*less than or equal to 1"
    ):
        resolve_policy(wrong)


@pytest.mark.parametrize(
    "contribution",
    [
        GuidanceMethod(name="odd", create=lambda: object()),  # type: ignore[arg-type, return-value]
    ],
)
def test_a_factory_that_gives_something_else_is_named(
    plugin_catalogue: Contribute, contribution: Any
) -> None:
    plugin_catalogue(contribution)
    with pytest.raises(
        PluginError, match=r"guidance method 'odd' is broken: its factory gave object, which is not a Guid"
    ):
        resolve_policy(parsed("guidance: {method: odd}\nconcepts: [inappropriate]"))


def test_a_filter_factory_that_gives_something_else_is_named(plugin_catalogue: Contribute) -> None:
    odd = PostFilterKind(name="odd", create=lambda options: object())  # type: ignore[arg-type, return-value]
    with pytest.raises(PluginError, match=r"filter 'odd' is broken: its factory gave object"):
        make_filter(odd, FilterUse(use="odd"))


def test_filters_run_in_the_policys_order(plugin_catalogue: Contribute) -> None:
    plugin_catalogue(kind("a"), kind("b"), kind("c"))
    assert order("c", "a", "b") == ["c", "a", "b"]


def test_constraints_move_a_filter_no_further_than_they_must(plugin_catalogue: Contribute) -> None:
    plugin_catalogue(kind("a", after=("c",)), kind("b"), kind("c"), kind("d", before=("b",)))
    assert order("a", "b", "c", "d") == ["c", "a", "d", "b"]
    assert order("a", "b") == ["a", "b"]


def test_constraints_in_a_circle_are_an_error_that_names_it(plugin_catalogue: Contribute) -> None:
    plugin_catalogue(kind("a", after=("b",)), kind("b", after=("c",)), kind("c", after=("a",)))
    with pytest.raises(PolicyError, match=r"the order of (a|b|c), .* cannot be kept: .* in a circle"):
        order("a", "b", "c")


def test_policies_of_one_call_must_agree_on_the_scheduler() -> None:
    policies = [parsed("scheduler: euler"), SafetyPolicy.preset("off")]
    with pytest.raises(
        PolicyError, match="name the same scheduler, and these name euler, the pipeline's own"
    ):
        scheduler_of(policies, {})


class Scheduler:
    """As much of a scheduler as there must be."""

    def __init__(self, config: Any, level: float = 0.0) -> None:
        self.config, self.level = config, level

    def set_timesteps(self, number: int) -> None: ...

    def step(self, output: Any) -> None: ...


def test_a_scheduler_gets_the_pipelines_config_and_its_options(plugin_catalogue: Contribute) -> None:
    def create(config: Any, options: Any) -> Scheduler:
        return Scheduler(config, options.level)

    plugin_catalogue(SchedulerKind(name="mine", options=Level, create=create))
    policy = parsed("scheduler: {use: mine, options: {level: 0.25}}")
    made = scheduler_of([policy, policy], {"prediction_type": "epsilon"})
    assert (made.config, made.level) == ({"prediction_type": "epsilon"}, 0.25)


def test_two_calls_never_share_a_scheduler(plugin_catalogue: Contribute) -> None:
    shared = Scheduler({})
    plugin_catalogue(SchedulerKind(name="mine", create=lambda config, options: shared))
    policy = parsed("scheduler: mine")
    assert scheduler_of([policy], {}) is not scheduler_of([policy], {})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "gave NoneType, which has no config, set_timesteps, step"),
        (
            Scheduler({"prediction_type": "v_prediction"}),
            "predict 'v_prediction', and the pipeline's predicts 'epsilon'",
        ),
    ],
)
def test_a_scheduler_that_does_not_fit_is_an_error(
    plugin_catalogue: Contribute, made: Any, message: str
) -> None:
    plugin_catalogue(SchedulerKind(name="mine", create=lambda config, options: made))
    with pytest.raises(PluginError, match=message):
        scheduler_of([parsed("scheduler: mine")], {"prediction_type": "epsilon"})


def test_a_window_that_raises_is_named(plugin_catalogue: Contribute) -> None:
    from sldcore.guidance.windows import acting_steps
    from sldcore.policy import Window
    from sldcore.types import Schedule

    plugin_catalogue(WindowKind(name="odd", create=lambda options: lambda step: 1 / step.index))
    with pytest.raises(PluginError, match="window 'odd' is broken: ZeroDivisionError at step 0"):
        acting_steps(Window(unit="odd"), Schedule((3.0,), (1.0,), (1.0,)))


def test_providers_tell_what_a_policy_resolved_to(plugin_catalogue: Contribute) -> None:
    plugin_catalogue(kind("a"))
    providers = providers_of(SafetyPolicy.preset("max").replace(filters=["a"]))
    assert set(providers) == {
        "guidance method sld", "window steps", "concept pack inappropriate", "filter a",
    }  # fmt: skip
    assert providers["guidance method sld"].startswith("sldcore ")


def test_a_window_of_a_plugin_gets_its_options(plugin_catalogue: Contribute) -> None:
    from sldcore.guidance.windows import acting_steps
    from sldcore.policy import Window
    from sldcore.types import Schedule

    plugin_catalogue(
        WindowKind(name="flat", options=Level, create=lambda options: lambda step: options.level)
    )
    schedule = Schedule((3.0, 2.0), (1.0, 0.5), (1.0, 1.0))
    assert acting_steps(Window(unit="flat", options={"level": 0.25}), schedule) == (0.25, 0.25)


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1])
def test_a_strength_that_is_none_is_an_error(plugin_catalogue: Contribute, value: float) -> None:
    from sldcore.guidance.windows import acting_steps
    from sldcore.policy import Window
    from sldcore.types import Schedule

    plugin_catalogue(WindowKind(name="odd", create=lambda options: lambda step: value))
    with pytest.raises(
        ConfigurationError, match=r"window 'odd' gives strength .* at step 0; it must be in 0\.\.1"
    ):
        acting_steps(Window(unit="odd"), Schedule((3.0,), (1.0,), (1.0,)))


def test_a_step_hook_is_made_anew_for_every_run(plugin_catalogue: Contribute) -> None:
    class Hook:
        name, version = "hook", "1"

        def before_guidance(self, step: Any, predictions: Any) -> None: ...

        def after_guidance(self, step: Any, predictions: Any, guided: Any) -> None: ...

    plugin_catalogue(StepHookKind(name="hook", options=NoOptions, create=lambda options: Hook()))
    (maker,) = resolve_policy(parsed("step_hooks: [hook]")).step_hooks
    assert maker.make() is not maker.make()
