"""What a record of a picture says, wherever it is kept: prompts as hashes, and no words that may quote one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

_VERDICT: Final = ("filter", "version", "flagged", "scores", "thresholds", "weights", "seconds", "shadow")


def now() -> str:
    """The time in UTC, to the millisecond: texts of this form sort as times do."""
    return time_text(datetime.now(UTC))


def time_text(time: datetime) -> str:
    """A time as records have it."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def prompt_hash(prompt: str, salt: bytes) -> str:
    """SHA-256 of salt and prompt; half a surrogate pair counts as what it is."""
    return sha256(salt + prompt.encode("utf-8", "surrogatepass")).hexdigest()


def account_record(account: Mapping[str, Any], *, plain: bool) -> dict[str, Any]:
    """What is recorded of a picture's or review's account (``provenance.report_document``).

    A reason may quote the prompt, so it is kept only where prompts are (``plain``); in errors the prompt is replaced.
    """
    return {
        "seed": account["seed"],
        "policy": account["policy"],
        "policy_digest": account["policy_digest"],
        "action": account["action"],
        "flagged": account["flagged"],
        "withheld": account["withheld"],
        "unreviewed": account["unreviewed"],
        "verdicts": verdict_records(account["verdicts"], plain=plain),
        "errors": [
            {**error, "error": error["error"] if plain else without_prompt(error["error"], account["prompt"])}
            for error in account["errors"]
        ],
        "attempts": account["attempts"],
        "earlier": [
            {**attempt, "verdicts": verdict_records(attempt["verdicts"], plain=plain)}
            for attempt in account["earlier"]
        ],
        "marks": account["marks"],
        "rows": account["rows"],
        "probes": account["probes"],
    }


def verdict_records(verdicts: Iterable[Mapping[str, Any]], *, plain: bool) -> list[dict[str, Any]]:
    """Verdicts without boxes, and without reasons unless prompts are ``plain``."""
    names = (*_VERDICT, "reason") if plain else _VERDICT
    return [{name: verdict[name] for name in names} for verdict in verdicts]


def without_prompt(message: str, prompt: str) -> str:
    """A message in which the prompt, also as Python or JSON would quote it, is ``[prompt]``."""
    for form in dict.fromkeys((prompt, repr(prompt)[1:-1], json.dumps(prompt)[1:-1])):
        message = message.replace(form, "[prompt]") if form else message
    return message


def review_seconds(account: Mapping[str, Any]) -> float:
    """Seconds that all reviews of a picture took, those of earlier attempts included."""
    reviews = [account["verdicts"], *(attempt["verdicts"] for attempt in account["earlier"])]
    return float(sum(verdict["seconds"] for verdicts in reviews for verdict in verdicts))
