"""The whole service as a process: mixed load, a worker that is killed, SIGTERM under load, and the audit of all that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from service_load import POLICIES, STEPS, Asked, Watched, alone, answers, difference, engines, requests
from service_process import ServiceProcess, service
from typer.testing import CliRunner

from sldcore import load_pipeline
from sldcore.cli import app

REQUESTS = 16
CLIENTS = 16
QUEUE = 10
CLOSE = 1.0  # mean levels of 255: other batches, other last bits, and max makes much of them

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[ServiceProcess]:
    settings = {
        "models": {"playground": {"source": "playground", "device": "cpu", "steps": STEPS, "min_steps": 1}},
        "policies": POLICIES,
        "limits": {"queue": QUEUE, "batch": 8, "pictures": 2, "deadline": 300, "drain": 60},
    }
    with service(folder, settings) as started:
        yield started


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline("playground", device="cpu")


def records(folder: Path) -> list[dict[str, Any]]:
    listed = CliRunner().invoke(
        app, ["audit", "list", "--ledger", str(folder / "audit.sqlite"), "--limit", "1000", "--json"]
    )
    assert listed.exit_code == 0, listed.output
    return list(json.loads(listed.stdout))


def test_every_answer_is_that_of_its_own_policy_and_seed(
    running: ServiceProcess, folder: Path, pipe: Any
) -> None:
    asked = requests(REQUESTS)
    with Watched(running) as watched:
        found = answers(running, asked, CLIENTS)
    assert 0 < watched.longest <= QUEUE
    assert any(each.refused for each in found)
    by_policy = engines(folder, pipe)
    for one, answered in zip(asked, found, strict=True):
        pictures, reports = alone(by_policy, one)
        assert difference(answered, pictures) < CLOSE, one
        for safety, report in zip(answered.safety, reports, strict=True):
            assert (safety["action"], safety["flagged"]) == (report.action, report.flagged), one
            assert safety["policy"] == one.policy
            assert safety["policy_digest"] == report.policy_digest
    shared = [int(size) for size in sizes_of_batches(running)]
    assert max(shared) > 1


def sizes_of_batches(running: ServiceProcess) -> list[str]:
    lines = running.get("/metrics")[2].splitlines()
    return [line.split('"')[1] for line in lines if line.startswith("sld_batches_total{")]


def test_a_worker_that_is_killed_in_the_middle_costs_no_answer(
    running: ServiceProcess, folder: Path, pipe: Any
) -> None:
    asked = [Asked("a red knight on a meadow", "medium", seed, 1) for seed in range(4)]
    restarts = running.number("sld_worker_restarts_total")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(answers, running, asked, 4)
        while not running.number("sld_jobs_running"):
            sleep(0.02)
        (worker,) = running.workers()
        worker.kill()
        found = waiting.result()
    assert running.number("sld_worker_restarts_total") == restarts + 1
    by_policy = engines(folder, pipe)
    for one, answered in zip(asked, found, strict=True):
        assert difference(answered, alone(by_policy, one)[0]) < CLOSE


def test_sigterm_under_load_answers_what_was_taken_and_the_audit_is_whole(
    running: ServiceProcess, folder: Path
) -> None:
    before = len(records(folder))

    def ask(seed: int) -> tuple[int, Any] | None:
        body = Asked("a blue clown on the beach", "blocking", seed, 1).body
        try:
            status, _, content = running.post("/v1/images/generations", body)
        except (OSError, HTTPException):
            return None  # it was not taken any more
        return status, content

    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(ask, seed) for seed in range(10)]
        while not running.number("sld_jobs_running"):
            sleep(0.02)
        assert running.stop() == 0, "".join(running.log)
        told = [each.result() for each in waiting]
    answered = [each for each in told if each is not None]
    assert any(status == 200 for status, _ in answered)
    assert {status for status, _ in answered} <= {200, 429, 503}
    shown = [content["data"][0] for status, content in answered if status == 200]
    assert all(each["safety"]["action"] in ("none", "black") for each in shown)
    assert len(records(folder)) >= before + len(shown)
    verified = CliRunner().invoke(app, ["audit", "verify", "--ledger", str(folder / "audit.sqlite")])
    assert verified.exit_code == 0, verified.output
    assert not any("knight" in line or "clown" in line for line in running.log)


def test_what_is_black_shows_nothing(folder: Path, pipe: Any) -> None:
    """The policy of these tests that keeps glyphs back does so at all: otherwise they would prove less."""
    by_policy = engines(folder, pipe)
    seeds = range(1000, 1008)
    shown = [alone(by_policy, Asked("a red knight on a meadow", "blocking", seed, 1)) for seed in seeds]
    black = [pictures[0] for pictures, reports in shown if reports[0].action == "black"]
    assert black and all(np.all(each == 0) for each in black)
