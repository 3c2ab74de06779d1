from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sldcore import builtin
from sldcore.catalogue import Catalogue, Entry, Provider, using
from sldcore.cli import app
from sldcore.concepts import ConceptPack, load_pack, pack_ids
from sldcore.contributions import ConceptProvider, Contribution

runner = CliRunner()
PACK = """\
id: mine
version: "1"
title: A pack
licence: MIT
culture: the people of the hills
concepts:
  - id: a
    text: x [bold]y[/bold]
  - id: b
    text: z
"""


class Plugins:
    """A source with a pack that can be read and one that cannot."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self, kind: type[Contribution]) -> list[Entry]:
        if kind is not ConceptProvider:
            return []
        packs = [
            ConceptProvider(name="mine", load=lambda: load_pack(self.path)),
            ConceptProvider(name="lost", load=lambda: load_pack(self.path.with_name("absent.yaml"))),
        ]
        return [Entry(pack, Provider("hills", "sld-hills", "1.2")) for pack in packs]

    def why_not(self, kind: type[Contribution], name: str) -> str:
        return ""

    def with_files(self, files: Sequence[Path]) -> Plugins:
        return self

    def require(self, requirements: Sequence[str]) -> None:
        return None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(PACK)
    return path


def run(*arguments: str | Path, source: Any = None) -> Result:
    with using(Catalogue(builtin.entries(), source)):
        return runner.invoke(app, ["concepts", *map(str, arguments)])


def test_list_names_every_pack_and_its_concepts() -> None:
    result = run("list")
    assert result.exit_code == 0
    assert all(word in result.stdout for word in ("inappropriate", "playground", "illegal-activity"))


def test_list_as_json_is_one_entry_per_pack() -> None:
    content = json.loads(run("list", "--json").stdout)
    assert [pack["id"] for pack in content] == list(pack_ids())
    (inappropriate,) = (pack for pack in content if pack["id"] == "inappropriate")
    assert len(inappropriate["concepts"]) == 7
    assert inappropriate["provider"].startswith("sldcore ")


def test_list_marks_a_plugin_s_pack_with_its_provider(path: Path) -> None:
    content = json.loads(run("list", "--json", source=Plugins(path)).stdout)
    (mine,) = (pack for pack in content if pack["id"] == "mine")
    assert (mine["provider"], mine["culture"]) == ("sld-hills 1.2", "the people of the hills")
    assert mine["concepts"] == ["a", "b"]


def test_a_plugin_s_pack_that_cannot_be_read_is_a_warning_and_the_others_are_listed(path: Path) -> None:
    result = run("list", source=Plugins(path))
    assert result.exit_code == 0
    assert "sld-hills 1.2" in result.stdout
    assert "warning: concept pack 'lost' of sld-hills 1.2 cannot be read" in result.stderr


def test_show_prints_texts_sources_and_limits() -> None:
    result = run("show", "inappropriate")
    assert result.exit_code == 0
    assert "an image showing harassment, humiliation" in result.stdout
    assert "source: Schramowski" in result.stdout
    assert "limits: English words" in result.stdout


def test_show_as_json_is_the_pack_itself() -> None:
    assert ConceptPack.model_validate_json(run("show", "playground", "--json").stdout) == load_pack(
        "playground"
    )


def test_show_takes_a_plugin_s_pack_by_its_name(path: Path) -> None:
    assert "culture: the people of the hills" in run("show", "mine", source=Plugins(path)).stdout


def test_show_prints_brackets_as_they_are(path: Path) -> None:
    assert "x [bold]y[/bold]" in run("show", path).stdout


def test_show_says_which_concept_is_an_embedding(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"e": torch.ones(2, 4)}, tmp_path / "e.safetensors")
    reference = "{file: e.safetensors, kind: tokens, family: stable-diffusion, width: 4}"
    path = tmp_path / "mine.yaml"
    path.write_text(f"{PACK}    embedding: {reference}\n")
    assert "e.safetensors (tokens, stable-diffusion)" in run("show", path).stdout


def test_validate_says_that_a_pack_is_valid(path: Path) -> None:
    result = run("validate", path)
    assert (result.exit_code, result.stdout) == (0, f"{path}: valid\n")


def test_validate_takes_every_pack_of_the_repository() -> None:
    packs = sorted((Path(__file__).parents[2] / "concepts").glob("*.yaml"))
    assert run("validate", *packs).exit_code == 0


BROKEN = """\
id: mine
version: 1.0
titel: A pack
licence: MIT
concepts:
  - id: a
    txt: x
    weight: -1
  - id: b
    text: z
    embedding:
      file: ../e.safetensors
      kind: tokens
      family: stable-diffusion
      width: 4
"""


def test_validate_reports_file_line_and_field_of_all_problems_of_all_files(
    tmp_path: Path, path: Path
) -> None:
    broken, torn = tmp_path / "broken.yaml", tmp_path / "torn.yaml"
    broken.write_text(BROKEN)
    torn.write_text("id: torn\nid: torn\n")
    result = run("validate", broken, path, torn)
    assert result.exit_code == 2
    assert [line.split(": ")[0:2] for line in result.stdout.splitlines()] == [
        [f"{broken}:1", "title"],
        [f"{broken}:2", "version"],
        [f"{broken}:3", "titel"],
        [f"{broken}:7", "concepts.0.txt"],
        [f"{broken}:8", "concepts.0.weight"],
        [f"{broken}:11", "concepts.1.embedding"],
        [f"{torn}:2", "duplicate key 'id', first given in line 1"],
    ]
    assert "unknown key 'titel'; did you mean 'title'?" in result.stdout
    assert result.stderr == "error: 7 problems in 2 of 3 files\n"


def test_validate_as_json_holds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PACK.replace("licence: MIT\n", ""))
    result = run("validate", path, "--json")
    assert result.exit_code == 2
    expected = {"file": str(path), "line": 1, "field": "licence", "message": "Field required"}
    assert json.loads(result.stdout) == [expected]


def test_validate_as_json_of_a_valid_pack_is_an_empty_list(path: Path) -> None:
    result = run("validate", path, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


def test_validate_of_a_file_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    result = run("validate", tmp_path / "absent.yaml")
    assert result.exit_code == 2
    assert "No such file" in result.stdout
