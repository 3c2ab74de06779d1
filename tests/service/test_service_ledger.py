"""The ledger: what was appended is there, in order, and readable while others write."""

from __future__ import annotations

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from made_ledgers import LEDGERS, SECRET, record, verified

from sldcore.audit import AuditLog
from sldcore.errors import ConfigurationError, SafetyFailure
from sldcore.locked_files import locked
from sldcore.provenance import library_versions
from sldcore.service.ledger import Wanted, open_ledger
from sldcore.service.ledger.chain import read_secret
from sldcore.service.ledger.reading import open_reader
from sldcore.service.ledger.records import versions_digest
from sldcore.service.ledger.rotation import rotate
from sldcore.service.settings import AuditSettings
from sldcore.types import Report

both = pytest.mark.parametrize("kind", ["sqlite", "jsonl"])


def numbers(rows: list[Any]) -> list[int]:
    return [row["seq"] for row in rows]


@both
def test_what_was_appended_is_there_newest_first(tmp_path: Path, kind: str) -> None:
    ledger = LEDGERS[kind](tmp_path / "new" / "ledger", SECRET)
    ledger.append([record(1), record(2, prompt="naïve \ud800\n")])
    ledger.append([record(3)])
    rows = ledger.page(10)
    assert numbers(rows) == [3, 2, 1]
    assert {name: rows[1][name] for name in record(2)} == record(2)
    assert rows[1]["prompt"] == "naïve \ud800\n"
    assert (ledger.head().count, ledger.head().hash) == (4, rows[0]["hash"])
    assert verified(tmp_path / "new" / "ledger").whole
    ledger.close()


@both
def test_an_empty_batch_adds_nothing(tmp_path: Path, kind: str) -> None:
    ledger = LEDGERS[kind](tmp_path / "ledger")
    before = ledger.head()
    ledger.append([])
    assert ledger.head() == before
    ledger.close()


@both
def test_pages_follow_each_other(tmp_path: Path, kind: str) -> None:
    ledger = LEDGERS[kind](tmp_path / "ledger")
    ledger.append([record(number) for number in range(1, 8)])
    assert numbers(ledger.page(3)) == [7, 6, 5]
    assert numbers(ledger.page(3, before=5)) == [4, 3, 2]
    assert numbers(ledger.page(3, before=2)) == [1]
    assert ledger.page(0) == []
    ledger.close()


@both
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(key="bert"), [2]),
        (Wanted(policy="strong"), [3]),
        (Wanted(action="blur"), [3]),
        (Wanted(flagged=True), [3]),
        (Wanted(flagged=False), [4, 2, 1]),
        (Wanted(request="req-4"), [4]),
        (Wanted(since="2026-05-01T10:00:03.000Z"), [4, 3]),
        (Wanted(until="2026-05-01T10:00:03.000Z"), [2, 1]),
        (Wanted(service=True), [4, 3, 2, 1, 0]),
    ],
)
def test_records_can_be_chosen(tmp_path: Path, kind: str, wanted: Wanted, expected: list[int]) -> None:
    ledger = LEDGERS[kind](tmp_path / "ledger")
    blurred = record(3, policy="strong", action="blur", flagged=True)
    ledger.append([record(1), record(2, key="bert"), blurred, record(4)])
    assert numbers(ledger.page(10, wanted=wanted)) == expected
    ledger.close()


@both
def test_numbers_that_json_does_not_have_become_null(tmp_path: Path, kind: str) -> None:
    ledger = LEDGERS[kind](tmp_path / "ledger")
    ledger.append([record(1, timings={"denoise": float("nan")})])
    assert ledger.page(1)[0]["timings"] == {"denoise": None}
    ledger.close()


@both
def test_only_the_owner_can_read_the_files(tmp_path: Path, kind: str) -> None:
    ledger = LEDGERS[kind](tmp_path / "ledger")
    ledger.append([record(1)])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert "ledger" in modes
    assert set(modes.values()) == {0o600}
    ledger.close()


@both
def test_a_ledger_goes_on_where_it_ended(tmp_path: Path, kind: str) -> None:
    for number in (1, 2):
        ledger = LEDGERS[kind](tmp_path / "ledger", SECRET)
        ledger.append([record(number)])
        ledger.close()
        ledger.append([record(number + 2)])
        ledger.close()
    assert [row["request"] for row in ledger.page(9)] == ["req-4", "req-2", "req-3", "req-1"]
    assert verified(tmp_path / "ledger").head == ledger.head()


@both
def test_threads_and_several_ledgers_share_a_file(tmp_path: Path, kind: str) -> None:
    ledgers = [LEDGERS[kind](tmp_path / "ledger", SECRET, timeout=60) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(ledgers[n % 2].append, [record(n), record(n + 100)]) for n in range(20)]
    assert all(job.result() is None for job in jobs)
    rows = ledgers[0].page(99)
    assert sorted(row["request"] for row in rows) == sorted(
        f"req-{n + more}" for n in range(20) for more in (0, 100)
    )
    assert verified(tmp_path / "ledger").head.count == 41
    for ledger in ledgers:
        ledger.close()


@both
def test_reading_does_not_wait_for_who_writes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS[kind](path, SECRET)
    ledger.append([record(1)])
    if kind == "sqlite":
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            assert (numbers(ledger.page(5)), verified(path).whole) == ([1], True)
    else:
        with locked(path):
            assert (numbers(ledger.page(5)), verified(path).whole) == ([1], True)
    ledger.close()


@both
def test_who_writes_does_not_wait_for_reading(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS[kind](path, SECRET, timeout=0.1)
    ledger.append([record(1), record(2)])
    _, entries = open_reader(path).stored()
    first = next(iter(entries))
    ledger.append([record(3)])
    assert first.row()["kind"] == "begin"
    assert [entry.seq for entry in entries] == [1, 2]  # of the moment at which reading began
    ledger.close()


@both
def test_another_secret_is_refused(tmp_path: Path, kind: str) -> None:
    LEDGERS[kind](tmp_path / "ledger", SECRET).close()
    with pytest.raises(ConfigurationError, match="was begun with another secret"):
        LEDGERS[kind](tmp_path / "ledger", b"x" * 32)
    with pytest.raises(ConfigurationError, match="was begun with a secret"):
        LEDGERS[kind](tmp_path / "ledger")
    LEDGERS[kind](tmp_path / "plain").close()
    with pytest.raises(ConfigurationError, match="was begun without a secret"):
        LEDGERS[kind](tmp_path / "plain", SECRET)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET record = '{}' WHERE seq = 1",
        "DELETE FROM records WHERE seq = 1",
        "INSERT OR REPLACE INTO records VALUES (1, 'x', '{}')",
        "DELETE FROM head",
        "UPDATE head SET count = 1",
        "INSERT OR REPLACE INTO head VALUES (1, 0, '', '')",
    ],
)
def test_the_database_refuses_to_forget(tmp_path: Path, statement: str) -> None:
    ledger = LEDGERS["sqlite"](tmp_path / "ledger")
    ledger.append([record(1)])
    refused = pytest.raises(sqlite3.IntegrityError, match="append-only")
    with closing(sqlite3.connect(tmp_path / "ledger")) as connection, refused:
        connection.execute(statement)
    assert numbers(ledger.page(5)) == [1]
    ledger.close()


def test_a_torn_line_is_left_alone_and_the_next_record_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS["jsonl"](path, SECRET)
    ledger.append([record(1)])
    with path.open("ab") as file:
        file.write(b'{"seq":2,"hash":"0')
    assert (verified(path).whole, verified(path).torn) == (True, 1)
    ledger.append([record(2)])
    assert numbers(ledger.page(5)) == [2, 1]
    assert (verified(path).whole, verified(path).torn, verified(path).head.count) == (True, 1, 3)


def test_records_that_a_crash_left_behind_the_head_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS["jsonl"](path, SECRET)
    ledger.append([record(1)])
    behind = (tmp_path / "ledger.head").read_bytes()
    ledger.append([record(2), record(3)])
    (tmp_path / "ledger.head").write_bytes(behind)
    assert verified(path).whole
    LEDGERS["jsonl"](path, SECRET).append([record(4)])
    assert (verified(path).whole, verified(path).head.count) == (True, 5)


@pytest.mark.parametrize("format", ["sqlite", "jsonl"])
def test_opening_records_the_start_with_its_versions(tmp_path: Path, format: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET + b"\n")
    settings = AuditSettings(path=tmp_path / "ledger", format=format, secret_file=secret)
    opened = open_ledger(settings)
    (start, begin) = opened.page(5, wanted=Wanted(service=True))
    assert (begin["kind"], start["kind"], start["versions"]) == ("begin", "start", library_versions())
    assert start["libraries"] == versions_digest(library_versions())
    assert opened.page(5) == []
    assert verified(tmp_path / "ledger").whole
    opened.close()


@pytest.mark.parametrize("asked", ["sqlite", "jsonl"])
def test_a_file_of_something_else_is_refused_and_kept(tmp_path: Path, asked: Any) -> None:
    AuditLog(tmp_path / "log").record(Report("a", 1, "medium", "d" * 64, {}))
    (tmp_path / "text").write_text("hello\nworld\n")
    with closing(sqlite3.connect(tmp_path / "database")) as other:
        other.execute("CREATE TABLE mine (x)")
    LEDGERS["jsonl" if asked == "sqlite" else "sqlite"](tmp_path / "other").close()
    for name in ("log", "text", "database", "other"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ConfigurationError, match=name):
            open_ledger(AuditSettings(path=tmp_path / name, format=asked))
        assert (tmp_path / name).read_bytes() == before


@both
def test_a_place_that_cannot_be_written_is_found_at_once(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="cannot make the ledger"):
        LEDGERS[kind](tmp_path / "file" / "ledger")


def test_a_secret_must_be_long_enough_and_loses_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"short\n")
    (tmp_path / "good").write_bytes(b"0123456789abcdef\r\n")
    assert read_secret(tmp_path / "good") == b"0123456789abcdef"
    with pytest.raises(ConfigurationError, match=r"has 5 bytes; 16 to 4096 are needed"):
        read_secret(tmp_path / "short")
    with pytest.raises(ConfigurationError, match=r"No such file"):
        read_secret(tmp_path / "none")


@both
def test_a_ledger_is_put_aside_and_continued(tmp_path: Path, kind: str) -> None:
    path, archive = tmp_path / "ledger", tmp_path / "old" / "ledger-1"
    ledger = LEDGERS[kind](path, SECRET)
    ledger.append([record(1), record(2)])
    last = ledger.head()
    ledger.close()
    with pytest.raises(ConfigurationError, match="another secret"):
        rotate(path, archive, b"x" * 32)
    assert rotate(path, archive, SECRET) == last
    ledger = LEDGERS[kind](path, SECRET)
    ledger.append([record(3)])
    (third, begin) = ledger.page(5, wanted=Wanted(service=True))
    assert third["request"] == "req-3"
    assert begin["continues"] == {"file": "ledger-1", "count": 3, "hash": last.hash}
    assert verified(path).whole
    assert verified(archive, noted=begin["continues"]["hash"]).head == last
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigurationError, match="exists"):
        rotate(path, archive, SECRET)
    ledger.close()


def test_a_database_in_use_is_not_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS["sqlite"](path, SECRET)
    ledger.append([record(1)])
    with pytest.raises(ConfigurationError, match="Stop the service"):
        rotate(path, tmp_path / "old", SECRET)
    ledger.append([record(2)])
    assert verified(path).head.count == 3
    assert not (tmp_path / "old").exists()
    ledger.close()


def test_a_ledger_whose_protection_was_taken_away_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    LEDGERS["sqlite"](path, SECRET).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER no_delete")
    with pytest.raises(SafetyFailure, match="altered: no_delete"):
        LEDGERS["sqlite"](path, SECRET)
