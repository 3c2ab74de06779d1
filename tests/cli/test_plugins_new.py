from __future__ import annotations

import ast
import os
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sldcore.cli import app
from sldcore.cli.plugins_new import check_name, render, write_plugin
from sldcore.documents import parse_mapping
from sldcore.errors import PluginError
from sldcore.packs import ConceptPack

PLUGINS = Path(__file__).parent.parent.parent / "plugins"
AWKWARD = ["it's: a #title", "Ängste & Höhen", "{{name}} % {0} <b>", "- yes", "a 'b' c"]


def test_sld_template_is_what_the_command_renders() -> None:
    folder = PLUGINS / "sld-template"
    found = {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.parts)
    }
    assert found == render("sld-template")


def test_no_placeholder_is_left() -> None:
    for path, text in render("my-concepts").items():
        assert "{{" not in text, path
        assert "PACKAGE" not in path


@pytest.mark.parametrize(
    ("name", "package", "short"),
    [("my-concepts", "my_concepts", "my-concepts"), ("sld-dark2", "sld_dark2", "dark2")],
)
def test_what_it_contributes_is_named_after_it_without_the_prefix(
    name: str, package: str, short: str
) -> None:
    files = render(name)
    manifest = parse_mapping(files[f"src/{package}/sld-plugin.yaml"], source="manifest")
    assert manifest["contributes"] == {"concept pack": [short], "window": [f"{short}-late"]}
    assert ConceptPack.parse(files[f"src/{package}/concepts.yaml"]).id == short


@pytest.mark.parametrize("text", AWKWARD)
def test_title_and_author_arrive_as_they_were_given(text: str) -> None:
    files = render("my-concepts", title=text, author=text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["description"] == f"{text}: a plugin for sldcore."
    assert project["authors"] == [{"name": text}]
    assert ConceptPack.parse(files["src/my_concepts/concepts.yaml"]).title == text
    docstring = ast.get_docstring(ast.parse(files["src/my_concepts/__init__.py"]))
    assert docstring is not None and docstring.startswith(f"{text}: a window")


@pytest.mark.parametrize("text", ['say "hello"', "back\\slash", "two\nlines", " ", "bell\a"])
def test_a_title_that_would_break_a_file_is_refused(text: str) -> None:
    with pytest.raises(PluginError, match="title must be one line"):
        render("my-concepts", title=text)


@pytest.mark.parametrize(
    "name",
    ["My-Concepts", "my_concepts", "-x", "x-", "a--b", "2fast", "a/b", "../up", "", "a.b", "x" * 61, "ä"],
)
def test_a_name_that_is_not_one_of_a_distribution_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match="lower-case letters and digits"):
        check_name(name)


@pytest.mark.parametrize("name", ["torch", "sldcore", "class", "json"])
def test_a_name_that_python_has_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match="could not be imported"):
        check_name(name)


@pytest.mark.parametrize("name", ["inappropriate", "sld-inappropriate"])
def test_the_name_of_a_pack_of_the_core_is_refused(name: str) -> None:
    with pytest.raises(PluginError, match="has a concept pack 'inappropriate' itself"):
        check_name(name)


def test_the_command_writes_the_plugin_and_says_what_is_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plugins", "new", "my-concepts", "--out", str(tmp_path / "deep")])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "deep" / "my-concepts"
    assert f"cd {folder}" in result.stdout
    for path, text in render("my-concepts").items():
        assert (folder / path).read_bytes() == text.encode()


def test_nothing_but_the_plugin_is_in_the_folder(tmp_path: Path) -> None:
    write_plugin(tmp_path / "mine", render("mine"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work").write_text("of years")
    with pytest.raises(PluginError, match="exists already"):
        write_plugin(tmp_path / "mine", render("mine"))
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "work"]


def test_a_place_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PluginError, match="choose another --out"):
        write_plugin(tmp_path / "file" / "mine", render("mine"))


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(PluginError):
        write_plugin(tmp_path / "mine", render("mine"))
    assert list(tmp_path.iterdir()) == []
