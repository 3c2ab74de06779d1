# ruff: noqa: RUF001  (letters that look like others are what is tested)

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from sldcore import SafetyPolicy
from sldcore.errors import ConfigurationError
from sldcore.filters import prompt_similarity, prompt_terms, visible_label
from sldcore.filters.base import PictureContext, PromptContext
from sldcore.filters.lookalikes import skeleton
from sldcore.filters.prompt_similarity import PromptSimilarity, SimilarityOptions, similarities
from sldcore.filters.prompt_terms import PromptTerms, TermOptions
from sldcore.filters.visible_label import LabelOptions, VisibleLabel
from sldcore.testing import MarkContract, PromptFilterContract
from sldcore.types import Verdict


class TestTermsContract(PromptFilterContract):
    contribution = prompt_terms.KIND
    options = {"terms": "gore, severed head, kill*", "leetspeak": True, "letters_apart": True}  # noqa: RUF012
    flagged = ("a scene of GORE", "severed\nhead", "killing", "a\u200b g\u200bore b")
    clean = ("category", "a several-headed hydra", "gorse and heather", "skill")


def terms_in(prompt: str, terms: str, **options: Any) -> Verdict:
    (verdict,) = PromptTerms(TermOptions(terms=terms, **options)).review([prompt], [context()])
    return verdict


def context(encode: Any = None, **concepts: tuple[str, ...]) -> PromptContext:
    return PromptContext(SafetyPolicy(name="test"), concepts, encode)


@pytest.mark.parametrize(
    "prompt",
    [
        "a nude",
        "NUDE woman",
        "(nude:1.4)",
        "nude_woman",
        "a ｎｕｄｅ figure",
        "𝓷𝓾𝓭𝓮",
        "n\u200bu\u00add\u2060e",
        "nud\U000e0065e",
        "ոսԁе",  # Armenian and Cyrillic
        "ΝUDЕ",  # Greek and Cyrillic capitals
        "ɴᴜᴅᴇ",
        "🅝🅤🅓🅔",
        "ñúdé",
        "n\u0336u\u0336d\u0336e\u0336",
        "n\u20ddu\u20ddd\u20dde\u20dd",
        "nude\u200bwoman",
    ],
)
def test_a_term_is_found_in_other_letters(prompt: str) -> None:
    assert terms_in(prompt, "nude").flagged


@pytest.mark.parametrize("prompt", ["denuded hills", "nud", "nudes", "nu de", "", "n u d e", "nu\nde"])
def test_a_term_is_not_found_in_other_words(prompt: str) -> None:
    assert not terms_in(prompt, "nude").flagged


@pytest.mark.parametrize(
    "prompt", ["child abuse", "child-abuse", "Child   Abuse", "child_abuse", "child, abuse"]
)
def test_words_of_a_term_may_be_joined_in_any_way(prompt: str) -> None:
    assert terms_in(prompt, "child abuse").flagged


@pytest.mark.parametrize(
    ("term", "prompt"),
    [
        ("血", "流血场面"),
        ("ВОЙНА", "эта война"),
        ("война", "ВОЙНА"),
        ("straße", "STRASSE"),
        ("عنف", "مشهد عنف"),
        ("हिंसा", "यह हिंसा है"),
    ],
)
def test_terms_may_be_of_any_script(term: str, prompt: str) -> None:
    assert terms_in(prompt, term).flagged


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({"leetspeak": True}, "k1ll"),
        ({"leetspeak": True}, "K!LL!"),
        ({"leetspeak": True}, "m4554cre"),
        ({"leetspeak": True}, "$ex"),
        ({"letters_apart": True}, "k i l l"),
        ({"letters_apart": True}, "k.i.l-l"),
    ],
)
def test_digits_for_letters_and_spaced_letters_are_found_if_asked_for(
    options: dict[str, bool], prompt: str
) -> None:
    terms = "kill, massacre, sex"
    assert terms_in(prompt, terms, **options).flagged
    assert not terms_in(prompt, terms).flagged


@pytest.mark.parametrize(("prompt", "holds"), [("harm yourselves", True), ("harmed", False), ("harm", False)])
def test_the_last_word_of_a_term_may_go_on(prompt: str, holds: bool) -> None:
    assert terms_in(prompt, "harm your*").flagged is holds


def test_words_end_where_their_marks_end() -> None:
    assert not terms_in("हिम", "ह").flagged


def test_lookalikes_can_be_left_out() -> None:
    assert not terms_in("nudе", "nude", lookalikes=False).flagged
    assert terms_in("ＮＵＤＥ", "nude", lookalikes=False).flagged


def test_the_reason_names_the_terms_as_the_list_has_them() -> None:
    verdict = terms_in("blood and KILLING", "Kill*, gore, blood", category="violence")
    assert verdict.reason == "the prompt holds 'Kill*', 'blood'"
    assert (verdict.scores, verdict.thresholds) == ({"violence": 1.0}, {"violence": 0.5})


def test_terms_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "terms.txt"
    file.write_text("\ufeff# a comment\n\nblood, sweat\n  gore \n", "utf-8")
    (verdict,) = PromptTerms(TermOptions(file=str(file))).review(["gore"], [context()])
    assert verdict.flagged
    (verdict,) = PromptTerms(TermOptions(file=str(file))).review(["sweat"], [context()])
    assert not verdict.flagged  # a line is one term


def test_the_verdict_tells_lists_apart() -> None:
    one, two = (
        PromptTerms(TermOptions(terms=terms)).review(["x"], [context()])[0] for terms in ("a, b", "a, c")
    )
    assert one.weights != two.weights and len(one.weights) == 16


@pytest.mark.parametrize("terms", ["gore, !!!", "***", "gore, \u200b*"])
def test_a_term_without_letters_is_refused(terms: str) -> None:
    with pytest.raises(ConfigurationError, match="neither letters nor digits"):
        PromptTerms(TermOptions(terms=terms))


def test_a_file_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        PromptTerms(TermOptions(file=str(tmp_path / "none.txt")))
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigurationError, match="holds no terms"):
        PromptTerms(TermOptions(file=str(tmp_path / "empty.txt")))


def test_a_list_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="give 'terms'"):
        TermOptions(terms=" ")


def test_a_long_prompt_takes_no_long_time() -> None:
    many = PromptTerms(
        TermOptions(terms=", ".join(f"term{i} word{i}" for i in range(1000)), letters_apart=True)
    )
    begin = perf_counter()
    many.review(["term1 " * 2000, "t e r m " * 2000, "term1" + " " * 20_000], [context()] * 3)
    assert perf_counter() - begin < 5


def test_ascii_text_is_its_own_skeleton() -> None:
    text = "the quick brown fox, 42 (jumps)!"
    assert skeleton(text) == text


class TestSimilarityContract(PromptFilterContract):
    contribution = prompt_similarity.KIND
    options = {"threshold": 0.97}  # noqa: RUF012


VECTORS = {"a": (1.0, 0.0), "b": (0.0, 1.0), "ab": (0.6, 0.8), "not a": (-1.0, 0.0)}


def encode(texts: Sequence[str]) -> NDArray[np.float32]:
    return np.array([VECTORS[text] for text in texts], np.float32)


def test_similarity_is_the_cosine_of_prompt_and_nearest_text() -> None:
    scores = similarities("ab", context(encode, one=("a",), both=("a", "b"), against=("not a",)))
    assert scores == pytest.approx({"one": 0.6, "both": 0.8, "against": 0.0})


def test_a_prompt_is_flagged_from_the_threshold_on_and_the_nearest_concept_named_first() -> None:
    about = context(encode, one=("a",), two=("b",))
    (verdict,) = PromptSimilarity(SimilarityOptions(threshold=0.6 - 1e-6)).review(["ab"], [about])
    assert verdict.flagged and verdict.reason == "the prompt is close to two, one"
    (verdict,) = PromptSimilarity(SimilarityOptions(threshold=0.81)).review(["ab"], [about])
    assert not verdict.flagged and verdict.reason == ""


def test_each_text_is_encoded_once_for_all_prompts_of_a_policy() -> None:
    asked: list[str] = []

    def counting(texts: Sequence[str]) -> NDArray[np.float32]:
        asked.extend(texts)
        return encode(texts)

    about = context(counting, one=("a", "b"))
    PromptSimilarity(SimilarityOptions(threshold=0.5)).review(["ab", "ab", "not a"], [about] * 3)
    assert sorted(asked) == ["a", "ab", "b", "not a"]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (context(None, one=("a",)), "text encoder and there is none here"),
        (context(encode), "policy 'test', which has none as text"),
        (context(lambda texts: encode(texts) * np.nan, one=("a",)), "not of length one"),
        (context(lambda texts: encode(texts) * 2, one=("a",)), "not of length one"),
        (context(lambda texts: encode(texts)[0], one=("a",)), "shape"),
    ],
)
def test_a_prompt_that_cannot_be_compared_is_an_error(about: PromptContext, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSimilarity(SimilarityOptions(threshold=0.5)).review(["a"], [about])


class TestLabelContract(MarkContract):
    contribution = visible_label.KIND


def labelled(picture: Image.Image, **options: Any) -> Image.Image:
    (marked,) = VisibleLabel(LabelOptions(**options)).mark([picture], [PictureContext("", 0, SafetyPolicy())])
    return marked


def changed(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what differs."""
    rows, columns = (np.asarray(before.convert("RGB")) != np.asarray(after)).any(2).nonzero()
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize(
    ("corner", "touches"),
    [
        ("bottom-right", lambda box: box[2:] == (256, 192)),
        ("bottom-left", lambda box: (box[0], box[3]) == (0, 192)),
        ("top-right", lambda box: (box[1], box[2]) == (0, 256)),
        ("top-left", lambda box: box[:2] == (0, 0)),
    ],
)
def test_the_label_stands_in_its_corner_only(corner: str, touches: Callable[[Any], bool]) -> None:
    grey = Image.new("RGB", (256, 192), "grey")
    box = changed(grey, labelled(grey, corner=corner))
    assert touches(box)
    assert (box[2] - box[0]) < 128 and (box[3] - box[1]) < 32


@pytest.mark.parametrize("side", [64, 512, 2048])
def test_the_label_grows_with_the_picture_and_fits_the_playgrounds(side: int) -> None:
    grey = Image.new("RGB", (side, side), "grey")
    left, top, right, bottom = changed(grey, labelled(grey))
    assert max(8, 0.03 * side) <= bottom - top <= max(14, 0.1 * side)
    assert right - left <= side


def test_the_label_can_be_read_on_any_ground() -> None:
    for ground in ("white", "black", "grey"):
        box = np.asarray(labelled(Image.new("RGB", (256, 192), ground)).convert("L"))[-12:, -60:]
        assert box.min() < 30 and box.max() > 225


@pytest.mark.parametrize("size", [(1, 1), (20, 400), (400, 5)])
def test_a_picture_too_small_for_the_label_is_an_error(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} is too small"):
        labelled(Image.new("RGB", size))


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P"])
def test_pictures_of_other_modes_are_labelled_as_rgb(mode: str) -> None:
    assert labelled(Image.new(mode, (128, 128))).mode == "RGB"


def test_letters_that_the_font_lacks_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"has no '生' \(U\+751F\)"):
        VisibleLabel(LabelOptions(text="AI 生"))


def test_a_font_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_text("no font")
    with pytest.raises(ConfigurationError, match=r"cannot read .*font\.ttf"):
        VisibleLabel(LabelOptions(font=str(tmp_path / "font.ttf")))


def test_a_blank_label_is_refused() -> None:
    with pytest.raises(ValidationError, match="blank"):
        LabelOptions(text=" \n ")
