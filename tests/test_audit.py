"""The audit log: every whole line can be read, whatever happened to whoever wrote it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sldcore.audit import AuditLog, read_audit
from sldcore.errors import ConfigurationError, SafetyFailure
from sldcore.types import Attempt, Failure, Report, Verdict

VERDICT = Verdict(
    "nsfw",
    "1.2",
    True,
    {"sexual": 0.9},
    {"sexual": 0.8},
    "saw a knight",
    weights="0123abcd",
    seconds=0.25,
    shadow=True,
)
WRITER = """
import sys
from sldcore.audit import AuditLog
from sldcore.types import Report

log = AuditLog(sys.argv[1], max_bytes=int(sys.argv[3]))
count = int(sys.argv[4])
seed = 0
while seed != count:
    log.record(Report(sys.argv[2] * (1 + seed % 50), seed, "medium", "d" * 64, {}))
    print(seed, flush=True)
    seed += 1
"""


def report(prompt: str = "a red knight", seed: int = 7, **fields: Any) -> Report:
    return Report(prompt, seed, "medium", "d" * 64, {"inappropriate": ("hate, blood",)}, **fields)


def only(path: Path) -> Mapping[str, Any]:
    (record,) = read_audit(path).records
    return record


def seeds(path: Path) -> list[int]:
    return [record["seed"] for record in read_audit(path).records]


def writer(path: Path, prompt: str, max_bytes: int = 2**26, count: int = -1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), prompt, str(max_bytes), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_line_says_what_happened(tmp_path: Path) -> None:
    failure = Failure("gore", "2.0", "TimeoutError: no answer", 3, "allow")
    earlier = Attempt(5, "weak", "e" * 64, (VERDICT,))
    log = AuditLog(tmp_path / "audit.jsonl")
    log.record(
        report(
            verdicts=(VERDICT,),
            errors=(failure,),
            action="none",
            attempts=2,
            earlier=(earlier,),
            marks=("label",),
        ),
        {
            "model": "playground",
            "device": "cpu",
            "timings": {"denoise": 1.5},
            "arguments": {"negative_prompt": "x"},
        },
    )
    record = dict(only(tmp_path / "audit.jsonl"))
    del record["time"]
    said = {
        "filter": "nsfw", "version": "1.2", "flagged": True, "scores": {"sexual": 0.9}, "thresholds": {"sexual": 0.8},
        "weights": "0123abcd", "seconds": 0.25, "shadow": True,
    }  # fmt: skip
    assert record == {
        "format": 1,
        "prompt_sha256": sha256(b"a red knight").hexdigest(),
        "seed": 7,
        "policy": "medium",
        "policy_digest": "d" * 64,
        "action": "none",
        "flagged": False,
        "withheld": False,
        "unreviewed": True,
        "verdicts": [said],
        "errors": [
            {
                "source": "gore",
                "version": "2.0",
                "error": "TimeoutError: no answer",
                "step": 3,
                "on_error": "allow",
            }
        ],
        "attempts": 2,
        "earlier": [{"seed": 5, "policy": "weak", "policy_digest": "e" * 64, "verdicts": [said]}],
        "marks": ["label"],
        "rows": 0,
        "probes": [],
        "timings": {"review": 0.5, "denoise": 1.5},
        "model": "playground",
        "device": "cpu",
    }


def test_times_are_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Lima")
    time.tzset()
    try:
        before = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        AuditLog(tmp_path / "log").record(report())
        after = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    finally:
        monkeypatch.undo()
        time.tzset()
    written = only(tmp_path / "log")["time"]
    assert written.endswith("Z")
    assert before <= written[:19] <= after


@pytest.mark.parametrize("prompt", ["a naked knight", "naïve\nknight", "half a pair \ud800"])
def test_no_part_of_the_prompt_is_in_the_log(tmp_path: Path, prompt: str) -> None:
    errors = (Failure("terms", "1", f"ValueError: cannot read {prompt!r}, {prompt}"),)
    verdict = Verdict("terms", "1", True, reason=f"term in {prompt}")
    AuditLog(tmp_path / "log").record(report(prompt, verdicts=(verdict,), errors=errors))
    assert b"knight" not in (tmp_path / "log").read_bytes()
    assert b"pair" not in (tmp_path / "log").read_bytes()


def test_a_salt_changes_the_hash_and_is_not_in_the_log(tmp_path: Path) -> None:
    AuditLog(tmp_path / "log", salt=b"pepper").record(report())
    assert only(tmp_path / "log")["prompt_sha256"] == sha256(b"peppera red knight").hexdigest()
    assert b"pepper" not in (tmp_path / "log").read_bytes()


def test_plain_prompts_and_reasons_are_there_when_asked_for(tmp_path: Path) -> None:
    AuditLog(tmp_path / "log", plain_prompts=True).record(report(verdicts=(VERDICT,)))
    record = only(tmp_path / "log")
    assert (record["prompt"], record["verdicts"][0]["reason"]) == ("a red knight", "saw a knight")


def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    AuditLog(tmp_path / "new" / "log").record(report())
    assert stat.S_IMODE((tmp_path / "new" / "log").stat().st_mode) == 0o600


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.text(st.characters(), max_size=40), min_size=1, max_size=6),
    cut=st.integers(min_value=1, max_value=10_000),
    garbage=st.binary(max_size=20).filter(lambda junk: b"\n" not in junk),
)
def test_a_line_torn_anywhere_costs_that_line_only(
    tmp_path: Path, prompts: list[str], cut: int, garbage: bytes
) -> None:
    path = tmp_path / "log"
    path.unlink(missing_ok=True)
    log = AuditLog(path, plain_prompts=True)
    for prompt in prompts:
        log.record(report(prompt))
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1 if len(prompts) > 1 else 0
    kept = last + cut % (len(whole) - 1 - last)  # everything but the last line's end
    path.write_bytes(whole[:kept] + garbage)
    log.record(report("after"))
    audit = read_audit(path)
    assert [record["prompt"] for record in audit.records] == [*prompts[:-1], "after"]
    assert audit.torn == (1 if whole[last:kept] + garbage else 0)


def test_a_torn_line_at_the_end_is_counted_before_anything_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    AuditLog(path).record(report())
    with path.open("ab") as file:
        file.write(b'{"format": 1, "pro')
    assert (len(read_audit(path).records), read_audit(path).torn) == (1, 1)


def test_a_line_that_lacks_its_newline_alone_is_read_and_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AuditLog(path)
    log.record(report(seed=1))
    path.write_bytes(path.read_bytes()[:-1])
    assert seeds(path) == [1]
    log.record(report(seed=2))
    assert seeds(path) == [1, 2]
    assert read_audit(path).torn == 0


@pytest.mark.parametrize("line", [b"[]", b"1", b"{}", b'{"format": 99}', b"\0\0\0", b"\xff", b"[" * 100_000])
def test_a_line_of_something_else_is_torn(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(line + b"\n")
    AuditLog(path).record(report())
    assert (len(read_audit(path).records), read_audit(path).torn) == (1, 1)


def test_a_full_file_gets_a_number_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AuditLog(path)
    log.record(report(seed=0))
    length = path.stat().st_size
    log = AuditLog(path, max_bytes=2 * length)
    for seed in range(1, 25):
        log.record(report(seed=seed % 10))  # lines of one length
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["log", *(f"log.{n}" for n in range(1, 13))]
    )
    assert all(file.stat().st_size <= 2 * length for file in tmp_path.iterdir())
    assert seeds(path) == [0, *(seed % 10 for seed in range(1, 25))]


def test_a_line_longer_than_a_file_may_be_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AuditLog(path, max_bytes=10)
    for seed in range(3):
        log.record(report(seed=seed))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert seeds(path) == [0, 1, 2]


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    others = ["log.0", "log.07", "log.1x", "xlog.9", "log.gz"]
    for name in others:
        (tmp_path / name).write_text("other\n")
    log = AuditLog(path, max_bytes=10)
    log.record(report(seed=1))
    log.record(report(seed=2))
    assert (seeds(path), read_audit(path).torn) == ([1, 2], 0)
    assert all((tmp_path / name).read_text() == "other\n" for name in others)
    assert (tmp_path / "log.1").exists()


def test_threads_share_a_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log", max_bytes=3000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: log.record(report(seed=seed)), range(120)))
    assert (sorted(seeds(tmp_path / "log")), read_audit(tmp_path / "log").torn) == (list(range(120)), 0)


def test_processes_share_a_log_and_its_numbering(tmp_path: Path) -> None:
    path = tmp_path / "log"
    processes = [writer(path, name, max_bytes=4000, count=40) for name in "abc"]
    for process in processes:
        process.communicate(timeout=120)
    audit = read_audit(path)
    assert audit.torn == 0
    assert sorted(record["seed"] for record in audit.records) == sorted([*range(40)] * 3)
    assert (tmp_path / "log.2").exists()


def test_a_log_that_is_read_while_it_is_filled_has_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "log"
    process = writer(path, "x", max_bytes=3000, count=400)
    assert process.stdout is not None
    process.stdout.readline()
    while process.poll() is None:
        audit = read_audit(path) if path.exists() else None
        if audit is not None:
            assert (audit.torn, [record["seed"] for record in audit.records]) == (
                0,
                [*range(len(audit.records))],
            )
    process.stdout.close()
    assert seeds(path) == list(range(400))


def test_killing_the_writer_loses_no_line_that_it_had_finished(tmp_path: Path) -> None:
    path = tmp_path / "log"
    finished = 0
    for turn in range(4):
        process = writer(path, "long prompt " * 200, max_bytes=200_000)
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first
        time.sleep(0.02 + 0.037 * turn)
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read()
        process.stdout.close()
        process.wait()
        finished += 1 + rest.count("\n")
        audit = read_audit(path)
        assert finished <= len(audit.records) <= finished + turn + 1  # the one being written may be whole
        assert audit.torn <= turn + 1
        assert audit.records[-1]["seed"] >= rest.count("\n")
    AuditLog(path).record(report(seed=-1))
    assert seeds(path)[-1] == -1


def test_a_full_disk_is_an_error_and_the_next_line_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path / "log")
    write = os.write
    with monkeypatch.context() as patches:
        patches.setattr(os, "write", lambda file, content: write(file, content[:30]))
        with pytest.raises(SafetyFailure, match="only 30 of"):
            log.record(report(seed=1))
    log.record(report(seed=2))
    assert (seeds(tmp_path / "log"), read_audit(tmp_path / "log").torn) == ([2], 1)


def test_a_place_that_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot write the audit log"):
        AuditLog(tmp_path)


def test_a_device_is_no_audit_log() -> None:
    with pytest.raises(ConfigurationError, match="no regular file"):
        AuditLog(os.devnull)


def test_there_must_be_room_for_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="max_bytes is 0"):
        AuditLog(tmp_path / "log", max_bytes=0)


def test_reading_a_log_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the audit log .*No such file"):
        read_audit(tmp_path / "log")


def test_a_crash_after_a_file_was_put_aside_loses_nothing(tmp_path: Path) -> None:
    AuditLog(tmp_path / "log").record(report(seed=4))
    (tmp_path / "log").rename(tmp_path / "log.1")
    assert seeds(tmp_path / "log") == [4]


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    AuditLog(tmp_path / "log").record(report(verdicts=(Verdict("x", "1", False, {"a": float("nan")}),)))
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["verdicts"][0]["scores"] == {"a": None}
