"""The ledger when things break: nothing that was recorded is lost, nothing counts as recorded that is not, and it recovers."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from made_ledgers import LEDGERS, SECRET, record, verified

from sldcore.errors import SafetyFailure
from sldcore.locked_files import locked
from sldcore.service.ledger.chain import Entry
from sldcore.service.ledger.jsonl_reading import HEAD_BYTES
from sldcore.service.ledger.reading import open_reader

both = pytest.mark.parametrize("kind", ["sqlite", "jsonl"])
BEGIN = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from made_ledgers import LEDGERS, SECRET, record
from sldcore.errors import SafetyFailure

kind, path = sys.argv[2], Path(sys.argv[3])
ledger = LEDGERS[kind](path, SECRET, timeout=60)
"""
WRITER = """
number = int(sys.argv[4])
while True:
    ledger.append([record(number, padding="x" * (number % 900)), record(number + 1)])
    print(number, flush=True)
    number += 2
"""
FILLER = """
def fill(number):
    # A disk without room for a large record may have some for a small one.
    while True:
        try:
            ledger.append([record(number, padding="x" * 3000), record(number + 1)])
        except SafetyFailure as problem:
            print(number, problem)
            return number
        number += 2

def recovered(number):
    ledger.append([record(number + 1000)])
"""
LIMITED = """
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
number = fill(0)
fill(number)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
recovered(number)
"""
FULL_DISK = """
ballast = path.with_name("ballast")
ballast.write_bytes(bytes(100_000))
number = fill(0)
fill(number)
ballast.unlink()
recovered(number)
import shutil
for file in path.parent.iterdir():
    shutil.copy(file, sys.argv[4])
"""


def script(code: str, kind: str, path: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", BEGIN + code, str(Path(__file__).parent), kind, str(path), *more]


def requests(path: Path) -> list[str]:
    """Requests of all records, oldest first, the ledger's own left out."""
    entries = [entry for entry in open_reader(path).stored()[1] if isinstance(entry, Entry)]
    return [entry.row()["request"] for entry in entries[1:]]


@both
def test_killing_those_who_write_loses_nothing_that_they_had_recorded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger"
    LEDGERS[kind](path, SECRET).close()
    writers = [
        subprocess.Popen(script(WRITER, kind, path, str(start)), stdout=subprocess.PIPE, text=True)
        for start in (0, 100_000, 200_000)
    ]
    finished: list[str] = []
    for count, writer in enumerate(writers, 1):
        assert writer.stdout is not None
        finished += [writer.stdout.readline() for _ in range(5 * count)]
        os.kill(writer.pid, signal.SIGKILL)
        finished += writer.stdout.readlines()
        writer.stdout.close()
        writer.wait()
    result = verified(path)
    assert result.broken is None
    assert result.torn <= 3
    there = requests(path)
    assert len(finished) >= 30
    assert {f"req-{int(line) + more}" for line in finished for more in (0, 1)} <= set(there)
    assert (
        len(there) == len(set(there)) <= 2 * len(finished) + 6
    )  # of each, one batch may have been written and not told
    ledger = LEDGERS[kind](path, SECRET)
    ledger.append([record(9)])
    ledger.close()
    assert (verified(path).whole, requests(path)) == (True, [*there, "req-9"])


def check_recovery(path: Path, told: str) -> None:
    """The batch that failed, twice, is not there; what came before is, and what came when there was room."""
    numbers = [int(line.split()[0]) for line in told.splitlines()]
    assert len(numbers) == 2
    assert numbers[0] > 0
    assert requests(path) == [*(f"req-{number}" for number in range(numbers[1])), f"req-{numbers[0] + 1000}"]
    result = verified(path)
    assert (result.whole, result.torn) == (True, 0)
    for line in told.splitlines():
        assert f"cannot write the ledger {path.name}" in line.replace(f"{path.parent}/", "")
        assert "Nothing that leaves no record in it is answered" in line


@both
def test_files_that_may_not_grow_fail_closed_and_recover(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger"
    done = subprocess.run(
        script(FILLER + LIMITED, kind, path), capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    check_recovery(path, done.stdout)


@both
def test_a_full_disk_fails_closed_and_recovers(tmp_path: Path, kind: str) -> None:
    small, copy = tmp_path / "small", tmp_path / "copy"
    small.mkdir()
    copy.mkdir()
    mount = f'mount -t tmpfs -o size=400k none {small} && exec "$@"'
    alone = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    done = subprocess.run(
        [*alone, *script(FILLER + FULL_DISK, kind, small / "ledger", str(copy))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    check_recovery(copy / "ledger", done.stdout.replace(str(small), str(copy)))


@both
def test_a_ledger_that_stays_locked_fails_closed_and_recovers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS[kind](path, SECRET, timeout=0.05)
    if kind == "sqlite":
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(SafetyFailure, match="another process has locked it"):
                ledger.append([record(1)])
    else:
        with locked(path), pytest.raises(SafetyFailure, match="another process has locked it"):
            ledger.append([record(1)])
    ledger.append([record(2)])
    assert requests(path) == ["req-2"]
    ledger.close()


@both
def test_a_ledger_that_is_moved_away_fails_closed_until_it_is_back(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS[kind](path, SECRET)
    ledger.append([record(1)])
    path.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(SafetyFailure, match="No such file"):
            ledger.append([record(2)])
    assert not path.exists()
    (tmp_path / "away").rename(path)
    ledger.append([record(3)])
    assert requests(path) == ["req-1", "req-3"]
    assert verified(path).whole
    ledger.close()


@both
def test_an_older_copy_put_in_its_place_fails_closed(tmp_path: Path, kind: str) -> None:
    path, old = tmp_path / "ledger", tmp_path / "old"
    ledger = LEDGERS[kind](path, SECRET)
    ledger.append([record(1)])
    ledger.close()
    old.mkdir()
    for file in [*tmp_path.glob("ledger*")]:
        shutil.copy(file, old)
    ledger.append([record(2)])
    ledger.close()
    for file in old.iterdir():
        file.replace(tmp_path / file.name)
    for _ in range(2):
        with pytest.raises(SafetyFailure, match=r"replaced|gone at its end"):
            ledger.append([record(3)])
    assert requests(path) == ["req-1"]
    ledger.close()


@both
def test_another_ledger_put_in_its_place_fails_closed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS[kind](path, SECRET)
    ledger.append([record(1)])
    ledger.close()
    other = LEDGERS[kind](tmp_path / "other", SECRET)
    other.append([record(7), record(8)])
    other.close()
    for file in [*tmp_path.glob("other*")]:
        file.replace(tmp_path / file.name.replace("other", "ledger"))
    with pytest.raises(SafetyFailure, match="replaced"):
        ledger.append([record(2)])
    assert requests(path) == ["req-7", "req-8"]
    ledger.close()


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))


def test_a_damaged_database_fails_closed(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS["sqlite"](path, SECRET)
    ledger.append([record(1)])
    ledger.close()
    damage(path)
    with pytest.raises(SafetyFailure, match="cannot write the ledger"):
        ledger.append([record(2)])
    with pytest.raises(SafetyFailure, match="cannot read the ledger"):
        ledger.page(3)
    with pytest.raises(SafetyFailure, match=str(path)):
        LEDGERS["sqlite"](path, SECRET)
    ledger.close()


def test_something_else_in_its_place_fails_closed(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS["sqlite"](path, SECRET)
    ledger.close()
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE mine (x)")
    with pytest.raises(SafetyFailure, match="is a database, but no ledger"):
        ledger.append([record(2)])
    ledger.close()


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_lines_that_are_cut_off_fail_closed(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS["jsonl"](path, SECRET)
    ledger.append([record(1), record(2)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:keep]))
    with pytest.raises(SafetyFailure, match="gone"):
        ledger.append([record(3)])
    with pytest.raises(SafetyFailure, match="gone"):
        LEDGERS["jsonl"](path, SECRET)
    assert path.read_bytes() == b"".join(lines[:keep])


@pytest.mark.parametrize("part", ["line", "head"])
def test_what_cannot_be_written_whole_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    path = tmp_path / "ledger"
    ledger = LEDGERS["jsonl"](path, SECRET)
    ledger.append([record(1)])
    before = path.read_bytes()
    write = os.write

    fails = [True]

    def short(file: int, content: bytes) -> int:
        if (len(content) == HEAD_BYTES) == (part == "head") and fails:
            fails.pop()
            return write(file, content[:100])
        return write(file, content)

    with monkeypatch.context() as patches:
        patches.setattr(os, "write", short)
        with pytest.raises(SafetyFailure, match="is the disk full"):
            ledger.append([record(2), record(3)])
    assert path.read_bytes() == before
    ledger.append([record(4)])
    assert (requests(path), verified(path).whole, verified(path).torn) == (["req-1", "req-4"], True, 0)


def test_a_batch_is_in_the_database_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger: Any = LEDGERS["sqlite"](path, SECRET)
    ledger.append([record(1)])

    def no_room(head: Any) -> str:
        raise OSError("no room")

    chain = ledger._chain
    ledger._chain = type(
        "Chain", (), {"extended": chain.extended, "sealed": chain.sealed, "seal": staticmethod(no_room)}
    )()
    with pytest.raises(SafetyFailure, match="no room"):
        ledger.append([record(2), record(3)])
    ledger._chain = chain
    ledger.append([record(4)])
    assert requests(path) == ["req-1", "req-4"]
    ledger.close()
