"""Texts and pictures of clients under a policy's filters: what cannot be reviewed is never 'not flagged'."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from service_hosts import GO_ON, hosting, job, pictures, png, policy, run

from sldcore import SafetyPolicy
from sldcore.filters.file_review import FileReview
from sldcore.service.hosting.engine_host import EngineHost
from sldcore.service.jobs import Answer, Failed, ReviewAnswer, ReviewJob

TERMS = {"use": "prompt-terms", "options": {"terms": "dagger, poison", "category": "weapons"}}
GLYPHS = {"use": "playground-glyphs"}
WHITE = png(Image.new("RGB", (64, 64), "white"))


@pytest.fixture(scope="module")
def host() -> Iterator[EngineHost]:
    with hosting() as made:
        yield made


@pytest.fixture(scope="module")
def glyph(host: EngineHost) -> bytes:
    """A picture of the playground with a glyph."""
    answers = pictures(run(host, *(job("a red clown on a meadow", seed, id=str(seed)) for seed in (0, 2, 4))))
    review = ReviewJob("r", "playground", policy(filters=(GLYPHS,)))
    found = [each.png for each in answers if said(host, review, picture=each.png).account["flagged"]]
    assert found[0] is not None
    return found[0]


def text(own: SafetyPolicy, words: str = "a dagger in the dark", name: str = "t") -> ReviewJob:
    return ReviewJob(name, "playground", own, text=words)


def picture(own: SafetyPolicy, content: bytes = WHITE, name: str = "p") -> ReviewJob:
    return ReviewJob(name, "playground", own, picture=content)


def said(host: EngineHost, review: ReviewJob, **fields: Any) -> ReviewAnswer:
    given = ReviewJob(review.id, review.model, review.policy, **fields) if fields else review
    (answer,) = run(host, given)
    assert isinstance(answer, ReviewAnswer), answer
    return answer


def test_a_text_is_reviewed_by_the_prompt_filters(host: EngineHost) -> None:
    own = policy(prompt_filters=(TERMS,), filters=("raises",))
    found, harmless = run(host, text(own), text(own, "a house", "h"))
    assert isinstance(found, ReviewAnswer) and isinstance(harmless, ReviewAnswer)
    assert found.account["flagged"] and found.account["action"] == "black"
    assert found.account["categories"] == ["weapons"] and found.account["scores"] == {"weapons": 1.0}
    assert not harmless.account["flagged"] and harmless.account["action"] == "none"
    assert harmless.account["categories"] == [] and harmless.account["scores"] == {"weapons": 0.0}
    assert found.provenance["providers"]["prompt filter prompt-terms"].startswith("sldcore")
    assert found.timings["review"] > 0


def test_a_prompt_filter_that_compares_with_concepts_has_the_models_encoder(host: EngineHost) -> None:
    own = policy("max", prompt_filters=({"use": "prompt-similarity", "options": {"threshold": 0.7}},))
    assert set(said(host, text(own, "blood and weapons")).account["scores"])


def test_a_picture_is_reviewed_as_the_same_file_is(host: EngineHost, glyph: bytes, tmp_path: Path) -> None:
    own = policy(filters=({**GLYPHS, "on_flag": "blur"},))
    answer = said(host, picture(own, glyph))
    (tmp_path / "picture.png").write_bytes(glyph)
    (as_file,) = FileReview(own).files([tmp_path / "picture.png"])
    assert as_file.report.flagged
    assert answer.account["flagged"] and answer.account["action"] == as_file.report.action == "blur"
    assert answer.account["categories"] == list(as_file.categories)
    assert answer.account["scores"] == pytest.approx(dict(as_file.report.verdicts[0].scores), abs=1e-6)


def test_every_frame_is_looked_at(host: EngineHost, glyph: bytes) -> None:
    own = policy(filters=(GLYPHS,))
    frames = [Image.new("RGB", (64, 64), "white"), Image.open(BytesIO(glyph)).convert("RGB")]
    buffer = BytesIO()
    frames[0].save(buffer, format="WEBP", save_all=True, append_images=frames[1:], lossless=True)
    answer = said(host, picture(own, buffer.getvalue()))
    assert answer.account["flagged"] and "frame 2 of 2" in answer.account["verdicts"][0]["reason"]
    assert not said(host, picture(own)).account["flagged"]


@pytest.mark.parametrize(
    "job_", [text(policy(filters=("clean",))), picture(policy(prompt_filters=("clean",)))]
)
def test_a_policy_without_filters_for_the_input_is_invalid(host: EngineHost, job_: ReviewJob) -> None:
    (failed,) = run(host, job_)
    assert isinstance(failed, Failed) and failed.reason == "invalid"
    assert f"no filters for {'texts' if job_.text else 'pictures'}" in failed.message


@pytest.mark.parametrize("on_error", ["block", "raise", "allow"])
def test_a_filter_that_fails_is_an_error_of_its_own_review(
    host: EngineHost, on_error: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    use = {"use": "raises", "on_error": on_error}
    answers = run(
        host,
        text(policy(prompt_filters=(use,)), "a secret word"),
        picture(policy(filters=(use, "clean"))),
        picture(policy(filters=("clean",)), name="other"),
    )
    for answer in answers[:2]:
        assert isinstance(answer, ReviewAnswer)
        assert answer.account["action"] == "block" and answer.account["flagged"]
        assert answer.account["errors"][0]["source"] == "raises"
    assert isinstance(answers[2], ReviewAnswer) and not answers[2].account["flagged"]
    assert "secret word" not in caplog.text


def test_a_filter_that_hangs_is_given_up_and_the_next_request_fails_at_once(host: EngineHost) -> None:
    hanging = {"use": "hangs", "timeout": 0.05}
    patient = {"use": "hangs", "timeout": 600}
    try:
        first = said(host, picture(policy(filters=(hanging,))))
        second = said(host, picture(policy(filters=(patient,))))
        (made,) = pictures(run(host, job(own=policy(filters=(patient,)))))
    finally:
        GO_ON.set()
    assert "no answer within 0.05 s" in first.account["errors"][0]["error"]
    for account in (second.account, made.account):
        assert "has not come back" in account["errors"][0]["error"]
        assert account["action"] == "block"
    assert second.account["flagged"]


@pytest.mark.parametrize("content", [b"", b"GIF89a", WHITE[:60]])
def test_a_picture_that_cannot_be_decoded_is_an_error(host: EngineHost, content: bytes) -> None:
    account = said(host, picture(policy(filters=("clean",)), content)).account
    assert account["action"] == "block" and account["flagged"]
    assert account["errors"][0]["source"] == "picture file" and "0x" not in account["errors"][0]["error"]


def test_a_cancelled_review_is_not_made(host: EngineHost) -> None:
    answers: list[Answer] = host.run([text(policy(prompt_filters=(TERMS,)))], print, lambda: {"t"})
    assert isinstance(answers[0], Failed) and answers[0].reason == "cancelled"
