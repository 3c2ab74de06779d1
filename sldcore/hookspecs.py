"""The whole plugin contract. A plugin is a module with ``SLD_API = 1`` and some of these functions, marked ``@hookimpl``.

Each hook returns a list of contributions (:mod:`sldcore.contributions`); none does any work. The host gathers them once
and calls the objects that they make, so nothing here is in the denoising loop. A module is announced by its distribution:

    [project.entry-points.sldcore]
    my-plugin = "my_package"

Installing a plugin changes nothing by itself: a policy names what runs, and in which order. The examples use names of
:mod:`sldcore.contributions`, :mod:`sldcore.types` and this module; heavy imports belong into factories.
"""

from __future__ import annotations

from typing import Final

import pluggy

from sldcore.contributions import (
    Command,
    ConceptProvider,
    FamilyKind,
    GuidanceMethod,
    MarkKind,
    PostFilterKind,
    PromptFilterKind,
    SchedulerKind,
    StepHookKind,
    WindowKind,
)

API_VERSION: Final = 1
"""Version of this contract. Hooks and fields are only ever added within a version; a plugin asks for it as ``SLD_API``."""

PROJECT: Final = "sldcore"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def sld_concepts() -> list[ConceptProvider]:  # type: ignore[empty-body]
    """Concept packs.

        @hookimpl
        def sld_concepts():
            return [ConceptProvider(name="heights", load=lambda: load_pack(Path(__file__).with_name("heights.yaml")))]

    A policy then says ``concepts: [heights/*]``.
    """


@hookspec
def sld_guidance_methods() -> list[GuidanceMethod]:  # type: ignore[empty-body]
    """Guidance methods: what is done with the predictions of one step.

        class Away:  # SLD without threshold, scale and momentum: c' = c - sum of amount * (e_S - e_u)
            name, version = "away", "1.0"
            def start(self, samples, schedule):
                return AwayRun(samples)

        class AwayRun:
            def __init__(self, samples):
                self.samples = samples
            def rows(self, step):
                return tuple(self.amounts(step))
            def amounts(self, step):
                return {
                    Row(s.index, k): amount
                    for s in self.samples
                    for k, amount in zip(s.concepts, s.amounts(step.index))
                    if amount
                }
            def combine(self, step, p):
                amounts, terms, guided = self.amounts(step), torch.zeros_like(p.concepts), p.cond.clone()
                for position, row in enumerate(p.rows):
                    terms[position] = amounts[row] * (p.concepts[position] - p.uncond[row.sample])
                    guided[row.sample] -= terms[position]
                return Guided(guided, terms, tuple({row.sample for row in p.rows}))

        @hookimpl
        def sld_guidance_methods():
            return [GuidanceMethod(name="away", create=Away)]

    A policy then says ``guidance: {method: away}``. ``start`` returns a run with ``rows`` and ``combine``
    (:mod:`sldcore.guidance.base`); all state of a run lives there. What else a run may do is in docs/plugins.md.
    """


@hookspec
def sld_windows() -> list[WindowKind]:  # type: ignore[empty-body]
    """When guidance acts, and how strongly: a function from step to strength in 0..1.

        @hookimpl
        def sld_windows():
            return [WindowKind(name="second-half", create=lambda options: lambda step: float(step.fraction >= 0.5))]

    A policy then says ``guidance: {window: {unit: second-half}}``.
    """


@hookspec
def sld_schedulers() -> list[SchedulerKind]:  # type: ignore[empty-body]
    """Noise schedulers, made from the config of the pipeline's own.

        def euler(config, options):
            from diffusers import EulerDiscreteScheduler
            return EulerDiscreteScheduler.from_config(config)

        @hookimpl
        def sld_schedulers():
            return [SchedulerKind(name="my-euler", create=euler)]

    A policy then says ``scheduler: my-euler``.
    """


@hookspec
def sld_post_filters() -> list[PostFilterKind]:  # type: ignore[empty-body]
    """Reviews of decoded pictures, one verdict each.

        class Dark:
            name, version = "dark", "1.0"
            def review(self, pictures, contexts):
                means = [np.asarray(picture).mean() / 255 for picture in pictures]
                return [Verdict("dark", "1.0", mean < 0.1, {"dark": 1 - mean}, {"dark": 0.9}) for mean in means]

        @hookimpl
        def sld_post_filters():
            return [PostFilterKind(name="dark", create=lambda options: Dark())]

    A policy then says ``filters: [dark]``.
    """


@hookspec
def sld_prompt_filters() -> list[PromptFilterKind]:  # type: ignore[empty-body]
    """Reviews of prompts before anything is generated, one verdict each.

        class Shouting:
            name, version = "shouting", "1.0"
            def review(self, prompts, contexts):
                return [Verdict("shouting", "1.0", prompt.isupper(), reason="all capitals") for prompt in prompts]

        @hookimpl
        def sld_prompt_filters():
            return [PromptFilterKind(name="shouting", create=lambda options: Shouting())]

    A policy then says ``prompt_filters: [shouting]``.
    """


@hookspec
def sld_marks() -> list[MarkKind]:  # type: ignore[empty-body]
    """Marks on pictures that are shown: watermarks, labels. They run last and never flag.

        class Corner:  # a white square in the lower right corner
            name, version = "corner", "1.0"
            def mark(self, pictures, contexts):
                marked = [picture.copy() for picture in pictures]
                for picture in marked:
                    width, height = picture.size
                    picture.paste((255, 255, 255), (width - width // 8, height - height // 8, width, height))
                return marked

        @hookimpl
        def sld_marks():
            return [MarkKind(name="corner", create=lambda options: Corner())]

    A policy then says ``marks: [corner]``.
    """


@hookspec
def sld_step_hooks() -> list[StepHookKind]:  # type: ignore[empty-body]
    """Code that the denoising loop calls at every step, before and after the guidance is combined.

        class Norms:
            name, version = "norms", "1.0"
            def __init__(self):
                self.norms = []
            def before_guidance(self, step, predictions):
                return None  # observes; a Predictions would replace them
            def after_guidance(self, step, predictions, guided):
                self.norms.append(guided.norm())  # stays on the device: nothing waits
                return None  # observes; a tensor of guided's shape would replace it

        @hookimpl
        def sld_step_hooks():
            return [StepHookKind(name="norms", create=lambda options: Norms())]

    A policy then says ``step_hooks: [norms]``; a new object is made for every run.
    """


@hookspec
def sld_families() -> list[FamilyKind]:  # type: ignore[empty-body]
    """Kinds of pipelines: how they call their denoiser and encode text (:class:`sldcore.families.base.Family`).

        class Tiny(StableDiffusion):
            name = "tiny"

        @hookimpl
        def sld_families():
            return [FamilyKind(name="tiny", pipelines=("TinyPipeline",), create=Tiny)]

    The engine and ``guard`` then take pipelines of this class.
    """


@hookspec
def sld_commands() -> list[Command]:  # type: ignore[empty-body]
    """Commands of ``sld``.

        def greet():
            import typer
            app = typer.Typer()
            @app.command()
            def hello(name: str):
                typer.echo(f"hello {name}")
            return app

        @hookimpl
        def sld_commands():
            return [Command(name="greet", create=greet)]

    ``sld greet`` then exists.
    """
