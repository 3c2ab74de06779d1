"""SAFREE, Yoon et al., ICLR 2025, arXiv 2410.12761: token projection and the self-validating filter.

With c_1 ... c_k the vectors of the concept's phrases, m_i that of the prompt with its token i masked, and e_i the prompt's
states that the denoiser is given, before the first step and for each sample:

    P_C = C (C^T C)^+ C^T,   P_I = M (M^T M)^+ M^T       projections on the spaces of the phrases and of the prompt
    d_i = ||(I - P_C) m_i||                              what is left of the prompt without token i, beside the concept
    trigger_i:  d_i >= (1 + alpha) * mean_{j != i} d_j   without it the prompt is further from the concept
    p_i  = (I - P_C) P_I e_i
    e_i' = p_i if trigger_i else e_i                     begin token, end token and padding stay as they are
    beta = 1 - mean_i cos(p_i, e_i)                      over begin token, all own tokens and end token
    t'   = round(up_t * sigmoid(2 k (10 beta - t0)))     for how long the rewritten text is used

The denoiser is given e' in the calls 0 to t', as in the authors' code, and e afterwards. No row is added. The text encoder
evaluates one row for each token of a prompt and one for each phrase, once: :attr:`SAFREERun.text_rows`.

As in the authors' code, the concept also stands in place of the negative prompt, in every call (option ``negative``). A part
of what SAFREE is known for is the effect of that alone, and a negative prompt that the user gives has no effect meanwhile.
Set it to false for the projection alone.

Where this is not the paper's:

* Latent re-attention (the Fourier part) is not built. It filters features inside the network's blocks against those of a
  further row: other code for each network, and a third more time.
* up_t is meant for 50 calls and grows and shrinks with a run's own; ``calls`` says otherwise. Calls count from the first at
  which a concept acts on the sample.
* Phrases are the concepts' texts, divided at commas. All concepts that act at a call make up one C. The largest of their
  amounts (weight, strength and windows), 1 at most, is how far e goes to e'. A negative prompt has no amount: it is the
  concept with the largest one, the first of equals.
* A prompt of one token has nothing to compare that with; it counts as a trigger, as it comes to in the authors' code.
* Directions of C and M that are below the text encoder's precision are left out: phrases may repeat each other.
* With several text encoders (SDXL) each has its own C, M and triggers; beta is the mean over the tokens of all. A pooled text
  is rewritten by the same projection where any token is a trigger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import tanh
from typing import Final

import torch
from torch import Tensor

from sldcore import __version__
from sldcore.errors import GuidanceError
from sldcore.families.base import TextSpace
from sldcore.guidance.base import GuidanceRun, GuidedSample, OwnText, PromptTexts
from sldcore.splitting import terms_of
from sldcore.types import Guided, OwnRow, Predictions, Row, Schedule, Step

SMALLEST: Final = 1e-5
"""Singular values below this part of the largest are not told from rounding, even in float32."""


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What became of one sample's prompt.

    ``texts`` are the text arguments [1, ...] to use. ``triggers`` are the positions of the rewritten tokens, for each text
    encoder. ``last`` is t', the last call at which they are used.
    """

    texts: Mapping[str, Tensor]
    triggers: tuple[tuple[int, ...], ...]
    beta: float
    last: int


class SAFREE:
    """The method; options ``alpha``, ``up_t``, ``steepness`` (k), ``midpoint`` (t0), ``calls``, ``negative``."""

    name = "safree"
    version = __version__

    def start(self, samples: Sequence[GuidedSample], schedule: Schedule) -> GuidanceRun:
        """Never: prompts have to be known.

        Raises:
            GuidanceError: always, if there is a sample.
        """
        if samples:
            raise GuidanceError(
                "safree rewrites prompts, and here they are not known; use guard() or SafetyEngine with a classic pipeline, "
                "or another guidance method"
            )
        return SAFREERun([])

    def start_with_prompts(
        self, samples: Sequence[GuidedSample], schedule: Schedule, prompts: PromptTexts
    ) -> GuidanceRun:
        """Begin a run: encode what is needed and decide on every token.

        Raises:
            GuidanceError: the family cannot mask tokens, a prompt or a concept is an embedding, or the text encoder gives NaN.
        """
        return SAFREERun([_Member(sample, prompts, len(schedule)) for sample in samples])


class SAFREERun:
    """A run in which everything is decided but from which call on the rewritten texts are counted.

    Attributes:
        rewritings: For each sample what was made of its prompt: once, unless concepts or windows differ from call to call.
        text_rows: For each sample the rows of text encoders that it needed; samples that share texts share rows.
    """

    def __init__(self, members: Sequence[_Member]) -> None:
        self._plans = {member.index: member.plan() for member in members}
        self._first: dict[int, int] = {}
        self.rewritings = {member.index: tuple(member.made.values()) for member in members}
        self.text_rows = {member.index: member.text_rows for member in members}

    def own_texts(self, step: Step) -> Mapping[OwnRow, OwnText]:
        """The rewritten texts until t', the same objects at every step, and concepts in place of negative prompts."""
        texts: dict[OwnRow, OwnText] = {}
        for sample, plan in self._plans.items():
            planned = plan[step.index]
            if planned is None:
                continue
            # A gate may start the run in the middle of the loop.
            first = self._first.setdefault(sample, step.index)
            if step.index - first <= planned.rewriting.last:
                texts[OwnRow(sample, "cond")] = planned.rewriting.texts
            if planned.negative is not None:
                texts[OwnRow(sample, "uncond")] = planned.negative
        return texts

    def rows(self, step: Step) -> tuple[Row, ...]:
        """None."""
        return ()

    def combine(self, step: Step, predictions: Predictions) -> Guided:
        """The predictions are right as they are."""
        return Guided(predictions.cond, predictions.concepts, ())


@dataclass(frozen=True, slots=True)
class _Planned:
    """One call of a sample: what was made of the prompt, and the concept in place of the negative prompt."""

    rewriting: Rewriting
    negative: int | None


class _Member:
    """One sample while its run begins."""

    def __init__(self, sample: GuidedSample, prompts: PromptTexts, calls: int) -> None:
        if len(sample.acting) != calls:
            raise ValueError(f"sample {sample.index} acts at {len(sample.acting)} of {calls} steps")
        self.index = sample.index
        self.made: dict[tuple[tuple[int, ...], float], Rewriting] = {}
        self.text_rows = 0
        self._sample = sample
        self._options = sample.spec.options
        self._prompts = prompts
        self._calls = calls
        self._prompt: tuple[TextSpace, ...] | None = None
        self._phrases: dict[int, tuple[TextSpace, ...]] = {}

    def plan(self) -> list[_Planned | None]:
        """What to do at each call; None where no concept acts."""
        return [self._planned(call) for call in range(self._calls)]

    def _planned(self, call: int) -> _Planned | None:
        amounts, concepts = self._sample.amounts(call), self._sample.concepts
        largest = max(amounts, default=0.0)
        if largest <= 0:
            return None
        acting = tuple(k for k, amount in zip(concepts, amounts, strict=True) if amount > 0)
        negative = concepts[amounts.index(largest)] if self._options["negative"] else None
        return _Planned(self._rewriting(acting, min(largest, 1.0)), negative)

    def _rewriting(self, concepts: tuple[int, ...], amount: float) -> Rewriting:
        key = (concepts, amount)
        if key not in self.made:
            self.made[key] = self._make(concepts, amount)
        return self.made[key]

    def _make(self, concepts: tuple[int, ...], amount: float) -> Rewriting:
        masked = self._masked()
        phrases = [self._phrases_of(concept) for concept in concepts]
        texts = {name: value.clone() for name, value in self._prompts.arguments(self._sample.index).items()}
        triggers, cosines, pooled = [], [], []
        for number, space in enumerate(masked):
            own = _exact(space.vectors)
            noise = _noise(space.vectors)
            concept = basis(torch.cat([_exact(each[number].vectors) for each in phrases]), noise)
            prompt = basis(own, noise)
            if space.tokens is None:
                pooled.append((space, concept, prompt))
                continue
            e = _exact(texts[space.argument][0, :, slice(*space.columns)])  # [L, D]
            p = projected(e, concept, prompt)
            first, behind = space.tokens
            cosines.append(torch.cosine_similarity(e, p)[first - 1 : behind + 1])
            chosen = [first + int(i) for i in are_triggers(own, concept, self._number("alpha")).nonzero()]
            e[chosen] += amount * (p[chosen] - e[chosen])
            texts[space.argument][0, :, slice(*space.columns)] = e.to(texts[space.argument])
            triggers.append(tuple(chosen))
        for space, concept, prompt in pooled if any(triggers) else ():
            e = _exact(texts[space.argument][:, slice(*space.columns)])
            e += amount * (projected(e, concept, prompt) - e)
            texts[space.argument][:, slice(*space.columns)] = e.to(texts[space.argument])
        beta = 1 - float(torch.cat(cosines).mean())
        return Rewriting(texts, tuple(triggers), beta, self._last(beta))

    def _last(self, beta: float) -> int:
        """t', for this run's number of calls."""
        per = self._number("calls") or self._calls
        x = 2 * self._number("steepness") * (10 * beta - self._number("midpoint"))
        return round(self._number("up_t") * self._calls / per * (1 + tanh(x / 2)) / 2)

    def _masked(self) -> tuple[TextSpace, ...]:
        """The spaces of M."""
        if self._prompt is None:
            self._prompt = self._counted(self._prompts.masked(self._sample.index))
        return self._prompt

    def _phrases_of(self, concept: int) -> tuple[TextSpace, ...]:
        """The spaces of C, for one concept."""
        if concept not in self._phrases:
            phrases = terms_of(self._prompts.concept(concept))
            self._phrases[concept] = self._counted(self._prompts.pooled(phrases))
        return self._phrases[concept]

    def _counted(self, spaces: tuple[TextSpace, ...]) -> tuple[TextSpace, ...]:
        """Spaces that were encoded for the sample; a pooled vector comes with the row of its encoder."""
        if not all(bool(space.vectors.isfinite().all()) for space in spaces):
            raise GuidanceError(
                "the text encoder gives NaN or Inf for the prompt or a concept; check its weights"
            )
        self.text_rows += sum(len(space.vectors) for space in spaces if space.tokens is not None)
        return spaces

    def _number(self, option: str) -> float:
        return float(self._options[option])


def basis(vectors: Tensor, noise: float = SMALLEST) -> Tensor:
    """An orthonormal basis [D, r] of the space of ``vectors`` [n, D]: B B^T = V^T (V V^T)^+ V.

    ``noise`` is the part of the largest singular value below which a direction is not counted.
    """
    if not len(vectors):
        return vectors.new_zeros(vectors.shape[1], 0)
    u, s, _ = torch.linalg.svd(vectors.T, full_matrices=False)
    kept: Tensor = u[:, s > noise * s[0]]
    return kept


def projected(states: Tensor, concept: Tensor, prompt: Tensor) -> Tensor:
    """(I - P_C) P_I e for states [L, D], with bases of C and of M."""
    inside = states @ prompt @ prompt.T
    return inside - inside @ concept @ concept.T


def are_triggers(masked: Tensor, concept: Tensor, alpha: float) -> Tensor:
    """Which tokens are triggers, [n], from the vectors m [n, D] and a basis of C."""
    distances = torch.linalg.vector_norm(masked - masked @ concept @ concept.T, dim=1)
    count = len(distances)
    if count < 2:
        return torch.ones(count, dtype=torch.bool)
    others = (distances.sum() - distances) / (count - 1)
    return torch.ge(distances, (1 + alpha) * others)


def _exact(value: Tensor) -> Tensor:
    """On the host, in double precision, a copy."""
    return value.detach().to("cpu", torch.float64, copy=True)


def _noise(vectors: Tensor) -> float:
    return max(SMALLEST, torch.finfo(vectors.dtype).eps)
