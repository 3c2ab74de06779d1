from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from made_plugins import Site, installed, window

from sldcore.errors import PluginError

pytestmark = pytest.mark.sldcore_plugins


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for each in installed(tmp_path, monkeypatch):
        each.add("good", window("half"), version="1.5")
        yield each


@pytest.mark.parametrize(
    "text", ["sld-good", "sld-good>=1.0,<2", "SLD_Good==1.5", "sldcore", "absent; python_version < '3'"]
)
def test_a_requirement_that_is_met_is_silent(site: Site, text: str) -> None:
    site.plugins().require([text])


def test_another_version_is_refused_with_the_installed_one_and_the_pip_command(site: Site) -> None:
    with pytest.raises(PluginError) as raised:
        site.plugins().require(["sld-good>=2"])
    assert str(raised.value) == (
        "'sld-good>=2' is required, and sld-good 1.5 is installed; run `pip install 'sld-good>=2'`"
    )


def test_a_missing_distribution_is_refused_with_the_pip_command(site: Site) -> None:
    with pytest.raises(
        PluginError, match=r"sld-absent is not installed; run `pip install 'sld-absent~=1\.0'`"
    ):
        site.plugins().require(["sld-absent~=1.0"])


def test_all_that_is_missing_is_named_at_once(site: Site) -> None:
    with pytest.raises(PluginError, match="run `pip install 'sld-a' 'sld-b'`"):
        site.plugins().require(["sld-a", "sld-good", "sld-b"])


def test_a_pre_release_that_is_installed_counts(site: Site) -> None:
    site.add("early", window("early"), version="2.0rc1")
    site.plugins().require(["sld-early>=1"])


def test_something_that_is_no_requirement_is_refused(site: Site) -> None:
    with pytest.raises(PluginError, match="'a b c' is not a requirement"):
        site.plugins().require(["a b c"])


def test_a_url_is_refused_since_it_cannot_be_checked(site: Site) -> None:
    with pytest.raises(PluginError, match=r"gives a URL, .* give versions, such as 'sld-good>=1\.0'"):
        site.plugins().require(["sld-good @ https://example.org/sld_good-1.5.whl"])


@pytest.mark.parametrize("marker", ["extra == 'gpu'", "python_version >= '3' and 'gpu' == extra"])
def test_a_marker_with_extra_is_refused_since_it_never_holds(site: Site, marker: str) -> None:
    with pytest.raises(PluginError, match=r"has a marker with 'extra'.* require 'sld-good' without it"):
        site.plugins().require([f"sld-good>=9; {marker}"])


def test_the_word_extra_as_a_value_of_a_marker_is_no_extra(site: Site) -> None:
    site.plugins().require(["sld-good>=1; platform_release != 'extra'"])
