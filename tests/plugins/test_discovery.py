from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_plugins import Site, installed, window

from sldcore.errors import PluginError
from sldcore.plugins.discovery import Selection, discover

pytestmark = pytest.mark.sldcore_plugins


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from installed(tmp_path, monkeypatch)


def versions(site: Site, name: str) -> list[str]:
    return [
        each.version
        for each in discover()
        if each.plugin == name and each.distribution in ("", f"sld-{name}")
    ]


@given(st.text(alphabet=st.sampled_from("ab-, none"), max_size=12))
def test_any_selection_is_understood_or_refused(text: str) -> None:
    try:
        selection = Selection.parse(text)
    except PluginError:
        return
    parts = {part.strip() for part in text.split(",") if part.strip()}
    positive = {part for part in parts if not part.startswith("-")}
    for name in ("a", "b", "ab"):
        expected = f"-{name}" not in {part.replace(" ", "") for part in parts} and (
            not positive or name in positive
        )
        assert selection.allows(name) == expected


@given(st.text(max_size=80).map(lambda text: text.replace("\r", "\n")))
def test_any_entry_points_file_is_read_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.mktemp("odd") / "odd-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: sld-odd\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[sldcore]\n{text}", encoding="utf-8", errors="replace")
    with pytest.MonkeyPatch.context() as patches:
        patches.syspath_prepend(str(folder.parent))
        found = [each for each in discover() if each.distribution == "sld-odd"]
    assert all(each.problem or all(part.isidentifier() for part in each.module.split(".")) for each in found)


def test_a_distribution_without_a_name_still_announces_its_plugin(site: Site) -> None:
    site.add("bare", window("half"))
    (site.folder / "sld_bare-1.0.dist-info" / "METADATA").unlink()
    assert versions(site, "bare") == [""]


def test_several_plugins_of_one_distribution_are_all_found(site: Site) -> None:
    site.add("one", window("half"))
    points = site.folder / "sld_one-1.0.dist-info" / "entry_points.txt"
    points.write_text(
        "[console_scripts]\nx = y:z\n\n[sldcore]\n# remark\none = a.b\ntwo=c\n[other]\nthree = d\n"
    )
    found = [(each.plugin, each.module) for each in discover() if each.distribution == "sld-one"]
    assert found == [("one", "a.b"), ("two", "c")]
