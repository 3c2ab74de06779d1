from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_plugins import BROKEN, CORE, HEAD, Site, installed, names, window

from sldcore.catalogue import Catalogue
from sldcore.contributions import WindowKind
from sldcore.errors import PluginError
from sldcore.plugins import Plugins

pytestmark = pytest.mark.sldcore_plugins


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from installed(tmp_path, monkeypatch)


def write(folder: Path, name: str, code: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(code)
    return path


def test_a_file_that_is_asked_for_provides_its_names(site: Site, tmp_path: Path) -> None:
    catalogue = site.catalogue("mine").with_files([write(tmp_path, "mine", window("half"))])
    provider = catalogue.entry(WindowKind, "half").provider
    assert (provider.plugin, provider.distribution) == ("mine", "")


def test_a_file_that_nobody_asked_for_is_not_looked_at(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "mine", window("half"))
    monkeypatch.chdir(tmp_path)
    assert names(site.plugins("mine"), WindowKind) == []


def test_a_file_leaves_the_plugins_that_it_is_added_to_as_they_were(site: Site, tmp_path: Path) -> None:
    plugins = site.plugins("mine")
    plugins.with_files([write(tmp_path, "mine", window("half"))])
    assert names(plugins, WindowKind) == []


def test_the_same_file_runs_once_however_many_policies_name_it(site: Site, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"with open({str(log)!r}, 'a') as log:\n    log.write('x')\n"
    path = write(tmp_path, "mine", code + window("half"))
    for _ in range(3):
        site.plugins("mine").with_files([path, path])
    assert log.read_text() == "x"


def test_a_changed_file_is_read_again(site: Site, tmp_path: Path) -> None:
    path = write(tmp_path, "mine", window("half"))
    site.plugins("mine").with_files([path])
    path.write_text(window("quarter"))
    assert names(site.plugins("mine").with_files([path]), WindowKind) == ["quarter"]


def test_an_edit_of_equal_length_and_time_is_new_code(site: Site, tmp_path: Path) -> None:
    path = write(tmp_path, "mine", window("aaaa"))
    site.plugins("mine").with_files([path])
    times = path.stat()
    path.write_text(window("bbbb"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert names(site.plugins("mine").with_files([path]), WindowKind) == ["bbbb"]


def test_no_bytecode_is_left_beside_a_file(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    site.plugins("mine").with_files([write(tmp_path, "mine", window("uncached"))])
    assert not (tmp_path / "__pycache__").exists()


def test_an_edit_of_a_file_of_the_command_line_counts_for_a_policy_that_names_it(
    site: Site, tmp_path: Path
) -> None:
    path = write(tmp_path, "mine", window("aaaa"))
    plugins = Plugins.from_environment("mine", [path], core=CORE)
    plugins.require_files()
    path.write_text(window("bbbb"))
    assert names(plugins.with_files([path]), WindowKind) == ["bbbb"]


def test_two_files_of_one_content_are_two_modules(site: Site, tmp_path: Path) -> None:
    code = HEAD + "from pathlib import Path\n@hookimpl\ndef sld_windows():\n"
    code += "    return [WindowKind(name=Path(__file__).parent.name, create=lambda options: None)]\n"
    found = []
    for folder in ("aa", "bb"):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder, "mine", code)
        found += names(site.plugins("mine").with_files([path]), WindowKind)
    assert found == ["aa", "bb"]


def test_a_file_s_code_does_not_inherit_the_loader_s_future(site: Site, tmp_path: Path) -> None:
    code = "def f(x: 1 + 1): ...\nassert f.__annotations__ == {'x': 2}\n" + window("half")
    assert names(site.plugins("mine").with_files([write(tmp_path, "mine", code)]), WindowKind) == ["half"]


def test_a_broken_file_is_an_error_at_once(site: Site, tmp_path: Path) -> None:
    path = write(tmp_path, "mine", BROKEN["raises"])
    with pytest.raises(
        PluginError, match=r"mine\.py' cannot be used: cannot be imported: RuntimeError.*correct the file"
    ):
        site.plugins("mine").with_files([path])


@pytest.mark.parametrize(
    ("name", "said"), [("gone.py", "there is no file"), ("gone.txt", "is not a Python file")]
)
def test_a_file_that_cannot_be_had_is_an_error_at_once(
    site: Site, tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(PluginError, match=said):
        site.plugins("gone").with_files([tmp_path / name])


def test_a_file_that_takes_a_name_of_the_core_is_an_error(site: Site, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"window 'core-window' is sldcore 9\.9's own"):
        site.plugins("mine").with_files([write(tmp_path, "mine", window("core-window"))])


def test_a_file_is_disabled_like_any_plugin(site: Site, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="plugins are switched off"):
        site.plugins("none").with_files([write(tmp_path, "mine", window("half"))])


def test_files_of_the_command_line_are_loaded_like_those_of_a_policy(site: Site, tmp_path: Path) -> None:
    path = write(tmp_path, "mine", window("half"))
    plugins = Plugins.from_environment("mine", [path], core=CORE)
    assert Catalogue(CORE, plugins).find(WindowKind, "half").name == "half"


def test_data_classes_work_in_a_file(site: Site, tmp_path: Path) -> None:
    code = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + window("half")
    code += "@dataclass\nclass State:\n    seen: int = 0\n"
    assert names(site.plugins("mine").with_files([write(tmp_path, "mine", code)]), WindowKind) == ["half"]
