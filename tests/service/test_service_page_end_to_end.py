"""The whole service as a person meets it: page, HTTP, worker process, engine, playground model, filter and audit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from evaluation import chromium
from service_app import served

from sldcore.policy import SafetyPolicy
from sldcore.service.http.app import create_app
from sldcore.service.ledger import open_ledger
from sldcore.service.rights.access import Access
from sldcore.service.rights.keys import Key, Keys, hash_of
from sldcore.service.settings import ServiceSettings
from sldcore.service.working.dispatching import Dispatcher

PROGRAM = chromium.installed()
TOKEN = "sld-operator"
PROMPT = "a red knight on a meadow"
SEED = 1
"""The picture of it shows a glyph."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs a Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    for name, action in (("watching", "flag"), ("strict", "drop")):
        filters = [{"use": "playground-glyphs", "on_flag": action}]
        policy = SafetyPolicy.preset("weak").replace(filters=filters, description=f"Does {action}.")
        (folder / f"{name}.yaml").write_text(policy.dump(), encoding="utf-8")
    settings = ServiceSettings(
        policies={name: str(folder / f"{name}.yaml") for name in ("watching", "strict")},
        models={"playground": {"steps": 25}},
        audit={"path": folder / "audit.sqlite"},
    )
    keys = Keys([Key(id="operator", sha256=hash_of(TOKEN), created=datetime.now(UTC), operator=True)])
    access = Access(settings, keys)
    backend = Dispatcher(settings, list(access.policies.values()))
    app = create_app(settings, backend, open_ledger(settings.audit), access, keys, sizes=backend.sizes)
    with served(app) as reached:
        yield reached


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    """The page, with the operator's key given."""
    with chromium.browser(str(PROGRAM), tmp_path_factory.mktemp("chromium") / "profile") as opened:
        opened.visit(f"{address}/")
        opened.wait_for("document.activeElement?.id === 'key'")
        opened.type(TOKEN)
        opened.press("Enter")
        opened.wait_for("!document.getElementById('generate').hidden")
        yield opened


def generate(browser: chromium.Browser, policy: str, *, unguided: bool) -> list[int]:
    """Have a picture made with the keyboard; which steps the page showed."""
    browser.evaluate(f"""(() => {{
      document.getElementById('policy').value = {policy!r}; document.getElementById('seed').value = {SEED};
      document.getElementById('unguided').checked = {str(unguided).lower()};
      const prompt = document.getElementById('prompt'); prompt.value = ''; prompt.focus();
      window.steps = []; new MutationObserver(() => steps.push(document.querySelector('progress')?.value))
        .observe(document.getElementById('results'), {{ subtree: true, attributes: true, attributeFilter: ['value'] }}) }})()""")
    browser.type(PROMPT)
    browser.press("Enter", control=True)
    browser.wait_for("document.querySelector('.run .about') && document.getElementById('cancel').hidden")
    browser.evaluate("Promise.all([...document.images].map((each) => each.decode()))")
    return list(browser.evaluate("window.steps"))


def style(browser: chromium.Browser, layer: str) -> str:
    browser.evaluate("Promise.all(document.getAnimations().map((each) => each.finished))")
    return str(browser.evaluate(f"getComputedStyle(document.querySelector('{layer} img')).filter"))


def text(browser: chromium.Browser, selector: str) -> str:
    return str(browser.evaluate(f"document.querySelector({selector!r})?.innerText"))


def test_a_person_sees_what_safety_did(browser: chromium.Browser) -> None:
    steps = generate(browser, "watching", unguided=True)
    blurred = style(browser, ".layer")
    browser.evaluate("document.querySelector('.veil.right').click()")
    shown = style(browser, ".layer")
    browser.evaluate("document.querySelector('input[value=heat]').click()")
    heat = browser.evaluate(
        "[...document.querySelectorAll('.layer img')].find((each) => each.checkVisibility()).alt"
    )
    browser.evaluate("document.querySelector('input[value=compare]').click()")
    unguided = style(browser, ".unguided")
    browser.evaluate("document.querySelector('.split').focus()")
    browser.press("ArrowRight")
    browser.evaluate("document.querySelector('.guidance').open = true")
    browser.wait_for("document.querySelector('.chart polyline')")

    first_pass = steps[: steps.index(25) + 1]
    assert first_pass == sorted(first_pass) and len(set(first_pass)) >= 3
    assert text(browser, ".fate") == "Flagged, shown"
    assert "playground-glyphs" in text(browser, ".verdicts") and "flagged" in text(browser, ".verdicts")
    assert ("blur" in blurred, shown, "blur" in unguided) == (True, "none", True)
    assert heat.startswith("Heat map: where guidance acted.")
    assert browser.evaluate("document.querySelector('.split').ariaValueText") == "51 % unguided, 49 % guided"


def test_a_withheld_picture_is_nowhere_in_the_page(browser: chromium.Browser) -> None:
    generate(browser, "strict", unguided=False)

    assert text(browser, ".run:first-child .absent h3") == "Withheld"
    assert browser.evaluate("document.querySelectorAll('.run:first-child img').length") == 0


def test_the_history_has_both(browser: chromium.Browser) -> None:
    browser.evaluate("location.hash = '#history'")
    browser.wait_for("document.querySelectorAll('#record-rows tr').length === 2")
    rows = browser.evaluate(
        "[...document.querySelectorAll('#record-rows tr')].map((row) => [...row.cells].slice(1, 5).map((cell) => cell.innerText))"
    )

    assert rows == [
        ["picture", "drop", "strict", "operator"],
        ["picture", "flag", "watching", "operator"],
    ]


def test_the_browser_has_nothing_to_complain_about_and_asked_nobody_else(
    browser: chromium.Browser, address: str
) -> None:
    asked = {event["request"]["url"] for event in browser.named("Network.requestWillBeSent")}
    entries = [event["entry"]["text"] for event in browser.named("Log.entryAdded")]

    assert {urlsplit(url).netloc for url in asked if not url.startswith("data:")} == {
        urlsplit(address).netloc
    }
    assert not [url for url in asked if TOKEN in url]
    assert browser.named("Runtime.consoleAPICalled") == browser.named("Runtime.exceptionThrown") == []
    assert [entry for entry in entries if "status of 401" not in entry] == []
