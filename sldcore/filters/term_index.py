"""Finding many terms in a text at once, word by word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from sldcore.filters.lookalikes import words

APART: Final = 3
"""Fewest letters of a term that is looked for in spaced letters; of shorter ones there are too many by chance."""

_UNBROKEN: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
"""Letters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, Chinese and Japanese."""


class _Starts:
    """What texts may start with."""

    def __init__(self) -> None:
        self._numbers: dict[str, list[int]] = {}
        self._lengths: set[int] = set()

    def add(self, start: str, number: int) -> None:
        self._numbers.setdefault(start, []).append(number)
        self._lengths.add(len(start))

    def of(self, text: str, place: int) -> Iterator[int]:
        """Numbers of what stands in the text from a place on."""
        for length in self._lengths:
            yield from self._numbers.get(text[place : place + length], ())


class TermIndex:
    """Terms by their first words, so that a long list takes no longer than a short one.

    Terms and texts are compared as they are: bring both into the same form before. A term is a run of whole words; with ``*``
    at its end, its last word may go on. Terms in scripts without spaces are found inside words too.

    Args:
        terms: Each with at least one letter or digit.
        apart: Also find terms whose letters stand alone, as in ``k i l l``.
    """

    def __init__(self, terms: Iterable[str], apart: bool = False) -> None:
        self._whole: dict[str, list[tuple[list[str], bool, int]]] = {}
        self._starts = _Starts()
        self._inside: list[tuple[str, int]] = []
        self._apart = _Starts()
        for number, term in enumerate(terms):
            self._add(words(term), term.rstrip().endswith("*"), number)
            letters = "".join(words(term))
            if apart and len(letters) >= APART:
                self._apart.add(letters, number)

    def _add(self, parts: list[str], open_ended: bool, number: int) -> None:
        if _UNBROKEN.match(parts[0]) or _UNBROKEN.match(parts[-1][-1]):
            self._inside.append((" ".join(parts), number))
        elif open_ended and len(parts) == 1:
            self._starts.add(parts[0], number)
        else:
            self._whole.setdefault(parts[0], []).append((parts, open_ended, number))

    def found(self, text: str) -> set[int]:
        """Numbers of the terms that the text holds, counted from 0."""
        parts = words(text)
        joined = " ".join(parts)
        numbers = {number for term, number in self._inside if term in joined}
        for place, word in enumerate(parts):
            for term, open_ended, number in self._whole.get(word, ()):
                if _at(parts, place, term, open_ended):
                    numbers.add(number)
        for word in set(parts):
            numbers.update(self._starts.of(word, 0))
        for run in _lone_letters(parts):
            numbers.update(number for start in range(len(run)) for number in self._apart.of(run, start))
        return numbers


def _at(parts: list[str], place: int, term: list[str], open_ended: bool) -> bool:
    """Whether the words of a term stand at a place of the text."""
    there = parts[place : place + len(term)]
    if there == term:
        return True
    return (
        open_ended and len(there) == len(term) and there[:-1] == term[:-1] and there[-1].startswith(term[-1])
    )


def _lone_letters(parts: list[str]) -> Iterator[str]:
    """Runs of words of one letter each, put together."""
    for run in re.finditer(r"(?:(?<!\S)\S )+\S(?!\S)", " ".join(parts)):
        yield run[0].replace(" ", "")
