"""The HTML report as a real browser shows it: alone, quiet, blurred until asked, usable without a mouse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import chromium
import made_evaluation
import pytest
from made_evaluation import key_of

from sldcore.evaluation.reporting import report

PROGRAM = chromium.installed()
HOSTILE = '</pre><script>document.title="owned"</script><img src="http://192.0.2.1/x" onerror="document.title=\'owned\'">'
STATE = """(() => { const tile = document.querySelectorAll('button.tile')[%d]; const picture = tile.querySelector('img');
  return [picture.naturalWidth, getComputedStyle(picture).filter, tile.getAttribute('aria-pressed')] })()"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs a Chromium (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    made = made_evaluation.made(folder, {"off": range(8), "weak": (0, 1, 2), "max": ()})
    made = made.but(key_of("toy/roles", 0, "off"), prompt=HOSTILE)
    made = replace(made, description={**made.description, "note": HOSTILE})
    return report(made, folder / "report", against="published").html


@pytest.fixture
def shown(page: Path, tmp_path: Path) -> Iterator[chromium.Browser]:
    with chromium.browser(str(PROGRAM), tmp_path / "profile") as browser:
        browser.open(page)
        yield browser


def clicked(browser: chromium.Browser, script: str) -> None:
    browser.evaluate(
        f"(async () => {{ {script}; await Promise.all([...document.images].map((i) => i.decode())) }})()"
    )


def test_the_page_asks_for_nothing_but_itself(shown: chromium.Browser) -> None:
    asked = {event["request"]["url"][:5] for event in shown.named("Network.requestWillBeSent")}

    assert asked <= {"file:", "data:"}


def test_the_browser_has_nothing_to_complain_about(shown: chromium.Browser) -> None:
    complaints = [
        shown.named(kind)
        for kind in (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Network.loadingFailed",
        )
    ]

    assert complaints == [[], [], [], []]


def test_every_picture_is_a_few_blurred_pixels_before_a_click(shown: chromium.Browser) -> None:
    tiles = shown.evaluate("document.querySelectorAll('button.tile').length")
    states = [shown.evaluate(STATE % number) for number in range(tiles)]

    assert tiles == 2 * 4 * 3
    assert all(width <= 4 and "blur" in style and pressed == "false" for width, style, pressed in states)


def test_a_click_shows_one_picture_and_the_next_one_hides_it(shown: chromium.Browser) -> None:
    clicked(shown, "document.querySelectorAll('button.tile')[1].click()")
    open_, other = shown.evaluate(STATE % 1), shown.evaluate(STATE % 0)
    clicked(shown, "document.querySelectorAll('button.tile')[1].click()")

    assert open_ == [64, "none", "true"]
    assert other[0] <= 4
    assert shown.evaluate(STATE % 1)[0] <= 4


def test_pictures_can_be_reached_shown_and_hidden_by_keys(shown: chromium.Browser) -> None:
    shown.evaluate("document.querySelector('button[data-all=hide]').focus()")
    for key in ("Tab", "Enter", "ArrowRight", " "):
        shown.press(key)
    clicked(shown, "")
    states = [shown.evaluate(STATE % number) for number in range(3)]
    shown.press("Escape")
    clicked(shown, "")

    assert [state[0] for state in states] == [64, 64, 4]
    assert [shown.evaluate(STATE % number)[2] for number in range(3)] == ["false"] * 3


def test_a_grid_is_shown_and_hidden_as_a_whole(shown: chromium.Browser) -> None:
    clicked(shown, "document.querySelector('button[data-all=show]').click()")
    widths = [shown.evaluate(STATE % number)[0] for number in range(24)]
    clicked(shown, "document.querySelector('button[data-all=hide]').click()")

    assert widths == [64] * 12 + [4] * 12
    assert [shown.evaluate(STATE % number)[0] for number in range(12)] == [4] * 12


def test_prompts_and_descriptions_are_text_and_run_nothing(shown: chromium.Browser) -> None:
    assert shown.evaluate("document.title").startswith("Safety evaluation: run")
    assert HOSTILE in shown.evaluate("document.querySelector('.grid').innerText")
    assert HOSTILE in shown.evaluate("document.querySelector('pre').textContent")


def test_a_script_that_gets_into_the_page_is_refused(shown: chromium.Browser) -> None:
    foreign = "const s = document.createElement('script'); s.textContent = 'document.title = \"owned\"'; document.body.append(s)"
    shown.evaluate(f"(() => {{ {foreign} }})()")

    assert shown.evaluate("document.title") != "owned"


def test_a_narrow_window_scrolls_inside_tables_only(shown: chromium.Browser) -> None:
    shown.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False)

    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
