"""Pictures on the service's page, on a stand-in that answers as the service does."""

from __future__ import annotations

import time

import page_server
import pytest
from page_driver import MARKS, Page

HOSTILE = '<script>document.title="owned"</script><img src=x onerror="document.title=1">'
WATCHED = """(() => { window.said = []; const watch = (id, found) => new MutationObserver(() => said.push(found()))
  .observe(document.getElementById(id), {childList: true, subtree: true, characterData: true, attributes: true});
  watch('results', () => document.querySelector('.card.waiting > label')?.textContent + '/' + document.querySelector('progress')?.value);
  watch('announcements', () => document.getElementById('announcements').textContent) })()"""

pytestmark = MARKS


def test_a_policy_says_what_it_does(page: Page) -> None:
    first = page.text("#policy-text")
    page.fill(policy="weak")

    assert first == f"Guidance and the glyph filter. {page_server.DIGEST}"
    assert page.text("#policy-description") == "A gentle push away."


def test_ctrl_and_enter_send_what_the_form_says(page: Page) -> None:
    page.fill(policy="weak", seed=41, steps=12)
    page("document.getElementById('prompt').focus()")
    page.browser.type("a red knight")
    page.browser.press("Enter", control=True)
    page.browser.wait_for("document.querySelector('.about')")

    assert page.service.requests == [
        {"prompt": "a red knight", "model": "playground", "n": 1, "size": "64x64", "steps": 12, "seed": 41, "policy": "weak",
         "stream": True, "progress": True, "explain": True, "partial_images": 2}
    ]  # fmt: skip


def test_progress_moves_is_seen_and_is_told(page: Page) -> None:
    page(WATCHED)
    page.begin("again a red knight")
    page.browser.wait_for("document.querySelector('progress')?.value === 5")
    bar = page(
        "(() => { const { max, labels } = document.querySelector('progress'); return [max, labels[0].innerText] })()"
    )
    page.browser.wait_for("document.querySelector('.about')")
    told = page("said")

    assert bar == [20, "Picture: step 5 of 20, pass 2"]
    assert "Picture: step 20 of 20/20" in told
    assert "Pass 2 runs." in told
    assert page("document.getElementById('announcements').textContent") == "1 picture finished: Shown."


def test_a_picture_of_the_way_there_is_shown_in_between(page: Page) -> None:
    page.begin("a red knight")
    page.browser.wait_for("document.querySelector('.unfinished')")
    page.browser.wait_for("document.querySelector('.about')")

    assert page("document.querySelectorAll('.unfinished').length") == 0


def test_a_card_says_what_happened(page: Page) -> None:
    page.generate("a red knight")
    rows = page(
        "[...document.querySelectorAll('.verdicts tbody tr')].map((row) => row.innerText.split(/\\t|\\n/).join('|'))"
    )

    assert page.text(".fate") == "Shown"
    assert page.text(".facts").split("\n") == [
        "Policy", f"medium {page_server.DIGEST}", "Seed", "7", "Attempts", "1", "Denoiser rows", "260 (unguided: 40)",
    ]  # fmt: skip
    assert rows == [
        "playground-glyphs 1.0 · not flagged · 12 ms",
        "glyph|0.04|0.5|below",
        "other|< 0.001|0.9|below",
    ]
    assert page("document.querySelectorAll('.veil').length") == 1  # the unguided picture's


@pytest.mark.parametrize("what", ["flagged", "unreviewed"])
def test_what_should_not_be_seen_by_chance_is_blurred_until_asked_for(page: Page, what: str) -> None:
    page.generate(f"a knight, {what}")
    name, states = page.text(".veil"), []
    for _ in range(3):
        states.append((page.filter_of(".layer"), page("document.querySelector('.veil').ariaPressed")))
        page.click(".veil")

    assert name == f"Unblur {what}"
    assert [pressed for _, pressed in states] == ["false", "true", "false"]
    assert ["blur" in style for style, _ in states] == [True, False, True]


def test_a_blurred_picture_can_be_uncovered_by_keys(page: Page) -> None:
    page.generate("a flagged knight")
    page("document.querySelector('.veil').focus()")
    page.browser.press("Enter")
    shown = page.filter_of(".layer")
    page.browser.press(" ")

    assert shown == "none"
    assert "blur" in page.filter_of(".layer")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a withheld knight", "Withheld\nplayground-glyphs: glyph 0.97 is at least 0.5"),
        ("a dropped knight", "Withheld\ndropped after 4 attempts"),
    ],
)
def test_a_withheld_picture_gives_way_to_the_reason(page: Page, prompt: str, words: str) -> None:
    page.generate(prompt)

    assert page.text(".absent").replace("\n\n", "\n") == words
    assert page("document.querySelectorAll('.card img').length") == 0
    assert "flagged" in page.text(".verdicts")


def test_what_the_policy_shows_in_its_place_is_shown(page: Page) -> None:
    page.generate("a blurred knight")

    assert page.text(".fate") == "Flagged, shown pixelated"
    assert page(
        "[document.querySelectorAll('.stage img').length, document.querySelectorAll('.veil').length]"
    ) == [2, 0]


def test_three_pictures_keep_their_places(page: Page) -> None:
    page.generate("three knights", n=3)
    names = page(
        "[...document.querySelectorAll('.card')].map((card) => card.ariaLabel + ': ' + card.querySelector('h3').innerText)"
    )

    assert names == ["Picture 1 of 3: Flagged, shown", "Picture 2 of 3: Withheld", "Picture 3 of 3: Shown"]
    assert page.text(".card:nth-child(2) .absent p") == "the filter did not answer in time"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a broken knight", "the worker died twice"),
        ("a short knight", "The service ended its answer before this picture was there."),
    ],
)
def test_a_stream_that_ends_early_leaves_no_picture_waiting(page: Page, prompt: str, words: str) -> None:
    page.generate(prompt)

    assert page.text(".absent p") == words
    assert page("document.querySelectorAll('progress').length") == 0


def test_one_picture_that_fails_leaves_the_others_alone(page: Page) -> None:
    page.generate("half of the knights", n=2)

    assert page.text(".card:nth-child(1) .fate") == "Shown"
    assert page.text(".card:nth-child(2) .absent p") == "too late"


def test_cancelling_breaks_the_request_off(page: Page) -> None:
    page.begin("a slow knight")
    page.browser.wait_for("document.querySelector('.unfinished')")
    page.click("#cancel")
    page.browser.wait_for("document.getElementById('cancel').hidden")

    assert page.service.broken_off.wait(10)
    assert page.text(".absent p") == "Cancelled."
    assert page("document.getElementById('problem').childElementCount") == 0


def test_a_full_queue_says_when_to_try_again(page: Page) -> None:
    page.begin("a busy knight")
    page.browser.wait_for("document.querySelector('.problem')")
    told, waits = page.text(".problem p"), page("document.querySelector('.problem button').disabled")
    left = page.text("[role=timer]")
    page.browser.wait_for("!document.querySelector('.problem button').disabled")
    page.click(".problem button")
    deadline = time.monotonic() + 10
    while len(page.service.requests) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    page.browser.wait_for("!document.querySelector('.run')")

    assert told == "The service is busy, or this key has used up its rate. It says: the queue is full"
    assert (waits, left) == (True, "possible in 1 s")
    assert [request["prompt"] for request in page.service.requests] == ["a busy knight"] * 2


def test_what_people_and_the_service_write_is_text(page: Page) -> None:
    page.generate(f"withheld {HOSTILE}")
    page.generate(f"forbidden {HOSTILE}")

    assert page.text(".run h2 q") == f"withheld {HOSTILE}"
    assert (
        page.text(".problem p")
        == "This key may not do that. It says: the policy <b>none</b> is weaker than the floor"
    )
    assert page("document.title") == "Pictures with safety guidance"
