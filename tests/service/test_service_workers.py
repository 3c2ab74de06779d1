"""Worker processes: real ones, with a host that does what it is told."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from fake_hosts import FakeHost, picture, png_of, review, settings_for

from sldcore.errors import ConfigurationError
from sldcore.service.jobs import Failed, PictureAnswer, Progress, ReviewAnswer
from sldcore.service.working.supervising import WorkerProcess
from sldcore.service.working.workforce import Assignment, WorkerLost, assignments


def worker_in(folder: Path, grace: float = 30.0, **more: Any) -> WorkerProcess:
    return WorkerProcess(assignments(settings_for(folder))[0], (), FakeHost, grace, **more)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def shared(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    worker = worker_in(tmp_path_factory.mktemp("shared"))
    yield worker
    runner.run(worker.stop(5))
    assert not active_children()


@pytest.fixture
def worker(runner: asyncio.Runner, shared: WorkerProcess) -> WorkerProcess:
    """A warm worker, which many tests use one after the other."""
    if not shared.alive:
        runner.run(shared.start())
    return shared


async def reached(file: Path) -> None:
    """Until a job that waits for a file has begun to."""
    async with asyncio.timeout(30):
        while not Path(f"{file}.reached").exists():
            await asyncio.sleep(0.01)


def ignore(event: object) -> None:
    """Listen to nothing."""


def test_a_worker_answers_batch_after_batch_and_tells_of_steps(
    runner: asyncio.Runner, worker: WorkerProcess, tmp_path: Path
) -> None:
    async def test() -> None:
        assert worker.alive
        assert worker.pid != os.getpid()
        events: list[object] = []
        jobs = [picture("a", seed=1), picture("b", seed=2)]
        answers = await worker.run(jobs, events.append)
        assert [answer.png for answer in answers if isinstance(answer, PictureAnswer)] == [
            png_of(job) for job in jobs
        ]
        assert events == [Progress(id, step, 2) for step in (1, 2) for id in "ab"]
        (said,) = await worker.run([review("r", "hello")], ignore)
        assert isinstance(said, ReviewAnswer)
        assert said.account["text"] == "hello"

    runner.run(test())


def test_workers_that_ended_leave_no_thread_and_no_open_file(
    runner: asyncio.Runner, worker: WorkerProcess
) -> None:
    async def test() -> None:
        counts = []
        for _ in range(3):
            with pytest.raises(WorkerLost):
                await worker.run([picture("a", "kill")], ignore)
            await worker.start()
            gc.collect()
            counts.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
        assert counts[0] == counts[1] == counts[2]

    runner.run(test())


def test_a_job_is_cancelled_while_it_runs_and_the_others_are_not(
    runner: asyncio.Runner, worker: WorkerProcess, tmp_path: Path
) -> None:
    async def test() -> None:
        file = tmp_path / "never"
        batch = asyncio.create_task(worker.run([picture("a", f"wait {file}"), picture("b")], ignore))
        await reached(file)
        worker.cancel(["a"])
        first, second = await batch
        assert isinstance(first, Failed)
        assert first.reason == "cancelled"
        assert isinstance(second, PictureAnswer)
        (again,) = await worker.run([picture("a")], ignore)  # a cancellation is for one batch only
        assert isinstance(again, PictureAnswer)

    runner.run(test())


@pytest.mark.parametrize(
    ("prompt", "how"), [("kill", "was killed by signal 9"), ("raise", "ended with exit code 1")]
)
def test_a_worker_that_ends_in_a_batch_is_lost_and_can_be_started_again(
    runner: asyncio.Runner, worker: WorkerProcess, prompt: str, how: str
) -> None:
    async def test() -> None:
        with pytest.raises(WorkerLost, match=how):
            await worker.run([picture("a", prompt)], ignore)
        assert not worker.alive
        await worker.ended()
        with pytest.raises(WorkerLost, match="not running"):
            await worker.run([picture("b")], ignore)
        await worker.start()
        (answer,) = await worker.run([picture("b")], ignore)
        assert isinstance(answer, PictureAnswer)

    runner.run(test())


def test_a_worker_that_is_slow_is_left_alone_and_one_that_hangs_is_killed(tmp_path: Path) -> None:
    """Hangs in a filter; or stands still, with a batch too large for the pipe, for which the event loop does not wait."""

    async def test() -> None:
        worker = worker_in(tmp_path, grace=1.5)
        await worker.start()
        file = tmp_path / "file"
        slow = asyncio.create_task(worker.run([picture("a", f"wait {file}")], ignore))
        await reached(file)
        await asyncio.sleep(2)  # longer than the grace, with signs of life
        file.touch()
        assert isinstance((await slow)[0], PictureAnswer)
        with pytest.raises(WorkerLost, match=r"hung for 1\.5 s and was killed"):
            await worker.run([picture("a", f"hang {file}")], ignore)
        await worker.start()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(WorkerLost, match=r"hung for 1\.5 s and was killed"):
            await worker.run([review("a", picture=b"0" * 2**23, text=None)], ignore)

    asyncio.run(test())


def test_an_idle_worker_that_is_killed_is_noticed(
    runner: asyncio.Runner, worker: WorkerProcess, tmp_path: Path
) -> None:
    async def test() -> None:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await asyncio.wait_for(worker.ended(), 30)
        assert not worker.alive

    runner.run(test())


def test_interrupts_and_terminations_are_for_the_parent_to_decide(
    runner: asyncio.Runner, worker: WorkerProcess, tmp_path: Path
) -> None:
    async def test() -> None:
        file = tmp_path / "file"
        batch = asyncio.create_task(worker.run([picture("a", f"wait {file}")], ignore))
        await reached(file)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
        file.touch()
        assert isinstance((await batch)[0], PictureAnswer)

    runner.run(test())


def test_a_worker_that_is_refused_its_models_says_why(tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()

    async def test() -> None:
        worker = worker_in(tmp_path)
        with pytest.raises(ConfigurationError, match="no such weights; name others"):
            await worker.start()
        await worker.stop(0)

    asyncio.run(test())


def test_a_worker_that_dies_while_it_starts_is_lost(tmp_path: Path) -> None:
    (tmp_path / "die").touch()

    async def test() -> None:
        worker = worker_in(tmp_path)
        with pytest.raises(WorkerLost, match="ended with exit code 3"):
            await worker.start()
        assert not worker.alive

    asyncio.run(test())


def test_a_start_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        worker = worker_in(tmp_path, start_limit=0.01)
        with pytest.raises(WorkerLost, match="was not ready after"):
            await worker.start()
        assert worker.pid is not None
        assert not _runs(worker.pid)

    asyncio.run(test())


def test_a_start_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    async def test() -> None:
        worker = worker_in(tmp_path)
        start = asyncio.create_task(worker.start())
        await asyncio.sleep(0.05)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        await asyncio.wait_for(worker.ended(), 30)
        assert worker.pid is not None
        assert not _runs(worker.pid)

    asyncio.run(test())


def test_a_busy_worker_that_does_not_stop_is_killed(
    runner: asyncio.Runner, worker: WorkerProcess, tmp_path: Path
) -> None:
    async def test() -> None:
        file = tmp_path / "never"
        batch = asyncio.create_task(worker.run([picture("a", f"hang {file}")], ignore))
        await reached(file)
        await worker.stop(0.1)
        assert not worker.alive
        with pytest.raises(WorkerLost, match="signal 9"):
            await batch

    runner.run(test())


_PARENT = """
import asyncio, sys
from pathlib import Path
from fake_hosts import picture
from test_service_workers import ignore, worker_in

async def main(folder):
    worker = worker_in(folder)
    await worker.start()
    asyncio.create_task(worker.run([picture("a", f"wait {folder / 'never'}")], ignore))
    print(worker.pid, flush=True)
    await asyncio.sleep(600 if sys.argv[2] == "stay" else 0.2)

if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("end", ["killed", "exits"])
def test_a_worker_ends_with_its_parent_whatever_it_does(tmp_path: Path, end: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    command = [sys.executable, str(script), str(tmp_path), "stay" if end == "killed" else "go"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        asyncio.run(reached(tmp_path / "never"))
        if end == "killed":
            parent.kill()
        parent.wait(30)
    asyncio.run(_gone(pid))


async def _gone(pid: int) -> None:
    async with asyncio.timeout(30):
        while _runs(pid):
            await asyncio.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether there is such a process; one that ended and that nobody asked for yet does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_devices_have_workers_of_their_own_with_all_their_models(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, models=("m", "n"), workers=2)
    shared = settings.models | {"o": settings.models["m"]}
    planned = assignments(settings.model_copy(update={"models": shared}))
    assert [(each.name, each.number, list(each.models)) for each in planned] == [
        ("cpu-1", 0, ["m", "o"]),
        ("cpu-2", 1, ["m", "o"]),
        ("cuda:0-1", 0, ["n"]),
        ("cuda:0-2", 1, ["n"]),
    ]
    assert isinstance(planned[0], Assignment)
