from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_plugins import BROKEN, CORE, HEAD, Site, installed, names, window

from sldcore.catalogue import Catalogue
from sldcore.contributions import ConceptProvider, FamilyKind, GuidanceMethod, WindowKind
from sldcore.errors import PluginError
from sldcore.plugins import Plugins
from sldcore.plugins.records import Status

pytestmark = pytest.mark.sldcore_plugins

HALF = "api: 1\ncontributes: {window: [half]}\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from installed(tmp_path, monkeypatch)


def test_an_installed_plugin_provides_its_names_and_its_distribution_is_known(site: Site) -> None:
    site.add("good", window("half"), version="2.1")
    entry = site.catalogue().entry(WindowKind, "half")
    assert str(entry.provider) == "sld-good 2.1"


def test_the_record_of_a_good_plugin_says_what_it_contributes(site: Site) -> None:
    module = site.add("good", window("half"), version="2.1")
    record = site.records()["good"]
    assert record.status is Status.OK
    assert (record.module, record.distribution, record.version, record.api) == (module, "sld-good", "2.1", 1)
    assert record.contributions == {"window": ("half",)}
    assert record.import_seconds is not None
    assert record.error == ""


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("raises", "cannot be imported: RuntimeError: no licence found (made_sld_raises.py, line 1)"),
        ("exits", "cannot be imported: SystemExit: 3"),
        ("misspelt", "there is no hook 'sld_window'; did you mean 'sld_windows'?"),
        ("wrong-type", "it must return a list of WindowKind, and a GuidanceMethod is in it"),
        ("no-list", "must return a list of WindowKind, and returned WindowKind"),
        ("other-api", "its module says SLD_API = 2, and this sldcore has plugin contract 1; upgrade sldcore"),
        ("no-api", "add `SLD_API = 1`"),
        ("hook-raises", "hook 'sld_windows' failed: ZeroDivisionError: division by zero"),
        ("async", "write `def`, not `async def`"),
        ("unmarked", "function 'sld_windows' is not marked"),
        ("arguments", "hooks take no arguments"),
        ("wrapper", "hook 'sld_windows' is a wrapper"),
        ("missing", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
        ("syntax", "cannot be imported: SyntaxError"),
        ("bad-name", "'Not A Name' cannot be the name of a window"),
        ("twice", "it contributes twice: window 'x'"),
        ("no-function", "create of window 'x' must be a function"),
    ],
)
def test_a_broken_plugin_becomes_a_record_that_says_what_is_wrong(site: Site, broken: str, said: str) -> None:
    site.add_broken(broken)
    record = site.records()[broken]
    assert record.status is Status.BROKEN
    assert said in record.error
    assert "\n" not in record.error


def test_a_module_without_hooks_is_broken_and_one_whose_hook_has_nothing_to_give_is_not(site: Site) -> None:
    site.add("bare", HEAD)
    site.add("poor", HEAD + "@hookimpl\ndef sld_windows():\n    return []\n")
    records = site.records()
    assert "it has no hooks; mark functions with" in records["bare"].error
    assert records["poor"].status is Status.OK


def test_the_error_of_a_broken_import_says_what_to_do(site: Site) -> None:
    site.add_broken("raises")
    assert (
        "`pip install -U sld-raises`, or disable it with SLD_PLUGINS=-raises"
        in site.records()["raises"].error
    )


def test_ctrl_c_while_a_plugin_is_imported_stops_the_program(site: Site) -> None:
    site.add("slow", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        site.plugins().records()


def test_all_broken_plugins_together_hide_neither_the_core_nor_a_good_one(site: Site) -> None:
    site.add_broken(*BROKEN)
    site.add("good", window("half"))
    catalogue = site.catalogue()
    found = [entry.contribution.name for entry in catalogue.entries(WindowKind)]
    assert found == ["core-window", "half"]


def test_a_name_of_the_core_makes_no_plugin_load(site: Site) -> None:
    module = site.add("good", window("half"))
    site.catalogue().find(WindowKind, "core-window")
    assert module not in sys.modules


def test_a_plugin_is_imported_once_however_many_threads_look(site: Site) -> None:
    site.add("counted", "import made_counter\nmade_counter.times.append(1)\n" + window("half"))
    (site.folder / "made_counter.py").write_text("times = []\n")
    plugins = site.plugins()
    threads = [threading.Thread(target=plugins.entries, args=(WindowKind,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.modules["made_counter"].times == [1]


def test_a_plugin_may_look_into_the_catalogue_while_it_is_imported(site: Site) -> None:
    site.add("good", window("half"))
    code = "from sldcore.catalogue import current\nfrom sldcore.contributions import *\ncurrent().entries(WindowKind)\n"
    site.add("curious", code + window("seen"))
    plugins = site.plugins()
    from sldcore.catalogue import using

    with using(Catalogue(CORE, plugins)):
        assert names(plugins, WindowKind) == ["seen", "half"]


def test_plugins_come_in_the_order_of_their_names_not_of_the_disk(site: Site) -> None:
    for name in ("zebra", "apple", "mango"):
        site.add(name, window(f"w-{name}"))
    assert names(site.plugins(), WindowKind) == ["w-apple", "w-mango", "w-zebra"]


def test_a_name_of_the_core_stays_the_core_s_and_the_others_are_usable(site: Site) -> None:
    taking = window("core-window").replace("return [", "return [WindowKind(name='other', create=object), ")
    site.add("taker", taking)
    plugins = site.plugins()
    assert names(plugins, WindowKind) == ["other"]
    record = site.records(plugins)["taker"]
    assert record.status is Status.DUPLICATE
    assert "window 'core-window' is sldcore 9.9's own" in record.error


def test_a_name_that_two_plugins_provide_is_nobody_s_and_both_are_named_with_versions(site: Site) -> None:
    site.add("first", window("half"), version="1.2")
    site.add("second", window("half"), version="0.3")
    with pytest.raises(
        PluginError, match=r"'first' \(sld-first 1\.2\) and by plugin 'second' \(sld-second 0\.3\)"
    ):
        site.catalogue().find(WindowKind, "half")


def test_of_two_plugins_with_one_name_the_other_is_usable_once_one_is_disabled(site: Site) -> None:
    site.add("first", window("half"))
    site.add("second", window("half"))
    entry = site.catalogue("second").entry(WindowKind, "half")
    assert entry.provider.plugin == "second"


def test_a_broken_plugin_takes_no_name_from_a_good_one(site: Site) -> None:
    site.add("bad", window("half").replace("return [", "return [1, "))
    site.add("good", window("half"))
    assert site.catalogue().entry(WindowKind, "half").provider.plugin == "good"


@pytest.mark.parametrize("broken", ["first", "second"])
def test_a_plugin_that_breaks_does_not_hand_the_names_of_its_manifest_to_another(
    site: Site, broken: str
) -> None:
    for name in ("first", "second"):
        code = BROKEN["raises"] if name == broken else window("half")
        site.add(name, code, files={"sld-plugin.yaml": HALF})
    with pytest.raises(
        PluginError,
        match=rf"by the broken plugin '{broken}' .*: neither is used until one .* SLD_PLUGINS=-{broken}$",
    ):
        site.catalogue().find(WindowKind, "half")


def test_a_broken_plugin_has_no_say_once_it_is_disabled(site: Site) -> None:
    site.add("bad", BROKEN["raises"], files={"sld-plugin.yaml": HALF})
    site.add("good", window("half"))
    assert site.catalogue("good").entry(WindowKind, "half").provider.plugin == "good"


def test_two_families_of_one_pipeline_class_are_a_clash(site: Site) -> None:
    for name in ("one", "two"):
        family = f"FamilyKind(name='{name}', pipelines=('TinyPipeline',), create=object)"
        site.add(name, HEAD + f"@hookimpl\ndef sld_families():\n    return [{family}]\n")
    assert names(site.plugins(), FamilyKind) == []
    assert "pipeline class 'TinyPipeline'" in site.records()["one"].error


def test_naming_something_of_a_broken_plugin_says_that_it_is_broken(site: Site) -> None:
    site.add("bad", window("half").replace("return [", "return [1, "))
    with pytest.raises(
        PluginError, match=r"window 'half' cannot be used: plugin 'bad' \(sld-bad 1.0\) is broken: .*int"
    ):
        site.catalogue().find(WindowKind, "half")


def test_where_nobody_can_tell_the_broken_plugin_is_named_as_a_possible_provider(site: Site) -> None:
    site.add_broken("raises")
    with pytest.raises(
        PluginError, match=r"perhaps it is in plugin 'raises' .* RuntimeError: no licence found"
    ):
        site.catalogue().find(WindowKind, "half")


def test_a_misspelt_name_of_the_core_is_suggested_beside_broken_plugins(site: Site) -> None:
    site.add_broken("raises")
    with pytest.raises(PluginError, match="did you mean 'core-window'"):
        site.catalogue().find(WindowKind, "core-windw")


def test_naming_something_of_a_disabled_plugin_says_that_it_is_disabled(site: Site) -> None:
    site.add("half", window("half"))
    with pytest.raises(
        PluginError, match=r"plugin 'half' .* is disabled: SLD_PLUGINS=-half does not let it in"
    ):
        site.catalogue("-half").find(WindowKind, "half")


def test_where_nobody_can_tell_the_disabled_plugin_is_named_as_a_possible_provider(site: Site) -> None:
    site.add("other", window("half"))
    site.add("good", window("quarter"))
    with pytest.raises(
        PluginError,
        match=r"perhaps it is in one of the disabled plugins: .*other.*; SLD_PLUGINS=good does not let it in",
    ):
        site.catalogue("good").find(WindowKind, "half")


def test_a_disabled_plugin_whose_manifest_does_not_have_the_name_is_not_suspected(site: Site) -> None:
    site.add("other", window("half"), files={"sld-plugin.yaml": HALF})
    with pytest.raises(PluginError) as raised:
        site.catalogue("-other").find(WindowKind, "quarter")
    assert "other" not in str(raised.value)


def test_naming_something_of_the_project_s_own_plugins_gives_the_pip_command(site: Site) -> None:
    with pytest.raises(PluginError, match=r"run `pip install sld-guidance-sega`"):
        Catalogue(CORE, site.plugins("none")).find(GuidanceMethod, "sega")


def test_naming_something_that_nobody_has_says_what_is_available(site: Site) -> None:
    site.add("good", window("half"))
    with pytest.raises(
        PluginError,
        match=r"no window is called 'hal'; did you mean 'half'\? \(available: core-window, half\)",
    ):
        site.catalogue().find(WindowKind, "hal")


@pytest.mark.parametrize(
    ("selection", "usable"),
    [
        ("none", []),
        ("first", ["first"]),
        ("-first", ["second"]),
        ("first,second", ["first", "second"]),
        ("first,-first", []),
    ],
)
def test_the_selection_says_which_plugins_are_used(
    site: Site, monkeypatch: pytest.MonkeyPatch, selection: str, usable: list[str]
) -> None:
    site.add("first", window("first"))
    site.add("second", window("second"))
    monkeypatch.setenv("SLD_PLUGINS", selection)
    found = names(Plugins.from_environment(core=CORE), WindowKind)
    assert [name for name in found if name in site.names] == usable


def test_a_disabled_plugin_is_recorded_and_not_imported(site: Site) -> None:
    module = site.add("first", window("first"))
    assert site.records(site.plugins("none"))["first"].status is Status.DISABLED
    assert module not in sys.modules


@pytest.mark.parametrize("selection", ["none,a", "-", "a,-"])
def test_a_selection_that_makes_no_sense_is_refused(selection: str) -> None:
    with pytest.raises(PluginError, match="makes no sense"):
        Plugins.from_environment(selection)


def test_strict_lists_every_bad_plugin_at_once(site: Site) -> None:
    site.add_broken("raises", "misspelt")
    site.add("taker", window("core-window"))
    with pytest.raises(
        PluginError, match=r"3 plugins .*misspelt \(broken\).*raises \(broken\).*taker \(duplicate\)"
    ):
        site.plugins(strict=True).entries(GuidanceMethod)


def test_strict_is_content_with_good_plugins(site: Site) -> None:
    site.add("good", window("half"))
    assert names(site.plugins(strict=True), WindowKind) == ["half"]


def test_broken_plugins_are_warned_of_once_in_one_message(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.add_broken("raises", "misspelt", "async")
    plugins = site.plugins()
    plugins.entries(WindowKind)
    with caplog.at_level(logging.WARNING, "sldcore.plugins"):
        plugins.warn_once()
        site.plugins().warn_once()
    expected = (
        "3 plugins are broken and not used: async, misspelt, raises; names of async, misspelt, raises are unknown, "
        "and other plugins may take them; `sld plugins check` says why"
    )
    assert [record.message for record in caplog.records] == [expected]


def test_a_broken_plugin_whose_manifest_names_all_is_not_said_to_have_unknown_names(site: Site) -> None:
    site.add("bad", BROKEN["raises"], files={"sld-plugin.yaml": HALF})
    plugins = site.plugins()
    plugins.entries(WindowKind)
    said: list[str] = []
    plugins.warn_once(said.append)
    assert said == ["1 plugin is broken and not used: bad; `sld plugins check` says why"]


def test_a_selected_name_that_no_plugin_has_is_warned_of(site: Site) -> None:
    site.add("good", window("half"))
    plugins = site.plugins("good,goood")
    plugins.entries(WindowKind)
    said: list[str] = []
    plugins.warn_once(said.append)
    assert said == ["SLD_PLUGINS names what no plugin is called: goood; `sld plugins check` says why"]


def test_a_selected_name_that_no_plugin_has_is_an_error_in_strict_mode(site: Site) -> None:
    site.add("good", window("half"))
    with pytest.raises(PluginError, match="SLD_PLUGINS names what no plugin is called: goood"):
        site.plugins("good,-goood", strict=True).entries(WindowKind)


def test_nothing_is_warned_of_while_nobody_looked_for_plugins(site: Site) -> None:
    site.add_broken("raises")
    said: list[str] = []
    site.plugins().warn_once(said.append)
    assert said == []


def test_a_factory_that_raises_says_whose_it_is(site: Site) -> None:
    site.add("late", window("half").replace("lambda options: lambda step: 1.0", "lambda options: 1 / 0"))
    kind = site.catalogue().find(WindowKind, "half")
    with pytest.raises(
        PluginError, match=r"window 'half' of plugin 'late' \(sld-late 1.0\) cannot be made: ZeroDivision"
    ):
        kind.create(None)


def test_a_pack_whose_id_is_not_its_name_is_refused_when_it_is_loaded(site: Site) -> None:
    load = "lambda: __import__('sldcore.concepts', fromlist=['x']).load_pack('inappropriate')"
    site.add(
        "packs",
        HEAD + f"@hookimpl\ndef sld_concepts():\n    return [ConceptProvider(name='mine', load={load})]\n",
    )
    with pytest.raises(PluginError, match="must give the pack 'mine', and gave 'inappropriate'"):
        site.catalogue().find(ConceptProvider, "mine").load()


def test_a_provider_that_gives_no_pack_is_refused_when_it_is_loaded(site: Site) -> None:
    site.add(
        "packs",
        HEAD + "@hookimpl\ndef sld_concepts():\n    return [ConceptProvider(name='mine', load=dict)]\n",
    )
    with pytest.raises(PluginError, match="must give a ConceptPack, and gave dict"):
        site.catalogue().find(ConceptProvider, "mine").load()


def test_the_import_time_of_a_slow_plugin_is_recorded(site: Site) -> None:
    site.add("slow", "import time\ntime.sleep(0.2)\n" + window("half"))
    assert (site.records()["slow"].import_seconds or 0) >= 0.2


@pytest.mark.parametrize("value", ["made_sld_odd:thing", "1odd", "a..b", ""])
def test_an_entry_point_that_is_no_module_is_a_broken_plugin(site: Site, value: str) -> None:
    site.add("odd", window("half"), value=value or " ")
    record = site.records()["odd"]
    assert record.status is Status.BROKEN
    assert "[project.entry-points.sldcore]" in record.error


def test_unreadable_metadata_of_another_distribution_hides_no_plugin(site: Site) -> None:
    site.add("good", window("half"))
    for name, text in (("garbage", b"\xff\xfe\x00[sldcore]"), ("noequals", b"[console_scripts]\nnonsense\n")):
        (site.folder / f"{name}-1.0.dist-info").mkdir()
        (site.folder / f"{name}-1.0.dist-info" / "entry_points.txt").write_bytes(text)
    assert names(site.plugins(), WindowKind) == ["half"]


def test_the_copy_that_comes_first_on_the_path_announces_the_plugin(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("good", window("half"), version="1.0")
    (tmp_path / "newer").mkdir()
    newer = Site(tmp_path / "newer")
    newer.add("good", window("half"), version="2.0")
    monkeypatch.syspath_prepend(str(newer.folder))
    assert [record.version for record in site.plugins().records() if record.plugin == "good"] == ["2.0"]
    newer.forget()


def test_control_characters_of_a_plugin_s_message_do_not_reach_the_terminal(site: Site) -> None:
    site.add("raises", "raise RuntimeError('red \\x1b[31m\\nline' + 'x' * 1000)\n")
    error = site.records()["raises"].error
    assert error.isprintable()
    assert len(error) < 700


def test_an_exception_whose_text_cannot_be_made_is_recorded(site: Site) -> None:
    site.add("raises", "class Bad(Exception):\n    def __str__(self):\n        raise ValueError\nraise Bad\n")
    assert "Bad: (its message cannot be read)" in site.records()["raises"].error


def test_a_plugin_with_a_manifest_is_loaded_only_for_a_kind_that_it_names(site: Site) -> None:
    manifest = "api: 1\ncontributes: {window: [half]}\n"
    module = site.add("good", window("half"), files={"sld-plugin.yaml": manifest})
    plugins = site.plugins()
    plugins.entries(GuidanceMethod)
    assert module not in sys.modules
    assert names(plugins, WindowKind) == ["half"]


@pytest.mark.parametrize("given", ["before='other'", "after=None", "before=['other']", "after=(1,)"])
def test_an_order_that_is_no_tuple_of_names_makes_the_plugin_broken(site: Site, given: str) -> None:
    kind = f"StepHookKind(name='hook', create=object, {given})"
    site.add("odd", HEAD + f"@hookimpl\ndef sld_step_hooks():\n    return [{kind}]\n")
    assert "of step hook 'hook' must be a tuple of names" in site.records()["odd"].error


def test_a_class_of_the_plugin_s_own_does_not_evade_the_check_of_its_order(site: Site) -> None:
    code = "class Own(StepHookKind):\n    def __post_init__(self):\n        return\n"
    hook = "@hookimpl\ndef sld_step_hooks():\n    return [Own(name='hook', create=object, before=None)]\n"
    site.add("odd", HEAD + code + hook)
    assert "before of step hook 'hook' must be a tuple of names" in site.records()["odd"].error


def test_pipelines_of_a_family_that_are_one_string_make_the_plugin_broken(site: Site) -> None:
    family = "FamilyKind(name='tiny', pipelines='TinyPipeline', create=object)"
    site.add("odd", HEAD + f"@hookimpl\ndef sld_families():\n    return [{family}]\n")
    assert "pipelines of family 'tiny' must be a tuple of names" in site.records()["odd"].error
