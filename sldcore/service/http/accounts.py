"""Accounts of pictures and reviews in words: why something was withheld or flagged, as a client may read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def reason_of(account: Mapping[str, Any], operator: bool) -> str | None:
    """Why a picture was not simply shown: the first error, or what was found; None if there is nothing to say.

    What an error says in its own words, which may name files, is for operators.
    """
    errors = account.get("errors") or ()
    if errors:
        return failure_words(errors[0], operator)
    flagged = [each for each in account.get("verdicts") or () if each["flagged"] and not each["shadow"]]
    return "flagged for " + ", and ".join(map(_found, flagged)) if flagged else None


def failure_words(failure: Mapping[str, Any], operator: bool) -> str:
    """What failed; for operators also how."""
    words = f"{failure['source']} failed"
    return f"{words}: {failure['error']}" if operator else words


def categories_of(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """For what a filter flagged: categories that reach their threshold, the highest first; its name if it has none."""
    if not verdict["flagged"]:
        return ()
    scores, thresholds = verdict["scores"], verdict["thresholds"]
    above = [name for name, limit in thresholds.items() if (scores.get(name) or 0.0) >= (limit or 0.0)]
    return tuple(sorted(above, key=lambda name: -(scores.get(name) or 0.0))) or (verdict["filter"],)


def _found(verdict: Mapping[str, Any]) -> str:
    return f"{', '.join(categories_of(verdict))} by {verdict['filter']}"
