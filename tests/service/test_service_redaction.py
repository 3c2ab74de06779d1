"""Prompts and paths kept out of messages and logs."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sldcore.service.hosting.redaction import for_clients, prompts_left_out, traceback_text, without_prompts

PROMPT = "a purple elephant with a very long\nsecond line"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"bad: {PROMPT}!", "bad: [prompt]!"),
        (f"bad: {PROMPT!r}", "bad: '[prompt]'"),
        (f"bad: {PROMPT:.30} (policy x)", "bad: [prompt] (policy x)"),
        ("bad: nothing", "bad: nothing"),
    ],
)
def test_whole_quoted_and_cut_prompts_are_left_out(text: str, left: str) -> None:
    assert without_prompts(text, ["other words", PROMPT]) == left


def test_a_letter_is_left_out_where_it_is_quoted_only() -> None:
    assert without_prompts("a cat 'a'", ["a", ""]) == "a cat [prompt]"


@given(st.text(min_size=4), st.text(), st.text())
def test_no_prompt_of_four_letters_is_left(prompt: str, before: str, after: str) -> None:
    assert prompt not in without_prompts(before + prompt + after, [prompt]).replace("[prompt]", "\0")


def test_clients_see_no_paths() -> None:
    text = "cannot read /opt/models/x.bin: no such file (~/a, C:\\x\\y), use inappropriate/violence and 1/2"
    assert for_clients(text, []) == (
        "cannot read [path]: no such file ([path], [path]), use inappropriate/violence and 1/2"
    )


def test_tracebacks_name_causes_and_no_prompt() -> None:
    try:
        try:
            raise ValueError(PROMPT)
        except ValueError as cause:
            raise RuntimeError("broken") from cause
    except RuntimeError as error:
        text = traceback_text(error, [PROMPT])
    assert "ValueError: [prompt]" in text and "RuntimeError: broken" in text and "elephant" not in text


def test_the_engines_log_is_rewritten_meanwhile_and_only_then(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("sldcore")
    with prompts_left_out([PROMPT]):
        logger.warning("%s failed over %r", "filter", PROMPT)
    logger.warning("%s", "elephant")
    assert [record.getMessage() for record in caplog.records] == ["filter failed over '[prompt]'", "elephant"]
