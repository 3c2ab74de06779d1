"""Prompts and paths kept out of what leaves the worker in words: its log, and messages to clients."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

STAND_IN: Final = "[prompt]"
START: Final = 16
"""Characters of a prompt's beginning by which a quotation of a part of it is found."""
SHORTEST: Final = 4
_PATH: Final = re.compile(r"(?<![\w/.])(?:/|~/|[A-Za-z]:\\)[^\s'\",;:()]+")


def without_prompts(text: str, prompts: Sequence[str]) -> str:
    """``text`` without the prompts, and without quotations that begin like one of them and are cut off.

    Of prompts that are shorter than a word only quoted ones are found: a letter in a message tells nothing.
    """
    for prompt in sorted(set(prompts), key=len, reverse=True):
        if len(prompt) >= SHORTEST:
            text = _without(text, (prompt, repr(prompt)[1:-1]))
        elif prompt:
            text = re.sub(rf"""(['"]){re.escape(prompt)}\1""", STAND_IN, text)
    return text


def for_clients(text: str, prompts: Sequence[str]) -> str:
    """A message without prompts and without paths of this machine."""
    return _PATH.sub("[path]", without_prompts(text, prompts))


def traceback_text(error: BaseException, prompts: Sequence[str]) -> str:
    """The traceback of an error and of its causes, without prompts."""
    return without_prompts("".join(traceback.format_exception(error)), prompts)


@contextmanager
def prompts_left_out(prompts: Sequence[str]) -> Iterator[None]:
    """Keep the prompts out of what the engine logs meanwhile: it quotes what other people's filters say of them."""

    def rewrite(record: logging.LogRecord) -> bool:
        record.msg, record.args = without_prompts(record.getMessage(), prompts), ()
        return True

    logger = logging.getLogger("sldcore")
    logger.addFilter(rewrite)
    try:
        yield
    finally:
        logger.removeFilter(rewrite)


def _without(text: str, forms: Sequence[str]) -> str:
    """``text`` without what begins as one of ``forms`` does, as far as it goes on like one of them."""
    begin = re.compile("|".join(re.escape(form[:START]) for form in forms))
    kept, position = [], 0
    while match := begin.search(text, position):
        kept += [text[position : match.start()], STAND_IN]
        position = max(match.end(), *(match.start() + _shared(text, match.start(), form) for form in forms))
    return "".join([*kept, text[position:]])


def _shared(text: str, start: int, form: str) -> int:
    """How many characters of ``form`` stand in ``text`` from ``start`` on."""
    length = 0
    while length < len(form) and text[start + length : start + length + 1] == form[length]:
        length += 1
    return length
