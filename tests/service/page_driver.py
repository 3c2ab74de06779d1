"""The service's page in a browser, and what one does with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import page_server
import pytest
from evaluation import chromium

PROGRAM = chromium.installed()
REFUSED = "the server responded with a status of"

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs a Chromium (Debian: apt-get install chromium)"),
]


class Page:
    """The page in a browser, and what one does with it."""

    def __init__(self, browser: chromium.Browser) -> None:
        self.browser = browser
        self.service: page_server.Service

    def open(self, service: page_server.Service, view: str = "") -> None:
        self.service = service
        self.browser.visit("about:blank")
        self.browser.visit(f"{service.address}/{view}")
        shown = "#key-form" if service.keys and not self("sessionStorage.length") else view or "#generate"
        self.browser.wait_for(f"!document.querySelector('{shown}').hidden")

    def __call__(self, script: str) -> object:
        return self.browser.evaluate(script)

    def text(self, selector: str) -> str:
        return str(self(f"document.querySelector({selector!r})?.innerText"))

    def click(self, selector: str) -> None:
        self(f"document.querySelector({selector!r}).click()")

    def fill(self, **values: object) -> None:
        for name, value in values.items():
            self(
                f"(() => {{ const field = document.getElementById({name!r}); field.value = {str(value)!r}; field.dispatchEvent(new Event('change')) }})()"
            )

    def begin(self, prompt: str, **values: object) -> None:
        self.fill(prompt=prompt, **values)
        self.click("#start")

    def generate(self, prompt: str, **values: object) -> None:
        self.begin(prompt, **values)
        self.browser.wait_for("document.getElementById('cancel').hidden")
        self("Promise.all([...document.images].map((each) => each.decode()))")

    def filter_of(self, layer: str) -> str:
        self("Promise.all(document.getAnimations().map((each) => each.finished))")
        return str(self(f"getComputedStyle(document.querySelector('{layer} img')).filter"))


@contextmanager
def shown(browser: chromium.Browser, service: page_server.Service) -> Iterator[Page]:
    """The page of a service; afterwards nothing may have gone wrong in the browser, and nothing asked for elsewhere."""
    browser.events.clear()
    browser.viewport(1280, 900)
    page = Page(browser)
    page.open(service)
    service.requests.clear()
    yield page
    asked = [event["request"]["url"] for event in browser.named("Network.requestWillBeSent")]
    entries = [event["entry"]["text"] for event in browser.named("Log.entryAdded")]
    page("sessionStorage.clear()")
    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "about:"))} == {
        "127.0.0.1"
    }
    assert not [url for url in asked if page_server.KEY in url]
    assert [browser.named("Runtime.consoleAPICalled"), browser.named("Runtime.exceptionThrown")] == [[], []]
    assert [text for text in entries if REFUSED not in text] == []
