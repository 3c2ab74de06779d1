"""A prompt filter that looks for terms of a list, whatever letters they are written with.

A term is found as a whole word, in capitals or small letters, in any compatible form, with characters in between that nobody
sees, and with letters that only look like its own. It is found nowhere else: what means the same in other words is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final, Self

from pydantic import Field, model_validator

from sldcore import __version__
from sldcore.contributions import PromptFilterKind
from sldcore.documents import Strict, read_text
from sldcore.errors import ConfigurationError
from sldcore.filters.base import PromptContext
from sldcore.filters.lookalikes import folded, skeleton, without_digits, without_unseen, words
from sldcore.filters.term_index import TermIndex
from sldcore.types import Verdict

NAME: Final = "prompt-terms"
SHOWN: Final = 5
"""How many of the terms that were found a reason names."""


class TermOptions(Strict):
    """Which terms are looked for, and how."""

    terms: str = Field(
        default="", description="terms with commas between them; 'kill*' is every word that starts so"
    )
    file: str | None = Field(
        default=None, description="a file with one term per line; lines that start with # are left out"
    )
    lookalikes: bool = Field(
        default=True, description="also find terms in letters that only look like theirs, and without accents"
    )
    leetspeak: bool = Field(default=False, description="also find terms with digits and signs for letters")
    letters_apart: bool = Field(
        default=False, description="also find terms whose letters are spaced, such as k i l l"
    )
    category: str = Field(default="terms", min_length=1, description="what the score is called")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.terms.strip() and self.file is None:
            raise ValueError("give 'terms' (with commas) or 'file' (one term per line)")
        return self


class PromptTerms:
    """Flags prompts that hold a term of its list."""

    name, version = NAME, __version__

    def __init__(self, options: TermOptions) -> None:
        self._terms = read_terms(options)
        self._category = options.category
        self._digest = sha256("\n".join(self._terms).encode()).hexdigest()[:16]
        forms = [folded]
        if options.lookalikes or options.leetspeak:
            forms.append(skeleton)
        if options.leetspeak:
            forms.append(_leet)
        self._indexes = [(form, TermIndex(map(form, self._terms), options.letters_apart)) for form in forms]

    def review(self, prompts: Sequence[str], contexts: Sequence[PromptContext]) -> list[Verdict]:
        """One verdict per prompt.

        Raises:
            TypeError: a prompt is not a text.
        """
        return [self._verdict(prompt) for prompt in prompts]

    def _verdict(self, prompt: str) -> Verdict:
        found = self._found(prompt)
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        named = ", ".join(f"'{term}'" for term in found[:SHOWN])
        return Verdict(
            filter=self.name,
            version=self.version,
            flagged=bool(found),
            scores={self._category: float(bool(found))},
            thresholds={self._category: 0.5},
            reason=f"the prompt holds {named}{more}" if found else "",
            weights=self._digest,
        )

    def _found(self, prompt: str) -> list[str]:
        """The terms that a prompt holds, in the order of the list."""
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt must be a text, got {prompt!r:.80}")
        # What nobody sees may stand inside a word or between two.
        texts = dict.fromkeys((without_unseen(prompt), without_unseen(prompt, " ")))
        numbers = {
            number for text in texts for form, index in self._indexes for number in index.found(form(text))
        }
        return [self._terms[number] for number in sorted(numbers)]


def read_terms(options: TermOptions) -> tuple[str, ...]:
    """The terms of the options and of the file that they name, each once.

    Raises:
        ConfigurationError: the file cannot be read, holds nothing, or a term has no letters.
    """
    terms = [term.strip() for term in options.terms.split(",")]
    if options.file is not None:
        lines = [line.strip() for line in read_text(options.file).splitlines()]
        listed_there = [line for line in lines if line and not line.startswith("#")]
        if not listed_there:
            raise ConfigurationError(f"{options.file} holds no terms; write one on each line")
        terms += listed_there
    wanted = tuple(dict.fromkeys(without_unseen(term) for term in terms if term))
    for term in wanted:
        if not all(words(form(term)) for form in (folded, skeleton)):
            raise ConfigurationError(
                f"'{term}' is no term of {NAME}: it has neither letters nor digits; leave it out"
            )
    return wanted


def _leet(text: str) -> str:
    return without_digits(skeleton(text))


KIND: Final = PromptFilterKind(
    name=NAME,
    description="terms of a list, in whatever letters they are written",
    options=TermOptions,
    create=PromptTerms,
)
"""A list of terms as a filter of prompts."""
