from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_plugins import PACK, Site, installed, names, window

from sldcore.contributions import ConceptProvider, WindowKind
from sldcore.plugins.manifest import FILE_NAME
from sldcore.plugins.records import Status

pytestmark = pytest.mark.sldcore_plugins

HALF = "api: 1\ncontributes: {window: [half]}\n"
HEIGHTS = "api: 1\ncontributes: {concept pack: [heights]}\npacks: [heights.yaml]\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from installed(tmp_path, monkeypatch)


def test_names_are_listed_by_manifest_without_importing_the_plugin(site: Site) -> None:
    module = site.add("good", window("half"), files={FILE_NAME: HALF})
    record = site.records(load=False)["good"]
    assert (record.status, record.manifest, record.api) == (Status.NOT_LOADED, True, 1)
    assert record.contributions == {"window": ("half",)}
    assert module not in sys.modules


def test_listing_by_manifest_does_not_import_torch(site: Site) -> None:
    site.add("heavy", "import torch\n" + window("half"), files={FILE_NAME: HALF})
    code = (
        "import sys\n"
        "from sldcore.plugins import Plugins\n"
        "records = Plugins.from_environment('heavy').records(load=False)\n"
        "print([dict(r.contributions) for r in records if r.plugin == 'heavy'], 'torch' in sys.modules)\n"
    )
    environment = {"PYTHONPATH": str(site.folder), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert finished.stdout == "[{'window': ('half',)}] False\n", finished.stderr


def test_two_manifests_that_name_the_same_are_a_clash_before_anything_is_loaded(site: Site) -> None:
    for name in ("first", "second"):
        site.add(name, window("half"), files={FILE_NAME: HALF})
    assert {record.status for record in site.records(load=False).values()} == {Status.DUPLICATE}


def test_a_plugin_that_keeps_to_its_manifest_is_usable(site: Site) -> None:
    site.add("good", window("half"), files={FILE_NAME: HALF})
    plugins = site.plugins()
    assert names(plugins, WindowKind) == ["half"]
    assert site.records(plugins)["good"].status is Status.OK


@pytest.mark.parametrize(
    ("contributes", "said"),
    [
        ("{window: [half, quarter]}", "it says and does not contribute window 'quarter'"),
        (
            "{window: [other]}",
            "it says and does not contribute window 'other' and it leaves out window 'half'",
        ),
        ("{window: [half], scheduler: [s]}", "does not contribute scheduler 's'"),
    ],
)
def test_a_manifest_that_says_something_else_than_the_module_is_a_broken_plugin(
    site: Site, contributes: str, said: str
) -> None:
    site.add("bad", window("half"), files={FILE_NAME: f"api: 1\ncontributes: {contributes}\n"})
    assert said in site.records()["bad"].error


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("api: 2\ncontributes: {window: [half]}\n", "its manifest asks for api 2"),
        ("api: '1'\ncontributes: {window: [half]}\n", "api: "),
        ("contributes: {window: [half]}\n", "api: "),
        ("api: 1\n", "contributes: "),
        ("api: 1\ncontributes: {}\n", "contributes: "),
        ("api: 1\ncontributes: {windows: [half]}\n", "unknown kind 'windows'; did you mean 'window'?"),
        ("api: 1\ncontributes: {window: [half, half]}\n", "window: given twice: half"),
        ("api: 1\ncontributes: {window: [Half Way]}\n", "contributes.window.0: "),
        ("api: 1\ncontributes: {window: [half]}\nextra: 1\n", "unknown key 'extra'"),
        ("api: [", "line 1"),
        ("- a list\n", "expected a mapping"),
    ],
)
def test_a_malformed_manifest_is_a_broken_plugin_that_is_not_imported(
    site: Site, manifest: str, said: str
) -> None:
    module = site.add("bad", window("half"), files={FILE_NAME: manifest})
    record = site.records()["bad"]
    assert record.status is Status.BROKEN
    assert said in record.error
    assert module not in sys.modules


def test_packs_of_a_data_only_plugin_are_used_and_no_code_runs(site: Site) -> None:
    files = {FILE_NAME: HEIGHTS, "heights.yaml": PACK.format(name="heights")}
    module = site.add("data", "raise RuntimeError\n", files=files)
    assert site.catalogue().find(ConceptProvider, "heights").load().id == "heights"
    assert module not in sys.modules


def test_a_data_only_plugin_is_checked_when_it_is_listed(site: Site) -> None:
    site.add("data", files={FILE_NAME: HEIGHTS, "heights.yaml": "id: heights\n"})
    record = site.records(load=False)["data"]
    assert record.status is Status.BROKEN
    assert "pack 'heights.yaml': ConceptError" in record.error


def test_a_plugin_may_have_packs_as_data_and_windows_as_code(site: Site) -> None:
    manifest = HEIGHTS.replace("{concept", "{window: [half], concept")
    site.add("both", window("half"), files={FILE_NAME: manifest, "heights.yaml": PACK.format(name="heights")})
    plugins = site.plugins()
    assert (names(plugins, WindowKind), names(plugins, ConceptProvider)) == (["half"], ["heights"])


@pytest.mark.parametrize(
    "file",
    ["../heights.yaml", "/etc/heights.yaml", "a/../../heights.yaml", "..\\heights.yaml", "c:/heights.yaml"],
)
def test_packs_outside_of_the_plugin_s_folder_are_refused(site: Site, file: str) -> None:
    site.add("data", files={FILE_NAME: HEIGHTS.replace("[heights.yaml]", f"['{file}']")})
    assert "must lie in the plugin's own folder" in site.records()["data"].error


def test_a_link_that_leads_out_of_the_plugin_s_folder_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "heights.yaml").write_text(PACK.format(name="heights"))
    module = site.add("data", files={FILE_NAME: HEIGHTS})
    (site.folder / module / "heights.yaml").symlink_to(tmp_path / "heights.yaml")
    assert "is a link to outside" in site.records()["data"].error


def test_a_data_pack_with_another_id_than_the_manifest_says_is_refused_without_running_code(
    site: Site,
) -> None:
    module = site.add("data", files={FILE_NAME: HEIGHTS, "heights.yaml": PACK.format(name="depths")})
    assert "it leaves out concept pack 'depths'" in site.records()["data"].error
    assert module not in sys.modules


def test_a_pack_that_the_manifest_does_not_name_is_refused(site: Site) -> None:
    manifest = "api: 1\ncontributes: {window: [half]}\npacks: [heights.yaml]\n"
    site.add("data", window("half"), files={FILE_NAME: manifest})
    assert "name each of the packs heights.yaml" in site.records()["data"].error


def test_a_broken_plugin_s_manifest_still_tells_whose_a_name_is(site: Site) -> None:
    site.add("bad", "raise RuntimeError('gone')\n", files={FILE_NAME: HALF})
    assert "plugin 'bad' (sld-bad 1.0) is broken" in site.plugins().why_not(WindowKind, "half")


def test_a_disabled_plugin_s_manifest_still_tells_whose_a_name_is(site: Site) -> None:
    site.add("off", window("half"), files={FILE_NAME: HALF})
    assert "plugin 'off' (sld-off 1.0) is disabled: SLD_PLUGINS=-off" in site.plugins("-off").why_not(
        WindowKind, "half"
    )
