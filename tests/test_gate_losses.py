"""What could get lost, or be said of the wrong picture, where a gate has pictures made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_setups
import torch
from made_gated import CALL, CLOSE, PARTS, PROMPTS, STEPS, gated, made, pipeline
from made_plugins import HEAD
from tiny_pipelines import ddim

from sldcore import SafetyEngine, SafetyPolicy, guard
from sldcore.builtin import entries
from sldcore.catalogue import Catalogue, using
from sldcore.concepts import load_pack
from sldcore.contributions import ConceptProvider, GuidanceMethod, PostFilterKind
from sldcore.errors import GuidanceError, SafetyFailure
from sldcore.guidance.sld import SLD
from sldcore.plugins import Plugins
from sldcore.policy import FilterUse, Options
from sldcore.request import Request, Sample
from sldcore.types import Guided, OwnRow, Predictions, Row, Step, Verdict

PlugIn = Callable[..., Any]
WORDS = "harbour cranes, cargo"
WHARF = f"""
id: wharf
version: "1"
title: What stands at a wharf
licence: MIT
concepts:
  - {{id: cranes, text: "{WORDS}"}}
  - {{id: ships, text: "ships, masts"}}
"""


def method(policy: SafetyPolicy, name: str, **options: Any) -> SafetyPolicy:
    """The policy with another guidance method behind its gate."""
    assert policy.guidance is not None
    update = {"method": name, "options": Options(options)}
    return policy.replace(guidance=policy.guidance.model_copy(update=update))


@pytest.fixture
def wharf(plugin_catalogue: PlugIn, tmp_path: Path) -> None:
    (tmp_path / "wharf.yaml").write_text(WHARF)
    plugin_catalogue(ConceptProvider(name="wharf", load=lambda: load_pack(tmp_path / "wharf.yaml")))


# --- pictures that are given up on the way ----------------------------------------------------------------------


@pytest.mark.parametrize("do", ["block", "raise"])
def test_a_pipeline_that_divides_by_what_it_is_given_does_not_spoil_them(do: str) -> None:
    policies = [gated(-1.0).replace(on_error=do), gated(1.0).replace(on_error=do)]
    mixed = made(policies, PROMPTS[:2], guidance_rescale=0.7)
    alone, off = (made(each, PROMPTS[:2], guidance_rescale=0.7) for each in ("max", "off"))
    assert [report.errors for report in mixed.reports] == [(), ()]
    assert np.abs(mixed.images[0] - alone.images[0]).max() < CLOSE
    assert np.abs(mixed.images[1] - off.images[1]).max() < CLOSE


def test_what_becomes_of_them_later_is_no_failure() -> None:
    class Spoiling:
        name, version = "spoiling", "1"

        def before_guidance(self, step: Step, predictions: Predictions) -> None:
            return None

        def after_guidance(self, step: Step, predictions: Predictions, guided: torch.Tensor) -> Any:
            given_up = torch.tensor([step.index > 2 and len(guided) == 2, False])[: len(guided)]
            return guided.masked_fill(given_up.reshape(-1, 1, 1, 1), torch.nan)

    engine = SafetyEngine(pipeline(), "off", step_hooks=[Spoiling()])
    result = engine.generate(PROMPTS[:2], seed=7, policies=[gated(-1.0), gated(1.0)], **CALL)
    assert [report.action for report in result.reports] == ["none", "none"]
    assert [report.errors for report in result.reports] == [(), ()]


class LeavingOut(SLD):
    """Names a sample as not needed, of which nothing says that it is made again."""

    name, version, sample = "leaving", "1", 0

    def start(self, samples: Any, schedule: Any) -> Any:
        spec = SafetyPolicy.preset("max").guidance
        run: Any = super().start([replace(sample, spec=spec) for sample in samples], schedule)
        out = frozenset({self.sample})

        class Run:
            rows, combine = run.rows, run.combine

            def left_out(self, step: Step) -> frozenset[int]:
                return out

        return Run()


@pytest.mark.parametrize("sample", [0, 1, 7])
def test_a_method_cannot_leave_out_pictures_that_are_shown(plugin_catalogue: PlugIn, sample: int) -> None:
    LeavingOut.sample = sample
    plugin_catalogue(GuidanceMethod(name="leaving", create=LeavingOut))
    policy = method(SafetyPolicy.preset("max"), "leaving")
    result = made([policy, SafetyPolicy.preset("off")], PROMPTS[:2])
    assert [report.action for report in result.reports] == ["block", "none"]
    assert "nothing makes them again" in result.reports[0].errors[0].error
    off = made("off", PROMPTS[:2])
    assert np.abs(result.images[1] - off.images[1]).max() < CLOSE


# --- what guides the second pass --------------------------------------------------------------------------------


@pytest.mark.usefixtures("wharf")
@pytest.mark.parametrize(
    "looked_for",
    [("wharf/cranes",), ("!wharf/ships", "wharf/*"), (("wharf/*", "!wharf/ships"),)],
    ids=["named", "taken out first", "in one use"],
)
def test_a_concept_is_found_under_the_name_that_its_own_policy_has_for_it(looked_for: Any) -> None:
    """Concepts of one text are one row, whatever policies call them."""
    uses = [{"use": list(each)} if isinstance(each, tuple) else each for each in looked_for]
    own_text = SafetyPolicy.preset("max").replace(concepts=[{"text": WORDS}])
    by_pack = gated(-1.0, guide="found", concepts=uses).replace(concepts=[{"text": WORDS}])
    result = made([own_text, by_pack], PROMPTS[:2])
    assert set(result.reports[1].probes[0].relevance) == {"wharf/cranes"}
    assert dict(result.reports[1].concepts) == {"wharf/cranes": (WORDS,)}
    assert [report.action for report in result.reports] == ["none", "none"]


@pytest.mark.sldcore_plugins
def test_concepts_of_a_policys_own_plugin_file_guide_the_second_pass(tmp_path: Path) -> None:
    (tmp_path / "wharf.yaml").write_text(WHARF)
    (tmp_path / "own.py").write_text(
        HEAD + "from pathlib import Path\nfrom sldcore.concepts import load_pack\n\n\n"
        "@hookimpl\n"
        "def sld_concepts():\n"
        "    pack = Path(__file__).parent / 'wharf.yaml'\n"
        "    return [ConceptProvider(name='wharf', load=lambda: load_pack(pack))]\n"
    )
    content = gated(-1.0, guide="both", concepts=("wharf/*",)).dump()
    (tmp_path / "policy.yaml").write_text(f"{content}\nplugins: [own.py]\n")
    policy = SafetyPolicy.load(tmp_path / "policy.yaml")
    with using(Catalogue(entries(), Plugins.from_environment("own"))):
        report = made([policy], PROMPTS[:1]).reports[0]
    assert report.errors == ()
    assert len([name for name in report.concepts if name.startswith("wharf/")]) == 1


def test_guidance_that_cannot_be_had_in_the_second_pass_withholds_what_it_was_for() -> None:
    two = method(gated(-1.0, guide="both"), "negative")
    result = made([two, SafetyPolicy.preset("off")], PROMPTS[:2])
    assert [report.action for report in result.reports] == ["block", "none"]
    assert "one text in place of the negative prompt" in result.reports[0].errors[0].error
    assert not result.images[0].any()
    assert np.abs(result.images[1] - made("off", PROMPTS[:2]).images[1]).max() < CLOSE
    with pytest.raises(SafetyFailure, match="one text in place"):
        made(two.replace(on_error="raise"), PROMPTS[:1])


def test_a_flagged_picture_that_was_guided_already_is_tried_with_more(plugin_catalogue: PlugIn) -> None:
    class Always:
        name, version = "always", "1"

        def review(self, pictures: Any, contexts: Any) -> list[Verdict]:
            return [Verdict("always", "1", True, {"x": 1.0}, {"x": 0.5}) for _ in pictures]

    plugin_catalogue(PostFilterKind(name="always", create=lambda options: Always()))
    again = {"do": "regenerate", "attempts": 1, "new_seed": False}
    filters = [FilterUse.model_validate({"use": "always", "on_flag": again})]
    found, missed = (
        made(gated(threshold, "weak").replace(filters=filters), PROMPTS[:1], num_inference_steps=16).reports[
            0
        ]
        for threshold in (-1.0, 1.0)
    )
    assert (found.attempts, found.policy) == (2, "gated, medium")
    assert (missed.attempts, missed.policy) == (2, "gated, without gate")


# --- methods that give the pipeline's own rows other texts ------------------------------------------------------


def test_a_picture_whose_texts_are_swapped_stays_guided_at_later_probes() -> None:
    """With the concept in the unconditional row its relevance would be 0, and the guidance would end."""
    policy = method(gated(-0.99, then="continue", probes=(1, 3), concepts=()), "negative")
    policy = policy.replace(concepts=[{"text": "a red knight"}])
    pipe = pipeline()
    with guard(pipe, policy) as session:
        pipe(PROMPTS[0], **CALL)
    assert session.trace.applied[0].any(0).tolist() == [False] * 2 + [True] * (STEPS - 2)
    assert [probe.step for probe in session.run.gates[0]] == [1]


class Infinite:
    """Changes predictions without rows, at one step to what is no number any more."""

    name, version = "infinite", "1"

    def start(self, samples: Sequence[Any], schedule: Any) -> Infinite:
        return self

    def rows(self, step: Step) -> tuple[Row, ...]:
        return ()

    def acts(self, step: Step) -> bool:
        return True

    def combine(self, step: Step, given: Predictions) -> Guided:
        more = torch.inf if step.index == 3 else 0.0
        return Guided(given.cond + more, given.concepts, (0,))


class InfiniteTexts(Infinite):
    """The same of texts."""

    name = "infinite-texts"

    def acts(self, step: Step) -> bool:
        return False

    def own_texts(self, step: Step) -> dict[OwnRow, Any]:
        value = torch.inf if step.index == 3 else 0.0
        return {OwnRow(0, "uncond"): {"encoder_hidden_states": torch.full((1, 77, 32), value)}}


@pytest.mark.parametrize("made_by", [Infinite, InfiniteTexts], ids=lambda each: each.name)
def test_what_a_method_without_rows_makes_infinite_is_noticed(plugin_catalogue: PlugIn, made_by: Any) -> None:
    """A scheduler that replaces it hides it from the decoded picture."""
    plugin_catalogue(GuidanceMethod(name=made_by.name, create=made_by))
    policy = method(SafetyPolicy.preset("max"), made_by.name)

    scheduler = ddim()
    own = scheduler.step

    def step(prediction: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return own(prediction.nan_to_num(0, 1, -1), *args, **kwargs)

    scheduler.step = step
    pipe = pipeline()
    pipe.scheduler = scheduler
    report = made(policy, PROMPTS[:1], pipe=pipe).reports[0]
    assert report.action == "block"
    assert (report.errors[0].source, report.errors[0].step) == (made_by.name, 3)
    with pytest.raises(SafetyFailure, match=made_by.name), guard(pipe, policy):
        pipe(PROMPTS[0], **CALL)


# --- what is said before anything runs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"then": "continue", "probes": (STEPS - 1,)},
        {"guide": "found", "found_until": 0.01, "probes": (2,)},
    ],
    ids=["last step", "ends before the window"],
)
def test_a_gate_after_which_nothing_can_guide_is_an_error(fields: dict[str, Any]) -> None:
    policy = gated(0.3, **fields)
    assert policy.guidance is not None
    late = policy.guidance.model_copy(
        update={"window": policy.guidance.window.model_copy(update={"start": 1})}
    )
    with pytest.raises(GuidanceError, match="could never guide"):
        made(policy.replace(guidance=late))


# --- what belongs to each picture -------------------------------------------------------------------------------


def test_pictures_given_as_an_array_are_cut_for_the_second_pass() -> None:
    pipe, call = tiny_setups.image_to_image(PARTS)
    arrays = np.random.default_rng(0).random((2, 32, 32, 3), dtype=np.float32)
    whole: dict[str, Any] = {**call, "num_inference_steps": 9, "image": arrays}
    mixed = made([SafetyPolicy.preset("off"), gated(-1.0)], PROMPTS[:2], pipe=pipe, **whole)
    alone = made("max", PROMPTS[:2], pipe=pipe, **whole)
    assert np.abs(mixed.images[1] - alone.images[1]).max() < CLOSE


def test_a_text_for_another_encoder_is_repeated_where_pictures_become_prompts() -> None:
    samples = [Sample(PROMPTS[0], seed, SafetyPolicy.preset("off")) for seed in (1, 2)]
    arguments = {"prompt_2": "a boat", "negative_prompt_2": "snow", "scheduler_prompt": "left alone"}
    request = Request(PROMPTS[0], tuple(samples), 2, arguments)
    assert request.call()["prompt_2"] == "a boat"
    part = request.part([0, 1], samples).call()
    assert (part["prompt_2"], part["negative_prompt_2"]) == (["a boat"] * 2, ["snow"] * 2)
    assert part["scheduler_prompt"] == "left alone"


def test_one_picture_for_all_prompts_is_not_cut_along_its_channels() -> None:
    samples = [Sample(prompt, 1, SafetyPolicy.preset("off")) for prompt in PROMPTS]
    picture, mask = torch.zeros(3, 32, 32), torch.arange(3.0).reshape(3, 1, 1).expand(3, 32, 32)
    frames = ["first", "second", "third"]
    arguments = {"image": picture, "mask_image": mask, "conditioning_frames": frames}
    part = Request(PROMPTS, tuple(samples), 1, arguments).part([2], samples[2:])
    assert part.arguments["image"] is picture
    assert part.arguments["conditioning_frames"] is frames
    assert torch.equal(part.arguments["mask_image"], mask[2:])
    several = {"conditioning_frames": [["a"], ["b"], ["c"]]}
    part = Request(PROMPTS, tuple(samples), 1, several).part([2], samples[2:])
    assert part.arguments["conditioning_frames"] == [["c"]]
