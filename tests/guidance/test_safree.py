"""SAFREE against the paper's equations, written once more with matrices and plain loops in numpy and float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sldcore.catalogue import checked_options
from sldcore.errors import GuidanceError, PluginError
from sldcore.families.base import TextSpace
from sldcore.guidance.base import Guidance, GuidedSample, PromptTexts, ReadsPrompts, SwapsTexts
from sldcore.guidance.kinds import KINDS, SAFREEOptions
from sldcore.guidance.safree import SAFREE, SAFREERun, basis
from sldcore.policy import GuidanceSpec, Options
from sldcore.splitting import terms_of
from sldcore.testing import GuidanceContract
from sldcore.testing.contracts.guided_runs import Combined, require_same_run
from sldcore.testing.contracts.tensors import Place
from sldcore.testing.samples import guided_samples, predictions, schedule
from sldcore.types import Guided, OwnRow, Schedule, Step

Array = NDArray[np.float64]
DTYPES = (torch.float16, torch.bfloat16)
LENGTH = 9  # states of a text, begin and end tokens and padding included
STATES = "encoder_hidden_states"
POOLED = "added_cond_kwargs.text_embeds"


# --- made texts ------------------------------------------------------------------------------------------------


def draw(name: str, *shape: int) -> Tensor:
    """Numbers that go with a name, with something that all have in common, as texts do in CLIP."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
    return numbers + torch.linspace(-1, 1, shape[-1])


@dataclass
class Texts:
    """:class:`PromptTexts` made of words: the same words give the same numbers.

    ``widths`` are those of one or several text encoders; with ``pooled`` the last one's vectors are a text argument as well.
    """

    prompts: Sequence[str]
    concepts: Sequence[str] = ("nudity, bare skin", "gore", "weapons, swords, guns")
    widths: tuple[int, ...] = (12,)
    pooled_too: bool = False
    dtype: torch.dtype = torch.float32
    spoilt: bool = False

    def prompt(self, sample: int) -> str:
        return self.prompts[sample]

    def concept(self, index: int) -> str:
        return self.concepts[index]

    def arguments(self, sample: int) -> Mapping[str, Tensor]:
        prompt = self.prompts[sample]
        found = {STATES: draw(f"states {prompt}", 1, LENGTH, sum(self.widths)).to(self.dtype)}
        if self.pooled_too:
            found[POOLED] = draw(f"pooled {prompt}", 1, self.widths[-1]).to(self.dtype)
        return found

    def masked(self, sample: int) -> tuple[TextSpace, ...]:
        words = self.prompts[sample].split()
        spaces = self._spaces([f"{self.prompts[sample]} without {i}" for i in range(len(words))])
        return tuple(
            space if space.tokens is None else replace(space, tokens=(1, 1 + len(words))) for space in spaces
        )

    def pooled(self, texts: Sequence[str]) -> tuple[TextSpace, ...]:
        return self._spaces(texts)

    def _spaces(self, texts: Sequence[str]) -> tuple[TextSpace, ...]:
        spaces, start = [], 0
        for number, width in enumerate(self.widths):
            spaces.append(
                TextSpace(STATES, (start, start + width), self._vectors(texts, number, width), (1, 1))
            )
            start += width
        if self.pooled_too:
            last = self.widths[-1]
            spaces.append(TextSpace(POOLED, (0, last), self._vectors(texts, len(self.widths), last), None))
        return tuple(spaces)

    def _vectors(self, texts: Sequence[str], number: int, width: int) -> Tensor:
        made = [draw(f"{number} {text}", width) for text in texts]
        vectors = torch.stack(made) if made else torch.zeros(0, width)
        return (vectors * torch.nan if self.spoilt else vectors).to(self.dtype)


def member(index: int = 0, calls: int = 50, concepts: tuple[int, ...] = (0,), **fields: Any) -> GuidedSample:
    """A sample; what is no field of one is an option of the method."""
    names = {name: fields.pop(name) for name in list(fields) if name in SAFREEOptions.model_fields}
    options = Options(SAFREEOptions(**names).model_dump())
    spec = GuidanceSpec(method="safree", options=options)
    given = {"weights": (1.0,) * len(concepts), "acting": (1.0,) * calls, **fields}
    return GuidedSample(index, spec, concepts, **given)


def started(samples: Sequence[GuidedSample], texts: Texts, calls: int = 50) -> SAFREERun:
    run = SAFREE().start_with_prompts(samples, schedule(calls), texts)
    assert isinstance(run, SAFREERun)
    return run


def used(run: SAFREERun, row: OwnRow, calls: int = 50) -> list[Any]:
    """What stands in place of a row's text at each call; None for the pipeline's own."""
    plan = schedule(calls)
    return [run.own_texts(plan.step(index)).get(row) for index in range(calls)]


def rewritten(run: SAFREERun, sample: int = 0, calls: int = 50) -> list[bool]:
    """At which calls the prompt is."""
    return [text is not None for text in used(run, OwnRow(sample, "cond"), calls)]


# --- the oracle ------------------------------------------------------------------------------------------------


def projection(vectors: Array) -> Array:
    """V (V^T V)^+ V^T for vectors [n, D] as columns of V."""
    columns = vectors.T
    return np.asarray(columns @ np.linalg.pinv(columns.T @ columns, rcond=1e-9) @ columns.T)


def oracle(e: Array, masked: Array, phrases: Array, alpha: float) -> tuple[Array, list[int], list[float]]:
    """New states [L, D], triggers as positions, and cosines of the tokens that beta is the mean of."""
    away = np.eye(e.shape[1]) - projection(phrases)
    whole = away @ projection(masked)
    distances = [float(np.sqrt(sum(x * x for x in away @ m))) for m in masked]
    new, triggers, cosines = e.copy(), [], []
    for i, distance in enumerate(distances):
        others = distances[:i] + distances[i + 1 :]
        if not others or distance >= (1 + alpha) * (sum(others) / len(others)):
            triggers.append(1 + i)
            new[1 + i] = whole @ e[1 + i]
    for position in range(len(masked) + 2):
        p, x = whole @ e[position], e[position]
        cosines.append(float(p @ x / (np.linalg.norm(p) * np.linalg.norm(x))))
    return new, triggers, cosines


def doubles(value: Tensor) -> Array:
    return np.asarray(value.double().numpy(), dtype=np.float64)


words = st.lists(
    st.sampled_from(["a", "red", "knight", "bare", "skin", "at", "dawn"]), min_size=1, max_size=6
)


@settings(max_examples=80, deadline=None)
@given(
    prompt=words.map(" ".join),
    phrases=st.lists(st.sampled_from(["nudity", "bare skin", "gore", "blood"]), min_size=1, max_size=4),
    alpha=st.sampled_from([-0.2, 0.0, 0.01, 0.3]),
    up_t=st.sampled_from([0.0, 3.0, 10.0]),
    midpoint=st.sampled_from([0.0, 5.333, 8.0]),
    calls=st.sampled_from([4, 25, 50]),
)
def test_a_prompt_is_rewritten_as_the_equations_say(
    prompt: str, phrases: list[str], alpha: float, up_t: float, midpoint: float, calls: int
) -> None:
    texts = Texts([prompt], [", ".join(phrases)])
    run = started([member(calls=calls, alpha=alpha, up_t=up_t, midpoint=midpoint)], texts, calls)
    (found,) = run.rewritings[0]
    (of_prompt,), (of_phrases,) = texts.masked(0), texts.pooled(phrases)
    e = doubles(texts.arguments(0)[STATES][0])
    new, triggers, cosines = oracle(e, doubles(of_prompt.vectors), doubles(of_phrases.vectors), alpha)
    assert list(found.triggers[0]) == triggers
    np.testing.assert_allclose(doubles(found.texts[STATES][0]), new, rtol=0, atol=2e-6)
    beta = 1 - sum(cosines) / len(cosines)
    assert found.beta == pytest.approx(beta, abs=1e-6)
    exact = up_t * calls / 50 / (1 + exp(-2 * 2.5 * (10 * beta - midpoint)))
    assert abs(found.last - exact) <= 0.5 + 1e-4
    assert rewritten(run, calls=calls) == [index <= found.last for index in range(calls)]


def test_by_hand_the_token_whose_loss_leaves_most_beside_the_concept_is_projected() -> None:
    """The concept is the x axis and the prompt's vectors are (3, 1, 0) and (0, 2, 0): d is 1 and 2."""

    class ByHand(Texts):
        def arguments(self, sample: int) -> Mapping[str, Tensor]:
            return {STATES: torch.tensor([[[9.0, 9, 9], [1.0, 2, 3], [4.0, 5, 6], [7.0, 7, 7]]])}

        def masked(self, sample: int) -> tuple[TextSpace, ...]:
            return (TextSpace(STATES, (0, 3), torch.tensor([[3.0, 1, 0], [0.0, 2, 0]]), (1, 3)),)

        def pooled(self, texts: Sequence[str]) -> tuple[TextSpace, ...]:
            return (TextSpace(STATES, (0, 3), torch.tensor([[5.0, 0, 0]]), (1, 1)),)

    (found,) = started([member()], ByHand(["two words"])).rewritings[0]
    assert found.triggers == ((2,),)
    torch.testing.assert_close(
        found.texts[STATES], torch.tensor([[[9.0, 9, 9], [1.0, 2, 3], [0.0, 5, 0], [7.0, 7, 7]]])
    )
    cosines = [9 / 243**0.5, 2 / 14**0.5, 5 / 77**0.5, 7 / 147**0.5]
    assert found.beta == pytest.approx(1 - sum(cosines) / 4)


def test_phrases_that_repeat_each_other_add_nothing() -> None:
    (once,) = started([member()], Texts(["a red knight"], ["gore, blood"])).rewritings[0]
    (twice,) = started([member()], Texts(["a red knight"], ["gore, blood, gore, blood"])).rewritings[0]
    torch.testing.assert_close(twice.texts[STATES], once.texts[STATES])
    assert twice.triggers == once.triggers


def test_directions_below_the_precision_of_the_encoder_are_left_out() -> None:
    vectors = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-4, 0.0]], dtype=torch.float64)
    assert basis(vectors, 1e-5).shape == (3, 2)
    assert basis(vectors, 1e-3).shape == (3, 1)


def test_the_only_token_of_a_prompt_counts_as_a_trigger() -> None:
    (found,) = started([member()], Texts(["knight"])).rewritings[0]
    assert found.triggers == ((1,),)


def test_an_empty_prompt_has_nothing_to_rewrite() -> None:
    texts = Texts([""])
    (found,) = started([member()], texts).rewritings[0]
    assert found.triggers == ((),)
    assert torch.equal(found.texts[STATES], texts.arguments(0)[STATES])


# --- when -------------------------------------------------------------------------------------------------------

ALWAYS: dict[str, Any] = {"midpoint": -100.0}
"""Of the sigmoid 1 is left."""


@pytest.mark.parametrize(
    ("calls", "per", "last"), [(50, 50, 10), (25, 50, 5), (10, 50, 2), (25, 0, 10), (25, 25, 10), (4, 50, 1)]
)
def test_the_rewritten_calls_grow_with_the_run_unless_told_otherwise(calls: int, per: int, last: int) -> None:
    plain = member(calls=calls, **ALWAYS)
    options = Options({**plain.spec.options, "calls": per})
    sample = replace(plain, spec=GuidanceSpec(method="safree", options=options))
    run = started([sample], Texts(["a red knight"]), calls)
    assert rewritten(run, calls=calls) == [index <= last for index in range(calls)]


def test_the_first_call_is_rewritten_even_where_the_filter_sees_nothing() -> None:
    run = started([member(midpoint=100.0)], Texts(["a red knight"]))
    assert rewritten(run) == [True] + [False] * 49


def test_texts_are_the_same_objects_at_every_step() -> None:
    run = started([member(**ALWAYS)], Texts(["a red knight"]))
    given = [text for text in used(run, OwnRow(0, "cond")) if text is not None]
    assert len(given) == 11
    assert all(text is given[0] for text in given)


def test_a_window_that_opens_later_is_when_counting_begins() -> None:
    acting = tuple(float(20 <= call < 25) for call in range(50))
    run = started([member(up_t=2.0, acting=acting, **ALWAYS)], Texts(["a red knight"]))
    assert [call for call, there in enumerate(rewritten(run)) if there] == [20, 21, 22]
    negative = used(run, OwnRow(0, "uncond"))
    assert [call for call, text in enumerate(negative) if text == 0] == [20, 21, 22, 23, 24]


def test_a_run_that_begins_in_the_middle_of_the_loop_counts_from_there() -> None:
    run, plan = started([member(up_t=2.0, **ALWAYS)], Texts(["a red knight"])), schedule(50)
    given = [OwnRow(0, "cond") in run.own_texts(plan.step(call)) for call in range(30, 50)]
    assert given == [True] * 3 + [False] * 17


def test_the_concept_stands_for_the_negative_prompt_at_every_call_unless_switched_off() -> None:
    texts = Texts(["a red knight"])
    assert used(started([member(concepts=(2,))], texts), OwnRow(0, "uncond")) == [2] * 50
    assert used(started([member(negative=False)], texts), OwnRow(0, "uncond")) == [None] * 50


def test_of_several_concepts_the_one_with_the_largest_amount_stands_for_the_negative_prompt() -> None:
    sample = member(concepts=(0, 2, 1), weights=(0.5, 1.0, 1.0))
    assert used(started([sample], Texts(["a red knight"])), OwnRow(0, "uncond")) == [2] * 50


# --- amounts ----------------------------------------------------------------------------------------------------


def test_all_concepts_that_act_make_up_one_space() -> None:
    texts = Texts(["a red knight at dawn"], ["gore, blood", "swords"])
    (two,) = started([member(concepts=(0, 1), weights=(1.0, 1.0))], texts).rewritings[0]
    (one,) = started([member()], replace(texts, concepts=["gore, blood, swords"])).rewritings[0]
    torch.testing.assert_close(two.texts[STATES], one.texts[STATES])
    assert two.beta == pytest.approx(one.beta)


@pytest.mark.parametrize("fields", [{"weights": (0.25,)}, {"strengths": (0.25,)}, {"acting": (0.25,) * 50}])
def test_an_amount_is_how_far_a_token_moves(fields: dict[str, Any]) -> None:
    texts = Texts(["a red knight"])
    before = texts.arguments(0)[STATES]
    (whole,) = started([member()], texts).rewritings[0]
    (part,) = started([member(**fields)], texts).rewritings[0]
    torch.testing.assert_close(part.texts[STATES] - before, 0.25 * (whole.texts[STATES] - before))
    assert part.last == whole.last


def test_more_than_all_cannot_be_projected_away() -> None:
    texts = Texts(["a red knight"])
    (whole,), (more,) = (started([member(weights=(weight,))], texts).rewritings[0] for weight in (1.0, 7.0))
    assert torch.equal(more.texts[STATES], whole.texts[STATES])


def test_a_concept_outside_its_own_window_is_not_in_the_space() -> None:
    always, later = (1.0,) * 50, (0.0,) * 5 + (1.0,) * 45
    texts = Texts(["a red knight at dawn"])
    run = started(
        [member(concepts=(0, 1), weights=(1.0, 1.0), concept_acting=(always, later), **ALWAYS)], texts
    )
    given = used(run, OwnRow(0, "cond"))
    (first,) = started([member(concepts=(0,))], texts).rewritings[0]
    (both,) = started([member(concepts=(0, 1), weights=(1.0, 1.0))], texts).rewritings[0]
    assert torch.equal(given[4][STATES], first.texts[STATES])
    assert torch.equal(given[5][STATES], both.texts[STATES])
    assert not torch.equal(given[4][STATES], given[5][STATES])


@pytest.mark.parametrize(
    "fields",
    [{"weights": (0.0,)}, {"strengths": (0.0,)}, {"acting": (0.0,) * 50}, {"concepts": (), "weights": ()}],
)
def test_where_nothing_acts_nothing_is_encoded(fields: dict[str, Any]) -> None:
    run = started([member(**fields)], Texts(["a red knight"], spoilt=True))
    assert run.text_rows == {0: 0}
    assert used(run, OwnRow(0, "cond")) == used(run, OwnRow(0, "uncond")) == [None] * 50


# --- several encoders -------------------------------------------------------------------------------------------


def test_each_encoder_decides_in_its_own_columns_and_beta_is_the_mean_of_all() -> None:
    prompt, phrases = "a red knight at dawn", ["nudity", "bare skin"]
    texts = Texts([prompt], widths=(12, 10), pooled_too=True)
    (found,) = started([member()], texts).rewritings[0]
    e, cosines = doubles(texts.arguments(0)[STATES][0]), []
    for number, (of_prompt, of_phrases) in enumerate(
        zip(texts.masked(0), texts.pooled(phrases), strict=True)
    ):
        m, c = doubles(of_prompt.vectors), doubles(of_phrases.vectors)
        if of_prompt.tokens is None:
            whole = (np.eye(10) - projection(c)) @ projection(m)
            expected = doubles(texts.arguments(0)[POOLED]) @ whole.T
            np.testing.assert_allclose(doubles(found.texts[POOLED]), expected, atol=2e-6)
            continue
        columns = slice(*of_prompt.columns)
        new, triggers, own = oracle(e[:, columns], m, c, 0.01)
        np.testing.assert_allclose(doubles(found.texts[STATES][0, :, columns]), new, atol=2e-6)
        assert list(found.triggers[number]) == triggers
        cosines += own
    assert found.beta == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)


def test_a_pooled_text_stays_where_no_token_is_a_trigger() -> None:
    texts = Texts(["a red knight"], widths=(12,), pooled_too=True)
    (found,) = started([member(alpha=50.0)], texts).rewritings[0]
    assert found.triggers == ((),)
    assert torch.equal(found.texts[POOLED], texts.arguments(0)[POOLED])
    (other,) = started([member()], texts).rewritings[0]
    assert not torch.equal(other.texts[POOLED], texts.arguments(0)[POOLED])


# --- batches ----------------------------------------------------------------------------------------------------

BATCH = ("a red knight", "bare skin at dawn", "", "a red knight", "knight")


def mixed(index: int) -> GuidedSample | None:
    """Samples whose concepts, options and windows differ; the last one but one is another method's."""
    late = tuple(float(call >= 3) for call in range(50))
    made = {
        0: lambda: member(0, concepts=(0, 1), weights=(1.0, 0.5)),
        1: lambda: member(1, concepts=(2,), negative=False, alpha=0.2),
        2: lambda: member(2),
        4: lambda: member(4, acting=late, **ALWAYS),
    }
    return made[index]() if index in made else None


def texts_of(run: SAFREERun, sample: int) -> list[tuple[Any, Any]]:
    given = [used(run, OwnRow(sample, part)) for part in ("cond", "uncond")]
    return [
        (None if cond is None else cond[STATES].tolist(), uncond) for cond, uncond in zip(*given, strict=True)
    ]


def test_a_sample_is_rewritten_in_a_mixed_batch_as_it_is_alone() -> None:
    samples = [sample for index in range(len(BATCH)) if (sample := mixed(index)) is not None]
    together = started(samples, Texts(BATCH))
    assert {row.sample for call in range(50) for row in together.own_texts(schedule(50).step(call))} == {
        0,
        1,
        2,
        4,
    }
    for sample in samples:
        alone = started([replace(sample, index=0)], Texts([BATCH[sample.index]]))
        assert texts_of(alone, 0) == texts_of(together, sample.index)
        assert alone.text_rows[0] == together.text_rows[sample.index]


def test_samples_with_different_prompts_get_different_texts() -> None:
    run = started([member(0), member(1)], Texts(BATCH))
    one, other = (run.rewritings[sample][0].texts[STATES] for sample in (0, 1))
    assert not torch.equal(one, other)


def test_text_rows_are_the_prompts_tokens_and_the_phrases_of_every_encoder() -> None:
    texts = Texts(BATCH)
    assert started([member(0, concepts=(0, 2), weights=(1.0, 1.0))], texts).text_rows == {0: 3 + 2 + 3}
    assert started([member(2)], texts).text_rows == {2: 2}
    two = replace(texts, widths=(12, 10), pooled_too=True)
    assert started([member(1)], two).text_rows == {1: 2 * (4 + 2)}


def test_no_row_of_the_denoiser_is_asked_for() -> None:
    run, plan = started([member()], Texts(["a red knight"])), schedule(50)
    assert not any(run.rows(plan.step(call)) for call in range(50))


# --- precision and errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_texts_are_rewritten_in_double_precision_and_rounded_once(dtype: torch.dtype) -> None:
    prompt, phrases = "a red knight at dawn", ["nudity", "bare skin"]
    texts = Texts([prompt], dtype=dtype)
    (found,) = started([member()], texts).rewritings[0]
    (of_prompt,), (of_phrases,) = texts.masked(0), texts.pooled(phrases)
    before = texts.arguments(0)[STATES][0]
    new, triggers, _ = oracle(doubles(before), doubles(of_prompt.vectors), doubles(of_phrases.vectors), 0.01)
    after = found.texts[STATES][0]
    assert after.dtype == dtype
    assert list(found.triggers[0]) == triggers
    torch.testing.assert_close(after, torch.tensor(new).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    kept = [position for position in range(LENGTH) if position not in triggers]
    assert torch.equal(after[kept], before[kept])


def test_the_texts_of_the_call_are_not_edited() -> None:
    class Once(Texts):
        given: ClassVar[Mapping[str, Tensor]] = {STATES: draw("once", 1, LENGTH, 12)}

        def arguments(self, sample: int) -> Mapping[str, Tensor]:
            return self.given

    before = Once.given[STATES].clone()
    started([member()], Once(["a red knight"]))
    assert torch.equal(Once.given[STATES], before)


def test_nan_of_the_text_encoder_is_an_error() -> None:
    with pytest.raises(GuidanceError, match="NaN or Inf for the prompt or a concept"):
        started([member()], Texts(["a red knight"], spoilt=True))


def test_without_prompts_it_does_not_start() -> None:
    with pytest.raises(GuidanceError, match="safree rewrites prompts, and here they are not known"):
        SAFREE().start([member()], schedule(50))


def test_a_sample_that_acts_at_another_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="acts at 5 of 7 steps"):
        started([member(calls=5)], Texts(["a red knight"]), 7)


(KIND,) = (kind for kind in KINDS if kind.name == "safree")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -2}, "alpha"),
        ({"up_t": -1}, "up_t"),
        ({"calls": 2.5}, "calls"),
        ({"negative": "yes"}, "negative"),
        ({"beta": 1}, "beta"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        checked_options(KIND, options)


def test_the_defaults_are_those_of_the_authors_for_nudity() -> None:
    assert checked_options(KIND, {}).model_dump() == {
        "alpha": 0.01,
        "up_t": 10.0,
        "steepness": 2.5,
        "midpoint": 5.333,
        "calls": 50,
        "negative": True,
    }


def test_it_says_what_it_is() -> None:
    assert isinstance(SAFREE(), Guidance)
    assert isinstance(SAFREE(), ReadsPrompts)
    assert isinstance(started([], Texts([])), SwapsTexts)


# --- the contract of guidance methods ---------------------------------------------------------------------------

PROMPTS = {"knight": "a red knight", "cat": "bare", "crowd": "bare skin at dawn", "boat": "a red red knight"}


class TestSAFREEContract(GuidanceContract):
    """The contract, with a denoiser whose conditional prediction moves as the mean of its text does."""

    contribution = KIND

    def start(
        self, method: Any, batch: Sequence[str], own: Sequence[str], plan: Schedule, **fields: Any
    ) -> Any:
        options = self.checked_options.model_dump()
        samples = guided_samples(self.subject.name, options, own, len(plan), batch=batch, **fields)
        return method.start_with_prompts(samples, plan, self._texts(batch))

    def walk(
        self,
        method: Guidance,
        batch: Sequence[str] = ("knight", "cat", "crowd", "boat"),
        own: Sequence[str] = ("knight", "crowd", "boat"),
        *,
        place: Place = Place(),  # noqa: B008  (frozen)
        plan: Schedule | None = None,
        spoil: Any = None,
        **fields: Any,
    ) -> list[Combined]:
        plan = plan or schedule(self.steps)
        run = self.start(method, batch, own, plan, **fields)
        made = [self._moved(run, plan.step(index), tuple(batch), place) for index in range(len(plan))]
        return [each for each in made if each is not None]

    def _moved(
        self,
        run: SAFREERun,
        step: Step,
        batch: tuple[str, ...],
        place: Place = Place(),  # noqa: B008  (frozen)
    ) -> Combined | None:
        """One call; None where no text is another."""
        if not (swapped := run.own_texts(step)):
            return None
        texts, seen = self._texts(batch), predictions(step, (), batch, place.shape, place.dtype, place.device)
        cond = seen.cond.clone()
        for (sample, _), text in swapped.items():
            if not isinstance(text, int):
                cond[sample] += (text[STATES] - texts.arguments(sample)[STATES]).mean().to(cond)
        applied = tuple(dict.fromkeys(sample for sample, _ in swapped))
        return Combined(step, seen, Guided(cond, run.combine(step, seen).terms, applied), batch)

    def test_two_runs_at_once_do_not_disturb_each_other(self) -> None:
        plan, method = schedule(self.steps), self.make()
        batches = (("knight", "boat"), ("cat", "knight", "crowd"))
        runs = [self.start(method, batch, batch, plan) for batch in batches]
        steps = [plan.step(index) for index in range(self.steps)]
        found = [
            [self._moved(run, step, batch) for run, batch in zip(runs, batches, strict=True)]
            for step in steps
        ]
        for batch, mine in zip(batches, zip(*found, strict=True), strict=True):
            alone = self.walk(self.make(), batch, batch)
            require_same_run(
                [each for each in mine if each is not None], alone, "is another beside a second run"
            )

    def test_rows_are_of_its_own_samples_and_their_concepts(self) -> None:
        plan = schedule(self.steps)
        run = self.start(self.make(), ("knight", "cat"), ("knight",), plan)
        texts = [run.own_texts(plan.step(index)) for index in range(self.steps)]
        assert {row.sample for each in texts for row in each} == {0}

    @staticmethod
    def _texts(batch: Sequence[str]) -> PromptTexts:
        return Texts([PROMPTS[name] for name in batch])


def test_phrases_are_the_texts_between_commas() -> None:
    assert terms_of("nudity, bare skin") == ("nudity", "bare skin")
    asked: list[Sequence[str]] = []

    class Listening(Texts):
        def pooled(self, texts: Sequence[str]) -> tuple[TextSpace, ...]:
            asked.append(tuple(texts))
            return super().pooled(texts)

    started([member(concepts=(0, 1), weights=(1.0, 1.0))], Listening(["a red knight"]))
    assert asked == [("nudity", "bare skin"), ("gore",)]
