from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from sldcore.cli import app
from sldcore.concepts import ConceptPack, load_pack

runner = CliRunner()


def test_list_names_every_pack_and_its_concepts() -> None:
    result = runner.invoke(app, ["concepts", "list"])
    assert result.exit_code == 0
    assert all(word in result.stdout for word in ("inappropriate", "playground", "illegal-activity"))


def test_list_as_json_is_one_entry_per_pack() -> None:
    content = json.loads(runner.invoke(app, ["concepts", "list", "--json"]).stdout)
    assert [pack["id"] for pack in content] == ["inappropriate", "playground"]
    assert len(content[0]["concepts"]) == 7


def test_show_prints_texts_sources_and_limits() -> None:
    result = runner.invoke(app, ["concepts", "show", "inappropriate"])
    assert result.exit_code == 0
    assert "an image showing harassment, humiliation" in result.stdout
    assert "source: Schramowski" in result.stdout
    assert "limits: English words" in result.stdout


def test_show_as_json_is_the_pack_itself() -> None:
    result = runner.invoke(app, ["concepts", "show", "playground", "--json"])
    assert ConceptPack.model_validate_json(result.stdout) == load_pack("playground")


def test_show_prints_brackets_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "id: mine\nversion: '1'\ntitle: A\nlicence: MIT\nconcepts: [{id: a, text: 'x [bold]y[/bold]'}]\n"
    )
    assert "x [bold]y[/bold]" in runner.invoke(app, ["concepts", "show", str(path)]).stdout
