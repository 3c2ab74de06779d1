"""What every family must do, held against a reference that runs the denoiser three times per step, outside any hook.

The reference replaces the denoiser's ``forward``: it takes a call apart by itself, evaluates unconditional, conditional and
concept rows one after the other, and combines them with the equations written out anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sldcore.denoiser import HOOK_NAME
from sldcore.families import family_of
from sldcore.policy import ConceptUse, GuidanceSpec, SafetyPolicy, Window
from sldcore.session import guard

CONCEPT = "blood, weapons"
PROMPT = "a red knight on a meadow"
PROMPTS = ("a red knight on a meadow", "a blue cat in the snow")
SLD = {"scale": 20.0, "threshold": 10.0, "momentum_scale": 0.3, "momentum_beta": 0.4}
"""Acts on every element, so that nothing hangs on a single comparison of floats."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A pipeline of a family and how to call it. Two are the same only if they are one.

    ``pipe`` makes it anew. ``text`` gives a concept's text arguments (dotted names, [1, ...] each) straight from the pipeline's
    own ``encode_prompt``, as a prompt's. ``prediction`` is epsilon, v, flow, flow-by-sigmas, -flow, inverted-flow or edm. ``rows_per_sample``: see
    the family. ``unguided`` are arguments that turn classifier-free guidance off.
    """

    name: str
    family: type
    pipe: Callable[[], Any]
    text: Callable[[Any, str], Mapping[str, Tensor]]
    prediction: str
    call: Mapping[str, Any] = field(default_factory=dict)
    module: str = "transformer"
    latents: str = "hidden_states"
    parts: tuple[str, ...] = ("uncond", "cond")
    apart: bool = False
    images: str = "num_images_per_prompt"
    """The pipeline's argument for several pictures of a prompt; empty if it makes one of each, whatever is asked."""
    per_prompt: tuple[str, ...] = ()
    """Arguments of ``call`` of which there must be one for each prompt."""
    per_picture: tuple[str, ...] = ()
    """Arguments of ``call`` of which there must be one for each picture."""
    aside: Callable[[Mapping[str, Any]], bool] = lambda arguments: False
    """Tells calls of the denoiser that belong to no part."""
    skipped: int = 0
    """Timesteps of the scheduler before the first that the pipeline uses."""
    parts_at_once: bool = False
    """Parts cannot be evaluated one after the other (PAG's attention splits a call's rows)."""
    listed: tuple[str, ...] = ()
    rows_second: tuple[str, ...] = ()
    """Arguments whose rows are their second dimension."""
    shared: tuple[str, ...] = ("image_rotary_emb",)
    """Arguments of the denoiser that belong to all rows alike, however long they are."""
    rows_per_sample: Callable[[Mapping[str, Any]], int] = lambda arguments: 1
    unguided: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    around_concepts: Callable[[Any], Any] | None = None
    """Makes a context manager around the reference's evaluation of concepts."""
    concept_module: Callable[[Any], Any] | None = None
    """The module that evaluates the reference's concepts, where it is not the pipeline's own."""


def policy(start: int = 0, **options: float) -> SafetyPolicy:
    """SLD away from one concept."""
    spec = GuidanceSpec(method="sld", options={**SLD, **options}, window=Window(start=start))
    return SafetyPolicy(name="test", guidance=spec, concepts=(ConceptUse(text=CONCEPT),))


OUTPUTS = ("images", "frames", "image_embeddings")


def run(case: Case, pipe: Any, prompts: str | Sequence[str] = PROMPT, images: int = 1, **more: Any) -> Tensor:
    """Call the pipeline; every sample has a seed of its own."""
    if images > 1 and not case.images:
        given = [prompts] if isinstance(prompts, str) else prompts
        prompts, images = [prompt for prompt in given for _ in range(images)], 1
    count = images * (1 if isinstance(prompts, str) else len(prompts))
    generator = [torch.Generator().manual_seed(seed) for seed in range(count)]
    prompt = prompts if isinstance(prompts, str) else list(prompts)
    call = {"output_type": "latent", **case.call, **more}
    if not isinstance(prompt, str) and isinstance(call.get("negative_prompt"), str):
        call["negative_prompt"] = [call["negative_prompt"]] * len(prompt)
    if not isinstance(prompt, str):
        call |= {name: [call[name]] * len(prompt) for name in case.per_prompt}
    if count > 1:
        call |= {name: [call[name]] * count for name in case.per_picture}
    if images > 1:
        call[case.images] = images
    torch.manual_seed(0)  # some pipelines encode pictures with whatever noise comes next
    output = pipe(prompt=prompt, generator=generator if count > 1 else generator[0], **call)
    made = next(getattr(output, name) for name in OUTPUTS if hasattr(output, name))
    return torch.as_tensor(np.asarray(made) if not isinstance(made, Tensor) else made).detach().clone()


# --- the reference ---------------------------------------------------------------------------------------------


def sld_reference(
    steps: Sequence[tuple[Tensor, Tensor, Tensor, float]], start: int, threshold: float
) -> Tensor:
    """c' of the last of ``steps``, each (e_u, e_p, e_s, factor), element by element as in the paper."""
    momentum = torch.zeros_like(steps[0][0], dtype=torch.float64)
    for number, (e_u, e_p, e_s, factor) in enumerate(steps):
        u, p, s = (each.double() for each in (e_u, e_p, e_s))
        scale = torch.clamp((factor * (p - s)).abs() * SLD["scale"], max=1.0)
        mu = torch.where(factor * (p - s) >= threshold, torch.zeros_like(scale), scale)
        gamma = mu * factor * (s - u) + SLD["momentum_scale"] * momentum
        momentum = SLD["momentum_beta"] * momentum + (1 - SLD["momentum_beta"]) * gamma
        guided = p - gamma / factor if number >= start and factor != 0 else p
    return guided


def factor_of(case: Case, pipe: Any, index: int) -> float:
    """What a difference of predictions is multiplied with to be one of noise predictions."""
    timestep = float(pipe.scheduler.timesteps[case.skipped + index])
    if case.prediction == "epsilon":
        return 1.0
    if case.prediction == "v":
        return float(pipe.scheduler.alphas_cumprod[int(timestep)]) ** 0.5
    if case.prediction == "edm":  # x0 = c_skip x + c_out F, and eps = (x - x0) / sigma
        sigma = float(pipe.scheduler.sigmas[case.skipped + index])
        return -pipe.scheduler.config.sigma_data / (sigma**2 + pipe.scheduler.config.sigma_data**2) ** 0.5
    if case.prediction == "flow-by-sigmas":  # where timesteps are rounded
        return 1 - float(pipe.scheduler.sigmas[case.skipped + index])
    sigma = timestep / 1000
    if case.prediction == "inverted-flow":
        return -sigma
    return {"flow": 1 - sigma, "-flow": sigma - 1}[case.prediction]


class Reference:
    """Stands in for the denoiser's forward during one pipeline call."""

    def __init__(self, case: Case, pipe: Any, module: Any, start: int, negative: Mapping[str, Any]) -> None:
        self.case, self.pipe, self.module, self.start = case, pipe, module, start
        self.forward, self.signature = module.forward, signature(type(module).forward)
        self.text = dict(case.text(pipe, CONCEPT))
        self.negative, self.threshold = negative, SLD["threshold"]
        self.steps: list[tuple[Tensor, Tensor, Tensor, float]] = []
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = dict(self.signature.bind(self.module, *args, **kwargs).arguments)
        bound.pop("self", None)
        bound |= bound.pop("kwargs", {})
        if self.case.aside(bound):
            return self.forward(**bound)
        self.calls += 1
        return self._apart(bound) if self.case.apart else self._together(bound)

    def _together(self, bound: dict[str, Any]) -> Any:
        rows = bound[self.case.latents].shape[0]
        batch = rows // len(self.case.parts)
        outputs = self._parts(bound, rows, batch)
        cond = self._rows(bound, rows, self.case.parts.index("cond") * batch, batch)
        concept = self._concept(cond, batch)
        guided = self._guided(outputs["uncond"], outputs["cond"], concept, batch, self.calls - 1)
        whole = {part: tensor_of(output) for part, output in outputs.items()} | {"cond": guided}
        return self._with(outputs["cond"], torch.cat([whole[part] for part in self.case.parts]))

    def _parts(self, bound: dict[str, Any], rows: int, batch: int) -> dict[str, Any]:
        names = self.case.parts
        if self.case.parts_at_once:
            output = self.forward(**bound)
            whole = tensor_of(output).chunk(len(names))
            return {name: self._with(output, part) for name, part in zip(names, whole, strict=True)}
        return {
            name: self.forward(**self._rows(bound, rows, number * batch, batch))
            for number, name in enumerate(names)
        }

    def _apart(self, bound: dict[str, Any]) -> Any:
        if self.calls % 2 == 0:
            return self.forward(**bound)
        batch = bound[self.case.latents].shape[0]
        cond, uncond = self.forward(**bound), self.forward(**{**bound, **self.negative})
        guided = self._guided(uncond, cond, self._concept(bound, batch), batch, self.calls // 2)
        return self._with(cond, guided)

    def _concept(self, cond: dict[str, Any], batch: int) -> Any:
        swapped = dict(cond)
        for path, value in self.text.items():
            name, _, key = path.partition(".")
            like = swapped[name][key] if key else swapped[name]
            axis = int(name in self.case.rows_second)
            times = like.shape[axis] // value.shape[axis]
            repeated = value.repeat_interleave(times, dim=axis).to(like.dtype)
            swapped[name] = {**swapped[name], key: repeated} if key else repeated
        around = self.case.around_concepts or (lambda pipe: _nothing())
        module = self.case.concept_module
        with around(self.pipe):
            return (module(self.pipe) if module else self.forward)(**swapped)

    def _guided(self, uncond: Any, cond: Any, concept: Any, batch: int, index: int) -> Tensor:
        whole = tensor_of(cond)
        channels = whole.shape[1] // 2 if self._has_variance(whole) else whole.shape[1]
        u, p, s = (tensor_of(each)[:, :channels] for each in (uncond, cond, concept))
        self.steps.append((u, p, s, factor_of(self.case, self.pipe, index)))
        guided = sld_reference(self.steps, self.start, self.threshold).to(p.dtype)
        return torch.cat([guided, whole[:, channels:]], dim=1)

    def _has_variance(self, whole: Tensor) -> bool:
        config = self.module.config
        return whole.ndim > 3 and whole.shape[1] == 2 * config.get("in_channels", whole.shape[1])

    def _with(self, output: Any, prediction: Tensor) -> Any:
        return (prediction,) if isinstance(output, tuple) else type(output)(sample=prediction)

    def _rows(self, value: Any, rows: int, first: int, count: int, name: str = "") -> Any:
        """The part of a call's arguments that belongs to some of its rows."""
        if isinstance(value, dict) and not name:
            group = self.case.rows_per_sample(value)
            return {key: self._cut(item, rows, first, count, group, key) for key, item in value.items()}
        raise TypeError("arguments are a dict")

    def _cut(self, value: Any, rows: int, first: int, count: int, group: int, name: str) -> Any:
        if name in self.case.shared:
            return value
        if name in self.case.rows_second:
            return value[:, first : first + count]
        if isinstance(value, Tensor) and value.ndim:
            for each in {1, group}:
                if value.shape[0] == rows * each:
                    return value[first * each : (first + count) * each]
            return value
        if isinstance(value, Mapping):
            return {key: self._cut(item, rows, first, count, group, name) for key, item in value.items()}
        if name in self.case.listed and isinstance(value, list | tuple) and len(value) == rows:
            return list(value[first : first + count])
        if isinstance(value, list | tuple):
            return type(value)(self._cut(item, rows, first, count, group, name) for item in value)
        return value


def tensor_of(output: Any) -> Tensor:
    """The prediction in a denoiser's output."""
    first: Tensor = output[0] if isinstance(output, tuple) else next(iter(output.values()))
    return first


def reference(
    case: Case,
    prompts: str | Sequence[str] = PROMPT,
    images: int = 1,
    start: int = 0,
    threshold: float = SLD["threshold"],
) -> Tensor:
    """What the pipeline gives with the reference in place of its denoiser."""
    negative = _negative_text(case, prompts, images) if case.apart else {}
    pipe = case.pipe()
    module = getattr(pipe, case.module)
    stand_in = Reference(case, pipe, module, start, negative)
    stand_in.threshold = threshold
    module.forward = functools.update_wrapper(stand_in, type(module).forward)
    try:
        return run(case, pipe, prompts, images)
    finally:
        del module.forward


RESIDUALS = ("controlnet_block_samples", "controlnet_single_block_samples")


def _negative_text(case: Case, prompts: str | Sequence[str], images: int) -> dict[str, Any]:
    """All arguments but the latents of a pipeline's first unconditional call, where it is the second of its calls."""
    pipe, seen = case.pipe(), []
    module = getattr(pipe, case.module)
    forward, names = module.forward, signature(type(module).forward)

    def note(*args: Any, **kwargs: Any) -> Any:
        bound = dict(names.bind(module, *args, **kwargs).arguments)
        seen.append({**bound, **bound.pop("kwargs", {})})
        return forward(*args, **kwargs)

    module.forward = functools.update_wrapper(note, type(module).forward)
    run(case, pipe, prompts, images)
    changing = {"self", case.latents, "timestep", "return_dict", *RESIDUALS}
    return {name: value for name, value in seen[1].items() if name not in changing}


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def encodings(pipe: Any) -> Iterator[list[dict[str, Any]]]:
    """What the pipeline's ``encode_prompt`` is called with, in the order of its calls."""
    kind, seen = type(pipe), []
    original = kind.encode_prompt
    names = signature(original)

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(dict(names.bind(self, *args, **kwargs).arguments))
        return original(self, *args, **kwargs)

    note.__signature__ = names
    kind.encode_prompt = note
    try:
        yield seen
    finally:
        kind.encode_prompt = original


# --- the checks ------------------------------------------------------------------------------------------------


def check_it_is_known(case: Case) -> None:
    """The family is the one that is meant, and the denoiser takes what it names."""
    assert type(family_of(case.pipe())) is case.family


@dataclass(frozen=True)
class Plain:
    """What a pipeline without guard makes, the rows of its denoiser's calls, and the attributes that it then has."""

    made: Tensor
    rows: tuple[int, ...]
    attributes: frozenset[str]


@functools.lru_cache(maxsize=1)  # checks of a case follow each other
def plain_run(case: Case) -> Plain:
    """A new pipeline, never guarded: what all checks of a case compare with."""
    pipe = case.pipe()
    with counting(case, pipe) as rows:
        made = run(case, pipe)
    return Plain(made, tuple(rows), frozenset(vars(pipe)))


def check_off_changes_nothing(case: Case) -> None:
    """Policy ``off`` is bit-identical to the unguarded pipeline."""
    pipe = case.pipe()
    with guard(pipe, "off"):
        assert torch.equal(run(case, pipe), plain_run(case).made)


def check_guidance_is_the_references(case: Case) -> None:
    """One prompt, with momentum from the first step and the term from the second."""
    pipe = case.pipe()
    with guard(pipe, policy(start=1)) as session:
        guided = run(case, pipe)
    expected = reference(case, start=1)
    close(guided, expected)
    assert (plain_run(case).made - guided).abs().max() > 100 * tolerance(expected), (
        "guidance hardly does anything"
    )
    assert session.trace.evaluated.all() and not session.trace.applied[..., 0].any()
    assert session.trace.applied[..., 1:].all() and (session.trace.heat > 0).any()
    assert session.trace.heat.ndim == 3


def check_a_batch_is_the_references(case: Case) -> None:
    """Two prompts, two pictures each."""
    pipe = case.pipe()
    with guard(pipe, policy()):
        guided = run(case, pipe, PROMPTS, images=2)
    close(guided, reference(case, PROMPTS, images=2))
    assert len(guided) == 4 and not torch.equal(guided[0], guided[2])


def check_the_sign_is_the_references(case: Case) -> None:
    """With lambda = 0 only elements act where the prompt's noise is below the concept's: that is the sign of the factor."""
    pipe = case.pipe()
    with guard(pipe, policy(threshold=0.0)):
        guided = run(case, pipe)
    expected = reference(case, threshold=0.0)
    close(guided, expected)
    with guard(pipe, policy()):
        everywhere = run(case, pipe)
    assert (expected - everywhere).abs().max() > 10 * tolerance(expected), (
        "the threshold hardly does anything"
    )


def check_rows(case: Case) -> None:
    """Without momentum nothing is evaluated before the window, and one row per sample inside it."""
    pipe, plain = case.pipe(), plain_run(case).rows
    with counting(case, pipe) as rows, guard(pipe, policy(start=1, momentum_scale=0.0)) as session:
        run(case, pipe)
    steps = len(session.run.schedule)
    assert sum(rows) == sum(plain) + (steps - 1) * sum(plain) // steps // len(case.parts)
    assert session.trace.rows == session.trace.plain_rows + steps - 1
    assert session.trace.plain_rows == sum(plain)


def check_nothing_stays(case: Case) -> None:
    """The hook is gone afterwards, and the pipeline is what it was."""
    pipe, plain = case.pipe(), plain_run(case)
    with guard(pipe, policy()):
        run(case, pipe)
    for module in family_of(pipe).denoisers(pipe):
        registry = getattr(module, "_diffusers_hook", None)
        assert registry is None or registry.get_hook(HOOK_NAME) is None
    assert set(vars(pipe)) == plain.attributes
    assert torch.equal(run(case, pipe), plain.made)


@contextmanager
def counting(case: Case, pipe: Any) -> Iterator[list[int]]:
    """Rows of every evaluation of the denoiser, whoever asks for it."""
    kind, rows = type(getattr(pipe, case.module)), []
    forward = kind.forward
    names = signature(forward)

    @functools.wraps(forward)
    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(names.bind(self, *args, **kwargs).arguments[case.latents]))
        return forward(self, *args, **kwargs)

    kind.forward = count
    try:
        yield rows
    finally:
        kind.forward = forward


def tolerance(expected: Tensor) -> float:
    """1e-4 of the largest value."""
    return 1e-4 * max(float(expected.abs().max()), 1.0)


def close(made: Tensor, expected: Tensor) -> None:
    """Equal within 1e-4, and finite."""
    assert made.isfinite().all()
    torch.testing.assert_close(made.float(), expected.float(), rtol=0, atol=tolerance(expected))


CHECKS = (
    check_it_is_known,
    check_off_changes_nothing,
    check_guidance_is_the_references,
    check_a_batch_is_the_references,
    check_the_sign_is_the_references,
    check_rows,
    check_nothing_stays,
)
