"""Filters of policies on real pictures of a pipeline in miniature: none fails open."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sldcore import Result, SafetyEngine, SafetyPolicy
from sldcore.contributions import PostFilterKind, PromptFilterKind
from sldcore.errors import PluginError, SafetyFailure
from sldcore.filters.base import PictureContext
from sldcore.types import Verdict

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
