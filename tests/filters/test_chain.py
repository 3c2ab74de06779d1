"""Filters of policies on real pictures of a pipeline in miniature: none fails open."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sldcore import Result, SafetyEngine, SafetyPolicy
from sldcore.builtin import entries
from sldcore.catalogue import Catalogue, using
from sldcore.contributions import MarkKind, PostFilterKind, PromptFilterKind
from sldcore.errors import PluginError, SafetyFailure
from sldcore.filters.base import PictureContext
from sldcore.filters.chain import Findings, judged
from sldcore.plugins import Plugins
from sldcore.policy import FilterUse
from sldcore.types import Box, Verdict

Contribute = Callable[..., None]
PROMPTS = ["a red knight", "a blue house", "a green tree"]
FAST: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}


class Filter:
    """Says of each picture what ``word`` makes of its prompt."""

    version = "2.0"

    def __init__(self, name: str, word: Callable[[str], Any]) -> None:
        self.name, self.word, self.seen = name, word, list[list[str]]()

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Any]:
        assert len(pictures) == len(contexts)
        self.seen.append([context.prompt for context in contexts])
        for picture in pictures:
            picture.paste((255, 255, 255), (0, 0, *picture.size))
        return [self.word(context.prompt) for context in contexts]


def contributed(plugin_catalogue: Contribute, *filters: Filter) -> None:
    plugin_catalogue(
        *(PostFilterKind(name=each.name, create=lambda options, each=each: each) for each in filters)
    )


def flags(name: str, word: str) -> Filter:
    return Filter(name, lambda prompt: Verdict(name, "2.0", word in prompt, {"x": 0.25}))


def shown(result: Result) -> list[bool]:
    return [bool(np.asarray(image).any()) for image in result.images]


def test_each_filter_runs_once_and_blackens_what_it_flags(pipe: Any, plugin_catalogue: Contribute) -> None:
    house, tree = flags("house", "house"), flags("tree", "tree")
    contributed(plugin_catalogue, house, tree)
    plain = SafetyEngine(pipe, "off").generate(PROMPTS, **FAST)
    result = SafetyEngine(pipe, SafetyPolicy.parse("filters: [house, {use: tree, on_flag: flag}]")).generate(
        PROMPTS, **FAST
    )
    assert house.seen == tree.seen == [PROMPTS]
    assert [report.action for report in result.reports] == ["none", "black", "flag"]
    assert shown(result) == [True, False, True]
    assert np.array_equal(result.images[2], plain.images[2])
    assert [[verdict.filter for verdict in report.verdicts] for report in result.reports] == [
        ["house", "tree"]
    ] * 3


def test_a_filter_reviews_only_the_pictures_of_policies_that_name_it(
    pipe: Any, plugin_catalogue: Contribute
) -> None:
    house = flags("house", "house")
    contributed(plugin_catalogue, house)
    policies = [
        SafetyPolicy.parse("filters: [house]"),
        SafetyPolicy.preset("off"),
        SafetyPolicy.parse("filters: [house]"),
    ]
    result = SafetyEngine(pipe, "off").generate(PROMPTS, policies=policies, **FAST)
    assert house.seen == [[PROMPTS[0], PROMPTS[2]]]
    assert [report.action for report in result.reports] == ["none"] * 3


def raising(prompt: str) -> Any:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("word", "error"),
    [
        (raising, "OSError: the disk is gone"),
        (lambda prompt: None, "TypeError: a verdict must be a Verdict"),
        (lambda prompt: Verdict("f", "1", False, {"x": float("nan")}), "ValueError: score nan of 'x'"),
        (
            lambda prompt: Verdict("f", "1", False, {"x": 1.5}),
            r"ValueError: score 1\.5 of 'x' is not in 0\.\.1",
        ),
        (lambda prompt: Verdict("f", "1", None), "flagged true or false"),  # type: ignore[arg-type]
        (lambda prompt: Verdict("f", "1", True, {"x": 0.9}, {"x": float("nan")}), "threshold nan of 'x'"),
        (lambda prompt: Verdict("f", "1", True, reason=5), "must be texts"),  # type: ignore[arg-type]
        (lambda prompt: Verdict("f", "1", True, boxes=(Box("x", 0.9, 10, 10, 20, 20),)), "must be fractions"),
        (lambda prompt: Verdict("f", "1", True, boxes=(Box("x", 0.9, 0.5, 0.1, 0.2, 0.3),)), "left < right"),
        (lambda prompt: Verdict("f", "1", True, boxes=(1,)), "Box objects"),  # type: ignore[arg-type]
    ],
)
def test_a_filter_that_fails_withholds_the_pictures_it_was_to_review(
    pipe: Any, plugin_catalogue: Contribute, word: Callable[[str], Any], error: str
) -> None:
    contributed(plugin_catalogue, Filter("faulty", word))
    policies = [SafetyPolicy.parse("filters: [faulty]"), SafetyPolicy.preset("off")]
    result = SafetyEngine(pipe, "off").generate(PROMPTS[:2], policies=policies, **FAST)
    assert shown(result) == [False, True]
    assert [report.action for report in result.reports] == ["block", "none"]
    (failure,) = result.reports[0].errors
    assert (failure.source, failure.version) == ("faulty", "2.0")
    assert re.search(error, failure.error)


def test_too_few_verdicts_withhold_all_of_them(pipe: Any, plugin_catalogue: Contribute) -> None:
    class Short(Filter):
        def review(self, pictures: Any, contexts: Any) -> list[Any]:
            return super().review(pictures, contexts)[:-1]

    contributed(plugin_catalogue, Short("short", lambda prompt: Verdict("short", "1", False)))
    result = SafetyEngine(pipe, SafetyPolicy.parse("filters: [short]")).generate(PROMPTS, **FAST)
    assert shown(result) == [False] * 3
    assert result.reports[0].errors[0].error == "ValueError: 2 verdicts for 3"


def test_on_error_raise_raises(pipe: Any, plugin_catalogue: Contribute) -> None:
    contributed(plugin_catalogue, Filter("faulty", raising))
    policy = SafetyPolicy.parse("filters: [faulty]\non_error: raise")
    with pytest.raises(SafetyFailure, match="faulty: OSError: the disk is gone"):
        SafetyEngine(pipe, policy).generate(PROMPTS[0], **FAST)


def test_a_filter_that_cannot_be_made_is_an_error_before_the_first_step(
    pipe: Any, plugin_catalogue: Contribute
) -> None:
    def create(options: Any) -> Any:
        raise FileNotFoundError("no weights")

    plugin_catalogue(PostFilterKind(name="faulty", create=create))
    steps: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda *_: steps.append(1))
    with pytest.raises(PluginError, match=r"filter 'faulty' cannot be made: FileNotFoundError: no weights"):
        SafetyEngine(pipe, SafetyPolicy.parse("filters: [faulty]")).generate(PROMPTS[0], **FAST)
    assert not steps


def test_a_filter_is_made_once_for_an_engine(pipe: Any, plugin_catalogue: Contribute) -> None:
    made: list[int] = []

    def create(options: Any) -> Any:
        made.append(1)
        return flags("house", "house")

    plugin_catalogue(PostFilterKind(name="house", create=create))
    engine = SafetyEngine(pipe, SafetyPolicy.parse("filters: [house]"))
    engine.generate(PROMPTS[0], **FAST)
    engine.generate(PROMPTS[1], **FAST)
    assert made == [1]


def test_a_flagged_prompt_gives_no_picture(pipe: Any, plugin_catalogue: Contribute) -> None:
    class Words:
        name, version = "words", "1.0"

        def review(self, prompts: Sequence[str], contexts: Sequence[Any]) -> list[Verdict]:
            return [Verdict("words", "1.0", "house" in prompt) for prompt in prompts]

    plugin_catalogue(PromptFilterKind(name="words", create=lambda options: Words()))
    plain = SafetyEngine(pipe, "off").generate(PROMPTS, **FAST)
    rows: list[int] = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    result = SafetyEngine(pipe, SafetyPolicy.parse("prompt_filters: [words]")).generate(PROMPTS, **FAST)
    assert rows == [4, 4]
    np.testing.assert_allclose(result.images[0], plain.images[0], rtol=0, atol=1e-5)
    assert [report.action for report in result.reports] == ["none", "black", "none"]
    assert shown(result) == [True, False, True]


def test_a_picture_that_is_withheld_already_is_not_reviewed(pipe: Any, plugin_catalogue: Contribute) -> None:
    house = flags("house", "house")
    contributed(plugin_catalogue, house)

    class Spoil:
        name, version = "spoil", "1"

        def before_guidance(self, step: Any, predictions: Any) -> None: ...

        def after_guidance(self, step: Any, predictions: Any, guided: Any) -> Any:
            raise RuntimeError("spoilt")

    engine = SafetyEngine(pipe, SafetyPolicy.parse("filters: [house]"), [Spoil()])
    result = engine.generate(PROMPTS, **FAST)
    assert house.seen == []
    assert [report.action for report in result.reports] == ["block"] * 3


@pytest.mark.sldcore_plugins
def test_filters_of_one_name_from_two_policies_files_are_told_apart(pipe: Any, tmp_path: Path) -> None:
    code = (
        "from sldcore.contributions import *\nfrom sldcore.hookspecs import hookimpl\n"
        "from sldcore.types import Verdict\nSLD_API = 1\n"
        "class F:\n    name, version = 'own', '1'\n"
        "    def review(self, pictures, contexts):\n"
        "        return [Verdict('own', '1', FLAG) for _ in pictures]\n"
        "@hookimpl\ndef sld_post_filters():\n"
        "    return [PostFilterKind(name='own', create=lambda options: F())]\n"
    )
    policies = []
    for name, flag in (("a", "False"), ("b", "True")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(code.replace("FLAG", flag))
        (folder / "policy.yaml").write_text(f"plugins: [{name}.py]\nfilters: [own]\n")
        policies.append(SafetyPolicy.load(folder / "policy.yaml"))
    with using(Catalogue(entries(), Plugins.from_environment("a,b"))):
        engine = SafetyEngine(pipe, "off")
        result = engine.generate(PROMPTS[:2], policies=policies, **FAST)
    assert [report.action for report in result.reports] == ["none", "black"]


@pytest.mark.parametrize(
    ("use", "flagged"),
    [
        ({}, True),
        ({"threshold": 0.95}, False),
        ({"thresholds": {"x": 0.95}}, True),
        ({"thresholds": {"x": 0.95}, "only": ["x"]}, False),
        ({"ignore": ["y"]}, True),
        ({"only": ["y"]}, True),
        ({"only": ["y"], "threshold": 0.65}, False),
        ({"shadow": True}, False),
    ],
)
def test_the_policys_thresholds_and_categories_decide(use: dict[str, Any], flagged: bool) -> None:
    verdict = Verdict("f", "1", True, {"x": 0.9, "y": 0.6}, {"x": 0.5, "y": 0.5})
    asked = FilterUse.model_validate({"use": "f", **use})
    found = Findings()
    found.add(asked, replace(judged(asked, verdict), shadow=asked.shadow))
    assert bool(found.flagged_by) == flagged
    assert len(found.verdicts) == 1


@pytest.mark.parametrize("use", [{"only": ["gone"]}, {"ignore": ["gone"]}, {"thresholds": {"gone": 0.5}}])
def test_a_category_that_the_filter_does_not_have_is_an_error_and_not_silence(use: dict[str, Any]) -> None:
    verdict = Verdict("f", "1", False, {"x": 0.9}, {"x": 0.5})
    with pytest.raises(ValueError, match="the policy speaks of gone and the filter scores x"):
        judged(FilterUse.model_validate({"use": "f", **use}), verdict)


def test_a_category_without_any_threshold_stays_as_the_filter_flagged_it() -> None:
    verdict = Verdict("f", "1", True, {"x": 0.1, "y": 0.9}, {})
    assert judged(FilterUse.model_validate({"use": "f", "thresholds": {"x": 0.5}}), verdict).flagged


def test_with_first_flag_later_filters_do_not_see_flagged_pictures(
    pipe: Any, plugin_catalogue: Contribute
) -> None:
    house, tree = flags("house", "house"), flags("tree", "tree")
    contributed(plugin_catalogue, house, tree)
    policy = SafetyPolicy.parse("filters: [house, tree]\nfilter_mode: first_flag")
    SafetyEngine(pipe, policy).generate(PROMPTS, **FAST)
    assert tree.seen == [[PROMPTS[0], PROMPTS[2]]]


def test_marks_are_on_what_is_shown_and_on_nothing_else(pipe: Any, plugin_catalogue: Contribute) -> None:
    class Corner:
        name, version = "corner", "1"

        def mark(self, pictures: Sequence[Image.Image], contexts: Any) -> list[Image.Image]:
            marked = [picture.copy() for picture in pictures]
            for picture in marked:
                picture.putpixel((0, 0), (1, 254, 3))
            return marked

    contributed(plugin_catalogue, flags("house", "house"))
    plugin_catalogue(MarkKind(name="corner", create=lambda options: Corner()))
    result = SafetyEngine(pipe, SafetyPolicy.parse("filters: [house]\nmarks: [corner]")).generate(
        PROMPTS, **{**FAST, "output_type": "pil"}
    )
    assert [image.getpixel((0, 0)) == (1, 254, 3) for image in result.images] == [True, False, True]
    assert [report.marks for report in result.reports] == [("corner",), (), ("corner",)]


def test_a_picture_that_cannot_be_marked_is_withheld(pipe: Any, plugin_catalogue: Contribute) -> None:
    class Fails:
        name, version = "fails", "3"

        def mark(self, pictures: Any, contexts: Any) -> Any:
            raise OSError("no certificate")

    plugin_catalogue(MarkKind(name="fails", create=lambda options: Fails()))
    result = SafetyEngine(pipe, SafetyPolicy.parse("marks: [fails]")).generate(PROMPTS[0], **FAST)
    (report,) = result.reports
    assert (report.action, report.errors[0].source, report.errors[0].version) == ("block", "fails", "3")
    assert not result.images[0].any()


def test_a_filter_cannot_rewrite_what_is_reported(pipe: Any, plugin_catalogue: Contribute) -> None:
    class Rewrites(Filter):
        def review(self, pictures: Any, contexts: Any) -> list[Any]:
            contexts[0].concepts.clear()
            return super().review(pictures, contexts)

    contributed(plugin_catalogue, Rewrites("rewrites", lambda prompt: Verdict("rewrites", "1", False)))
    policy = SafetyPolicy.preset("max").replace(filters=["rewrites"])
    result = SafetyEngine(pipe, policy).generate(PROMPTS[0], **FAST)
    assert result.reports[0].action == "block"
    assert "AttributeError" in result.reports[0].errors[0].error
    assert result.reports[0].concepts


def test_a_failure_that_is_allowed_does_not_end_the_chain(pipe: Any, plugin_catalogue: Contribute) -> None:
    contributed(plugin_catalogue, Filter("faulty", raising), flags("house", "house"))
    policy = SafetyPolicy.parse("filters: [{use: faulty, on_error: allow}, house]\nfilter_mode: first_flag")
    result = SafetyEngine(pipe, policy).generate(PROMPTS, **FAST)
    assert [report.action for report in result.reports] == ["none", "black", "none"]
    assert [report.unreviewed for report in result.reports] == [True, False, True]


def test_what_a_milder_action_covers_is_covered_too(pipe: Any, plugin_catalogue: Contribute) -> None:
    box = Box("x", 0.9, 0.0, 0.0, 0.1, 0.1)
    contributed(
        plugin_catalogue,
        Filter("whole", lambda prompt: Verdict("whole", "1", True)),
        Filter("part", lambda prompt: Verdict("part", "1", True, {"x": 0.9}, {"x": 0.5}, boxes=(box,))),
    )
    policy = SafetyPolicy.parse(
        "filters: [{use: whole, on_flag: blur}, {use: part, on_flag: {do: pixelate, area: boxes}}]"
    )
    plain = SafetyEngine(pipe, "off").generate(PROMPTS[0], **FAST).images[0]
    covered = SafetyEngine(pipe, policy).generate(PROMPTS[0], **FAST).images[0]
    assert (np.abs(covered - plain) > 1e-3).any(2).mean() > 0.9
