"""The service's page as files: whole, of its own, and without anything that its content security policy would refuse."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import page_server
import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
MODULES = sorted(page_server.FILES.glob("*.js"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in page_server.FILES.iterdir()}
IMPORT = re.compile(r'^import .*from "\./([\w.]+)";$', re.MULTILINE)
CONTROLS = ("input", "select", "textarea")


class Tags(HTMLParser):
    """Every tag of the page with its attributes, and the text inside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.code = ""
        self.feed(TEXTS["index.html"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            self.code += data

    def all(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name))]


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG 2.2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def colours(dark: bool) -> dict[str, str]:
    blocks = re.findall(r":root \{(.*?)\}", TEXTS["style.css"], re.DOTALL)
    return {
        name: value
        for block in blocks[: 2 if dark else 1]
        for name, value in re.findall(r"--([\w-]+): (#\w{6})", block)
    }


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_nothing_of_the_page_names_another_host(name: str) -> None:
    named = re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^"'\s]*""", TEXTS[name])

    assert set(named) <= {"http://www.w3.org/2000/svg"}
    assert "url(" not in TEXTS[name] and "@import" not in TEXTS[name]


def test_the_html_holds_no_code_and_no_style() -> None:
    tags = Tags()
    attributes = {name for _, found in tags.tags for name in found}

    assert not tags.code.strip()
    assert not {name for name in attributes if name.startswith("on") or name == "style"}
    assert [found["src"] for tag, found in tags.tags if tag == "script"] == ["/page/main.js"]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_no_module_can_turn_text_into_html_or_code(module: Path) -> None:
    risky = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|createContextualFragment|\beval\b|new Function"

    assert not re.findall(risky, module.read_text(encoding="utf-8"))


def test_the_key_is_kept_nowhere_but_in_the_tab() -> None:
    assert not [
        name for name, text in TEXTS.items() if re.search(r"localStorage|document\.cookie|indexedDB", text)
    ]
    assert [name for name, text in TEXTS.items() if "sessionStorage" in text] == ["api.js"]


def test_every_module_is_used_and_every_file_is_there() -> None:
    reached, waiting = set(), ["main.js"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += set(IMPORT.findall(TEXTS[name])) - reached
    linked = {
        link.removeprefix("/page/")
        for link in [*Tags().all("href"), *Tags().all("src")]
        if link.startswith("/page/")
    }

    assert reached == {module.name for module in MODULES}
    assert linked == {"icon.svg", "style.css", "main.js"}


def test_modules_name_elements_that_the_page_has() -> None:
    ids = Tags().all("id")
    named = {name for text in TEXTS.values() for name in re.findall(r'byId\("([\w-]+)"\)', text)}

    assert len(ids) == len(set(ids))
    assert named <= set(ids)


def test_every_control_of_the_page_has_a_label() -> None:
    tags = Tags()
    labelled = {found["for"] for tag, found in tags.tags if tag == "label"}

    assert {found["id"] for tag, found in tags.tags if tag in CONTROLS} == labelled


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(dark: bool) -> None:
    named = colours(dark)
    texts = ("ink", "faint", "accent", "good", "warn", "stop")
    grounds = ("ground", "panel", "sunk")
    pairs = [(text, ground) for text in texts for ground in grounds] + [("on-accent", "accent")]

    assert {
        pair: round(contrast(*(named[name] for name in pair)), 2)
        for pair in pairs
        if contrast(*(named[name] for name in pair)) < 4.5
    } == {}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_lines_and_edges_stand_out_too(dark: bool) -> None:
    named = colours(dark)
    marks = ("edge", "focus", *(f"line-{number}" for number in range(6)))

    assert {mark for mark in marks if contrast(named[mark], named["panel"]) < 3} == set()


def test_the_wheel_brings_the_page() -> None:
    shipped = {Path(each.distribution_path) for each in WheelBuilder(str(ROOT)).recurse_included_files()}

    assert {Path("sldcore/service/http/page") / name for name in TEXTS} <= shipped
