"""``sld audit``: what it shows, what it finds, and how it ends."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sldcore.audit import AuditLog
from sldcore.cli import app
from sldcore.cli.audit_text import printable
from sldcore.service.ledger.jsonl import JsonlLedger
from sldcore.service.ledger.sqlite import SqliteLedger
from sldcore.types import Report, Verdict

runner = CliRunner()
SECRET = b"a secret of thirty-two characters"
LEDGERS: dict[str, Any] = {"sqlite": SqliteLedger, "jsonl": JsonlLedger}
both = pytest.mark.parametrize("kind", ["sqlite", "jsonl"])


def record(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "format": 1, "time": f"2024-05-0{number}T10:00:00.000Z", "kind": "image", "request": f"req-{number}", "index": 0,
        "key": "anna", "model": "playground", "prompt_sha256": "e" * 64, "seed": number, "policy": "medium",
        "policy_digest": "d" * 64, "action": "none", "flagged": False, "withheld": False, "unreviewed": False, "verdicts": [],
        "errors": [], "attempts": 1, "earlier": [], "marks": [], "rows": 150, "probes": [], "timings": {"denoise": 1.5}, **fields,
    }  # fmt: skip


VERDICT = {
    "filter": "glyphs", "version": "1.0", "flagged": True, "scores": {"explicit": 0.91}, "thresholds": {"explicit": 0.5},
    "weights": "ab", "seconds": 0.25, "shadow": False,
}  # fmt: skip
BLURRED = record(
    3, action="blur", flagged=True, withheld=True, policy="strict", verdicts=[VERDICT],
    errors=[{"source": "gore", "version": "2", "error": "TimeoutError: no answer", "step": None, "on_error": "allow"}],
    earlier=[{"seed": 2, "policy": "strict", "policy_digest": "d" * 64, "verdicts": [{**VERDICT, "shadow": True}]}],
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Four records of three requests, in the format that the test names; chained with a secret."""
    kind = (
        request.node.callspec.params.get("kind", "sqlite") if hasattr(request.node, "callspec") else "sqlite"
    )
    path = tmp_path / "ledger"
    opened = LEDGERS[kind](path, SECRET)
    opened.append([record(1), record(2, key="bert"), BLURRED, record(4, request="req-3", index=1)])
    opened.close()
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "other").write_bytes(b"another secret of some length")
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of ``sld generate --audit`` with two pictures and a torn line."""
    audit = AuditLog(tmp_path / "log")
    verdict = Verdict("glyphs", "1.0", True, {"explicit": 0.9}, {"explicit": 0.5})
    audit.record(Report("a", 1, "medium", "d" * 64, {}))
    audit.record(Report("b", 2, "medium", "d" * 64, {}, (verdict,), "blur"))
    with (tmp_path / "log").open("ab") as file:
        file.write(b"torn")
    return tmp_path / "log"


def run(command: str, ledger: Path, *arguments: str | Path, code: int = 0) -> str:
    """Standard output; or what went to standard error, if the command is expected to fail with bad input."""
    result = runner.invoke(app, ["audit", command, "--ledger", str(ledger), *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr if code == 2 else result.stdout


def listed(ledger: Path, *arguments: str) -> list[int]:
    return [row["seq"] for row in json.loads(run("list", ledger, "--json", *arguments))]


@both
def test_list_shows_a_line_for_each_with_the_newest_last(ledger: Path, kind: str) -> None:
    heading, *lines = run("list", ledger).splitlines()
    assert heading.split() == ["seq", "time", "key", "what", "policy", "action", "flagged", "by"]
    assert lines[0].split() == ["1", "2024-05-01", "10:00:00", "anna", "image", "medium", "none"]
    assert lines[2].split() == ["3", "2024-05-03", "10:00:00", "anna", "image", "strict", "blur", "explicit"]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [1, 2, 3, 4]),
        (("--limit", "2"), [3, 4]),
        (("--limit", "0", "--service"), [0, 1, 2, 3, 4]),
        (("--key", "bert"), [2]),
        (("--policy", "strict"), [3]),
        (("--action", "blur"), [3]),
        (("--flagged",), [3]),
        (("--not-flagged",), [1, 2, 4]),
        (("--since", "2024-05-02"), [2, 3, 4]),
        (("--since", "2024-05-02T10:00", "--until", "2024-05-03T12:00+02:00"), [2]),
        (("--until", "1d", "--since", "9999d"), [1, 2, 3, 4]),
    ],
)
def test_list_chooses(ledger: Path, arguments: tuple[str, ...], expected: list[int]) -> None:
    assert listed(ledger, *arguments) == expected


def test_what_is_shown_fits_into_80_columns(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("list", ledger) + run("show", ledger, "3")
    assert max(map(len, shown.splitlines())) <= 80
    assert "explicit" in shown


def test_nothing_to_list_is_said(ledger: Path) -> None:
    result = runner.invoke(app, ["audit", "list", "--ledger", str(ledger), "--key", "carla"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no record is like that\n")


@both
def test_show_says_everything_about_a_record(ledger: Path, kind: str) -> None:
    shown = run("show", ledger, "3")
    for words in (
        "request         req-3",
        "seed            3",
        "action          blur",
        "verdict         glyphs 1.0: flagged (explicit 0.91 of 0.5)",
        "error           gore 2: TimeoutError: no answer",
        "earlier         seed 2, policy strict",
        "glyphs 1.0: flagged, only watching (explicit 0.91 of 0.5)",
        "timings         denoise 1.500 s",
    ):
        assert words in shown
    assert shown.count("\nhash ") == 1


@both
def test_show_takes_a_request_with_all_its_pictures(ledger: Path, kind: str) -> None:
    rows = json.loads(run("show", ledger, "req-3", "--json"))
    assert [(row["seq"], row["index"]) for row in rows] == [(3, 0), (4, 1)]
    assert run("show", ledger, "req-3").count("request         req-3") == 2


@pytest.mark.parametrize("which", ["5", "99", "req-9", "1" * 30])
def test_show_says_what_is_not_there(ledger: Path, which: str) -> None:
    assert "has no request and no record" in run("show", ledger, which, code=2)


def test_what_a_prompt_would_do_to_a_terminal_is_escaped(tmp_path: Path) -> None:
    opened = SqliteLedger(tmp_path / "ledger")
    opened.append([record(1, prompt="\x1b[31mred\n[bold]x", key="a\x1b[0m")])
    opened.close()
    assert "prompt          \\x1b[31mred\\n[bold]x" in run("show", tmp_path / "ledger", "1")
    assert "\x1b" not in run("list", tmp_path / "ledger")


@pytest.mark.parametrize(
    "verdicts", [3, [3], [{"flagged": True}], {"a": 1}, [{"flagged": True, "scores": None}]]
)
def test_records_of_another_form_are_shown_as_they_are(tmp_path: Path, verdicts: Any) -> None:
    opened = SqliteLedger(tmp_path / "ledger")
    opened.append([record(1, verdicts=verdicts)])
    opened.close()
    assert run("list", tmp_path / "ledger").splitlines()[1].split()[-1] == "?"
    assert printable(verdicts) in run("show", tmp_path / "ledger", "1")


@both
def test_verify_prints_what_to_note(ledger: Path, tmp_path: Path, kind: str) -> None:
    last = json.loads(run("show", ledger, "4", "--json"))[0]["hash"]
    shown = run("verify", ledger, "--secret-file", tmp_path / "secret")
    assert shown == f"{ledger} is whole: 5 records\nhead {last}\n"
    assert run("verify", ledger, "--secret-file", tmp_path / "secret", "--head", last) == shown
    document = json.loads(run("verify", ledger, "--secret-file", tmp_path / "secret", "--json"))
    assert document == {
        "whole": True, "count": 5, "head": last, "torn": 0, "broken": None, "continues": None,
    }  # fmt: skip


def test_verify_names_the_first_broken_record(ledger: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    run("export", ledger, "--out", lines, "--format", "jsonl", "--service")
    lines.write_text(lines.read_text().replace('"key":"bert"', '"key":"anna"'))
    shown = run("verify", lines, "--secret-file", tmp_path / "secret", code=1)
    assert "is broken at record 2, changed: the record, its number or its hash" in shown
    assert "the 2 records before it are whole" in shown
    broken = json.loads(run("verify", lines, "--secret-file", tmp_path / "secret", "--json", code=1))
    assert (broken["whole"], broken["broken"]["seq"], broken["broken"]["how"]) == (False, 2, "changed")


def test_verify_misses_a_head_that_was_noted(ledger: Path, tmp_path: Path) -> None:
    shown = run("verify", ledger, "--secret-file", tmp_path / "secret", "--head", "a" * 64, code=1)
    assert "no record has the head that was noted" in shown


def test_verify_tells_a_wrong_secret_from_a_missing_one(ledger: Path, tmp_path: Path) -> None:
    assert "chained with a secret; give it with --secret-file" in run("verify", ledger, code=2)
    assert "wrong key" in run("verify", ledger, "--secret-file", tmp_path / "other", code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--head", "abc"], "is no head"),
        (["--secret-file", "/nonexistent"], "cannot read the ledger's secret"),
    ],
)
def test_verify_refuses_bad_input(ledger: Path, arguments: list[str], message: str) -> None:
    assert message in run("verify", ledger, *arguments, code=2)


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_file_that_is_no_ledger_is_bad_input(tmp_path: Path, command: str) -> None:
    (tmp_path / "text").write_text("hello\n")
    assert "is neither a ledger nor an audit log" in run(command, tmp_path / "text", code=2)
    assert "No such file" in run(command, tmp_path / "none", code=2)
    assert "Is a directory" in run(command, tmp_path, code=2)


@pytest.mark.parametrize("time", ["yesterday", "999999d"])
def test_a_time_that_is_none_is_bad_input(ledger: Path, time: str) -> None:
    assert "is no time" in run("list", ledger, "--since", time, code=2)


@both
def test_an_export_of_everything_verifies_with_its_head(ledger: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "new" / "out.jsonl"
    told = run("export", ledger, "--out", out, "--format", "jsonl", "--service")
    head = told.split()[-1]
    assert told == f"5 records in {out}; head {head}\n"
    assert "whole" in run("verify", out, "--secret-file", tmp_path / "secret", "--head", head)
    assert "can be told only with" in run("verify", out, "--secret-file", tmp_path / "secret", code=1)
    assert listed(out) == [1, 2, 3, 4]


@both
def test_an_export_as_a_table(ledger: Path, tmp_path: Path, kind: str) -> None:
    told = run("export", ledger, "--out", tmp_path / "out.csv", "--flagged")
    assert told == f"1 records in {tmp_path / 'out.csv'}\n"
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["seq"], row["key"], row["action"], row["flagged"], row["flagged_by"]) == (
        "3", "anna", "blur", "1", "explicit",
    )  # fmt: skip
    assert json.loads(row["verdicts"]) == [VERDICT]


def test_a_prompt_is_no_formula_in_a_table(tmp_path: Path) -> None:
    prompts = ["=1+1", "+1", "-1", "@x", "\tx", "harmless"]
    opened = SqliteLedger(tmp_path / "ledger")
    opened.append([record(1, prompt=prompt) for prompt in prompts])
    opened.close()
    run("export", tmp_path / "ledger", "--out", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        written = [row["prompt"] for row in csv.DictReader(file)]
    assert written == [*(f"'{prompt}" for prompt in prompts[:-1]), "harmless"]


def test_an_export_does_not_replace_the_ledger(ledger: Path) -> None:
    before = ledger.read_bytes()
    assert "is the ledger itself" in run("export", ledger, "--out", ledger, code=2)
    assert ledger.read_bytes() == before


def test_an_export_that_cannot_be_written_is_said(ledger: Path, tmp_path: Path) -> None:
    assert "cannot write" in run("export", ledger, "--out", tmp_path / "secret" / "out", code=2)


@both
def test_rotate_puts_aside_and_verify_says_what_it_continues(ledger: Path, tmp_path: Path, kind: str) -> None:
    secret = ("--secret-file", tmp_path / "secret")
    told = run("rotate", ledger, tmp_path / "old", *secret)
    head = told.splitlines()[0].split()[-1]
    assert told.startswith(f"{tmp_path / 'old'}: 5 records, head {head}\n")
    shown = run("verify", ledger, *secret).splitlines()
    assert shown[0] == f"{ledger} is whole: 1 records"
    assert shown[2:] == ["it continues old, 5 records:", f"head {head}"]
    assert "whole" in run("verify", tmp_path / "old", *secret, "--head", head)


def test_the_log_of_generate_can_be_listed_shown_and_exported(log: Path, tmp_path: Path) -> None:
    assert listed(log) == [0, 1]
    assert listed(log, "--flagged") == [1]
    assert "explicit" in run("list", log)
    assert "not chained" in run("show", log, "1")
    assert run("export", log, "--out", tmp_path / "out.csv") == f"2 records in {tmp_path / 'out.csv'}\n"


def test_the_log_of_generate_cannot_be_verified(log: Path) -> None:
    said = run("verify", log, code=2)
    assert "is not chained: 2 records can be read, 1 lines are torn" in said
    assert "cannot be told" in said
