"""Records: what is said of pictures, reviews and refusals, and that no prompt is."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from sldcore.policy import SafetyPolicy
from sldcore.provenance import report_document
from sldcore.service.jobs import Failed, PictureAnswer, PictureJob, ReviewAnswer, ReviewJob
from sldcore.service.ledger.chain import canonical
from sldcore.service.ledger.records import (
    Wording,
    picture_record,
    refused_record,
    review_record,
    versions_digest,
)
from sldcore.types import Attempt, Failure, Report, Verdict

PROMPT = 'a "naked" knight,\nnaïve \ud800'
MEDIUM = SafetyPolicy.preset("medium")
SALTED = Wording(b"a salt that is secret")
WHERE: dict[str, Any] = {"request": "req-1", "key": "anna", "index": 2}
VERDICT = Verdict(
    "nsfw", "1.2", True, {"sexual": 0.9}, {"sexual": 0.8}, f"saw {PROMPT}", weights="ab", seconds=0.25
)
VERSIONS = {"torch": "2.9", "sldcore": "0.1"}


def job(**fields: Any) -> PictureJob:
    return PictureJob("j", "playground", PROMPT, 7, MEDIUM, 64, 64, 20, **fields)


def account(**fields: Any) -> dict[str, Any]:
    failure = Failure(
        "gore", "2", f"ValueError: cannot read {PROMPT!r}, {PROMPT}, {canonical({'p': PROMPT})}", 3, "allow"
    )
    earlier = (Attempt(7, "medium", MEDIUM.digest, (VERDICT,)),)
    report = Report(
        PROMPT, 8, "medium", MEDIUM.digest, {}, (VERDICT,), "blur", 2, (failure,), earlier=earlier
    )
    return report_document(report) | fields


def answer(**fields: Any) -> PictureAnswer:
    made_by = {"device": "cpu", "dtype": "float32", "versions": VERSIONS, "providers": {"nsfw": "pack 1.2"}}
    return PictureAnswer("j", b"png", account(), made_by, {"denoise": 1.5}, **fields)


def test_a_picture_s_record_says_what_happened() -> None:
    record = picture_record(job(), answer(), SALTED, **WHERE, partials=2)
    expected = {
        "kind": "image", "request": "req-1", "key": "anna", "index": 2, "model": "playground", "seed": 8, "policy": "medium",
        "policy_digest": MEDIUM.digest, "action": "blur", "flagged": True, "withheld": True, "attempts": 2, "partials": 2,
        "explained": False, "timings": {"review": 0.5, "denoise": 1.5}, "providers": {"nsfw": "pack 1.2"},
        "libraries": versions_digest(VERSIONS), "prompt_sha256": sha256(SALTED.salt + PROMPT.encode("utf-8", "surrogatepass")).hexdigest(),
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert record["verdicts"][0]["scores"] == {"sexual": 0.9}
    assert record["earlier"][0]["verdicts"][0]["filter"] == "nsfw"
    assert record["time"].endswith("Z")
    assert "unguided" not in record


def test_an_unguided_picture_is_recorded_with_whether_it_was_shown() -> None:
    record = picture_record(
        job(), answer(unguided=b"png", unguided_account=account(action="none")), SALTED, **WHERE
    )
    assert (record["unguided"]["shown"], record["unguided"]["action"]) == (True, "none")
    hidden = picture_record(job(), answer(unguided_account=account()), SALTED, **WHERE)
    assert hidden["unguided"]["shown"] is False


@pytest.mark.parametrize("plain", [False, True])
def test_words_of_the_prompt_are_there_only_if_asked_for(plain: bool) -> None:
    wording = Wording(b"salt", plain)
    failed = Failed("j", "failed", f"ValueError: {PROMPT!r}")
    records = [
        picture_record(job(), answer(unguided_account=account()), wording, **WHERE),
        picture_record(job(), failed, wording, **WHERE),
        review_record(
            ReviewJob("j", "playground", MEDIUM, PROMPT), ReviewAnswer("j", account()), wording, **WHERE
        ),
        review_record(ReviewJob("j", "playground", MEDIUM, PROMPT), failed, wording, **WHERE),
        refused_record("image", "forbidden", f"no: {PROMPT}", wording, request="r", key=None, prompt=PROMPT),
    ]
    assert ["naked" in canonical(record) for record in records] == [plain] * len(records)
    assert [record.get("prompt") for record in records] == [PROMPT if plain else None] * len(records)


def test_a_failed_picture_says_what_was_asked_and_why_there_is_none() -> None:
    record = picture_record(job(), Failed("j", "lost", "the worker died twice"), SALTED, **WHERE, partials=1)
    assert (record["action"], record["seed"], record["policy_digest"]) == ("failed", 7, MEDIUM.digest)
    assert (record["failed"], record["partials"]) == (
        {"reason": "lost", "message": "the worker died twice"},
        1,
    )


def test_a_reviewed_picture_is_known_by_its_salted_hash() -> None:
    asked = ReviewJob("j", "playground", MEDIUM, picture=b"a picture")
    record = review_record(asked, ReviewAnswer("j", account()), SALTED, **WHERE)
    assert record["picture_sha256"] == sha256(SALTED.salt + b"a picture").hexdigest()
    assert (record["kind"], "prompt_sha256" in record) == ("review", False)


def test_a_refused_request_has_no_index() -> None:
    record = refused_record("image", "busy", "the queue is full", SALTED, request="req-2", key="anna")
    assert (record["action"], record["index"], record["failed"]["reason"]) == ("refused", None, "busy")


def test_equal_records_have_one_text_of_ascii() -> None:
    assert canonical({"b": 1, "a": "é\n"}) == canonical({"a": "é\n", "b": 1}) == '{"a":"\\u00e9\\n","b":1}'
