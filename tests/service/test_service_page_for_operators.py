"""Who sees what on the service's page, and how: keys, operators' views, phones, screen readers."""

from __future__ import annotations

from collections.abc import Iterator

import page_server
import pytest
from page_driver import MARKS, Page

pytestmark = MARKS


@pytest.fixture(scope="module")
def guarded() -> Iterator[page_server.Service]:
    with page_server.serving(keys=True, operator=False) as service:
        yield service


def test_a_service_without_keys_asks_for_none(page: Page) -> None:
    assert page("[document.getElementById('key-form').hidden, document.getElementById('caller').hidden]") == [
        True,
        True,
    ]


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(page: Page, guarded: page_server.Service) -> None:
    page.open(guarded)
    page.fill(key="wrong")
    page.click("#key-form button")
    page.browser.wait_for("document.querySelector('.problem')")
    refused = page.text(".problem")
    page.fill(key=page_server.KEY)
    page.click("#key-form button")
    page.browser.wait_for("!document.getElementById('generate').hidden")
    kept = page("[Object.values(sessionStorage), localStorage.length, document.cookie, location.href]")
    named = page.text("#caller-name")
    page.click("#forget-key")
    page.browser.wait_for("document.activeElement?.id === 'key'")

    assert refused == "The service does not know this API key. It says: no such key"
    assert kept == [[page_server.KEY], 0, "", f"{guarded.address}/"]
    assert named == "Key: team-a"
    assert page("sessionStorage.length") == 0


def test_who_is_no_operator_sees_neither_history_nor_unguided(
    page: Page, guarded: page_server.Service
) -> None:
    page("sessionStorage.clear()")
    page.open(guarded)
    page.fill(key=page_server.KEY)
    page.click("#key-form button")
    page.browser.wait_for("!document.getElementById('generate').hidden")
    page("location.hash = '#history'")

    assert (
        page("['views', 'history', 'unguided-choice'].map((id) => document.getElementById(id).hidden)")
        == [True] * 3
    )


def test_before_and_after_are_compared_by_keys(page: Page) -> None:
    page.generate("compare a knight")
    page.click("input[value=compare]")
    blurred = page.filter_of(".unguided")
    page("document.querySelector('.split').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.browser.press(key)
    page.click(".veil.left")

    assert "blur" in blurred
    assert page("document.querySelector('.split').ariaValueText") == "51 % unguided, 49 % guided"
    assert page("getComputedStyle(document.querySelector('.unguided')).clipPath") == "inset(0px 49% 0px 0px)"
    assert page.filter_of(".unguided") == "none"
    assert "blur" in page.filter_of(".layer:not(.unguided)")


def test_the_heat_map_takes_the_pictures_place(page: Page) -> None:
    page.generate("a flagged knight")
    visible = "[...document.querySelectorAll('.layer img')].map((each) => each.checkVisibility())"
    before = page(visible)
    page("document.querySelector('input[value=picture]').focus()")
    page.browser.press("ArrowRight")

    assert (before, page(visible)) == ([True, False], [False, True])
    assert "blur" in str(page("getComputedStyle(document.querySelectorAll('.layer img')[1]).filter"))


def test_curves_differ_in_more_than_colour_and_have_their_numbers_beside_them(page: Page) -> None:
    page.generate("a red knight")
    page.click(".guidance > summary")
    page.browser.wait_for("document.querySelector('.chart svg')")
    dashes = page(
        "[...document.querySelectorAll('.curves:first-child .legend line')].map((line) => line.getAttribute('stroke-dasharray'))"
    )
    step = page(
        "[...document.querySelectorAll('.curves table')[0].rows[9].cells].map((cell) => cell.textContent)"
    )

    assert len(set(dashes)) == len(page_server.CONCEPTS)
    assert page("document.querySelectorAll('.chart:first-of-type polyline').length") == 2 * 3 * len(
        page_server.CONCEPTS
    )
    assert step == ["9", "8", "6", "4", "2"]


def test_ticks_are_round_and_cover_the_values(page: Page) -> None:
    ticks = page(
        "import('/page/curves.js').then(({ticks}) => [ticks(0, 8), ticks(-0.3, 0.7), ticks(0, 0.0031), ticks(0, 0).length])"
    )

    assert ticks == [[0, 2, 4, 6, 8], [-0.5, -0.25, 0, 0.25, 0.5, 0.75], [0, 0.001, 0.002, 0.003, 0.004], 2]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_come_whole_however_their_bytes_are_cut(page: Page, size: int) -> None:
    found = page(f"""(async () => {{
      const {{ serverSentEvents }} = await import('/page/events.js');
      const bytes = new TextEncoder().encode(': hello\\n\\nevent: a\\r\\ndata: {{"é": 1}}\\r\\n\\r\\ndata: x\\ndata:y\\n\\nevent: cut\\ndata: off');
      const parts = Array.from({{ length: Math.ceil(bytes.length / {size}) }}, (_, k) => bytes.slice(k * {size}, (k + 1) * {size}));
      const found = []; for await (const event of serverSentEvents(new Blob(parts).stream())) found.push([event.name, event.data]);
      return found }})()""")

    assert found == [["a", '{"é": 1}'], ["message", "x\ny"]]


def test_history_is_paged_and_filtered(page: Page) -> None:
    page("location.hash = '#history'")
    page.browser.wait_for("document.querySelectorAll('#record-rows tr').length === 25")
    first = page("[...document.querySelector('#record-rows tr').cells].map((cell) => cell.innerText)")
    page.click("#older-records")
    page.browser.wait_for("document.querySelectorAll('#record-rows tr').length === 50")
    page.fill(**{"action-filter": "block"})
    page.browser.wait_for("document.querySelectorAll('#record-rows tr').length < 25")

    assert first[1:6] == [
        "picture",
        "none",
        "medium",
        "team-<b>a</b>",
        "playground-glyphs: passed (glyph 0.03)",
    ]
    assert first[6] == "003c" * 16
    assert page(
        "[...new Set([...document.querySelectorAll('#record-rows .act')].map((each) => each.innerText))]"
    ) == ["block"]
    assert page("document.getElementById('older-records').hidden")


def test_a_phone_shows_everything_in_one_column(page: Page) -> None:
    page.browser.viewport(360, 740)
    page.generate("compare a knight")
    page("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    page.click("input[value=compare]")
    widths = [page("document.documentElement.scrollWidth")]
    small = page("""[...document.querySelectorAll('button, select, textarea, summary, nav a, .choices label, input:not([type=radio], [type=checkbox])')]
      .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 44).map((each) => each.outerHTML)""")
    page("location.hash = '#history'")
    page.browser.wait_for("document.querySelector('#record-rows tr')")
    widths.append(page("document.documentElement.scrollWidth"))

    assert all(width <= 360 for width in widths)
    assert small == []


def test_everything_that_takes_input_has_a_name(page: Page) -> None:
    page.generate("compare a knight")
    page("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    page.click("input[value=compare]")
    page.browser.call("Accessibility.enable")
    nodes = page.browser.call("Accessibility.getFullAXTree")["nodes"]
    page.browser.call("Accessibility.disable")
    roles = {
        "button",
        "textbox",
        "combobox",
        "checkbox",
        "radio",
        "slider",
        "spinbutton",
        "image",
        "link",
        "progressbar",
    }
    taking = [node for node in nodes if node.get("role", {}).get("value") in roles and not node["ignored"]]

    assert {node["role"]["value"] for node in taking} >= {
        "button",
        "combobox",
        "radio",
        "slider",
        "spinbutton",
        "image",
        "link",
    }
    assert [
        node["role"]["value"] for node in taking if not node.get("name", {}).get("value", "").strip()
    ] == []


def test_who_wants_less_motion_gets_none(page: Page) -> None:
    page.generate("a flagged knight")
    durations = []
    for wish in ("no-preference", "reduce"):
        page.browser.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": wish}]
        )
        durations.append(page("getComputedStyle(document.querySelector('.layer img')).transitionDuration"))

    assert durations == ["0.15s", "0s"]
