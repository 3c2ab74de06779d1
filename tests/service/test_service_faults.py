"""The dispatcher over real worker processes: what comes in gets one answer, the right one, whatever becomes of the workers."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from fake_hosts import FakeHost, picture, png_of, review, settings_for

from sldcore.errors import ConfigurationError
from sldcore.policy import SafetyPolicy
from sldcore.service.backend import Busy
from sldcore.service.jobs import Answer, Event, Failed, PictureAnswer, Progress, ReviewAnswer
from sldcore.service.settings import ModelSettings, ServiceSettings
from sldcore.service.working.dispatching import Dispatcher
from sldcore.service.working.seats import Restarts

FAST = Restarts(first=0.01, most=0.1, tries=2)


def dispatcher_in(folder: Path, **limits: Any) -> Dispatcher:
    return Dispatcher(settings_for(folder, batch=5, **limits), (), FakeHost, restarts=FAST)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def service(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dispatcher]:
    """One for many tests, whatever they do to its worker."""
    dispatcher = dispatcher_in(tmp_path_factory.mktemp("service"), queue=128)
    runner.run(dispatcher.start())
    yield dispatcher
    status = dispatcher.status()
    assert (status.queued, status.running) == (0, 0)
    runner.run(dispatcher.drain(0))
    assert not active_children()


async def until(something: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not something():
            await asyncio.sleep(0.01)


def began(file: Path) -> Callable[[], bool]:
    return Path(f"{file}.reached").exists


def kill_worker(service: Dispatcher) -> None:
    pid = service._seats[0].worker.pid  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGKILL)


def reasons(answers: list[Answer]) -> list[str]:
    return [answer.reason if isinstance(answer, Failed) else "made" for answer in answers]


def test_a_worker_killed_in_the_middle_costs_no_answer(
    runner: asyncio.Runner, service: Dispatcher, tmp_path: Path
) -> None:
    async def test() -> None:
        file = tmp_path / "file"
        jobs = [picture("a", f"wait {file}"), picture("b", seed=5)]
        events: list[Event] = []
        restarts = service.status().restarts
        asked = asyncio.create_task(service.run(jobs, 60, events.append))
        await until(began(file))
        kill_worker(service)
        file.touch()
        answers = await asked
        assert [answer.png for answer in answers if isinstance(answer, PictureAnswer)] == [
            png_of(job) for job in jobs
        ]
        assert [answer.account["together"] for answer in answers if isinstance(answer, PictureAnswer)] == [
            1,
            1,
        ]
        assert Progress("b", 2, 2) in events
        assert service.status().restarts == restarts + 1

    runner.run(test())


def test_a_job_that_kills_workers_takes_no_other_with_it(runner: asyncio.Runner, service: Dispatcher) -> None:
    async def test() -> None:
        restarts = service.status().restarts
        jobs = [
            picture(str(number), "kill" if number == 2 else "a meadow", seed=number) for number in range(5)
        ]
        answers = await service.run(jobs, 60)
        assert reasons(answers) == ["made", "made", "lost", "made", "made"]
        assert all(
            answer.png == png_of(job)
            for job, answer in zip(jobs, answers, strict=True)
            if isinstance(answer, PictureAnswer)
        )
        await until(lambda: service.status().ready)
        assert service.status().restarts == restarts + 2

    runner.run(test())


def test_an_idle_worker_that_was_killed_is_replaced(runner: asyncio.Runner, service: Dispatcher) -> None:
    async def test() -> None:
        await until(lambda: service.status().ready)
        restarts = service.status().restarts
        kill_worker(service)
        await until(lambda: service.status().restarts > restarts)
        assert reasons(await service.run([picture("a")], 60)) == ["made"]

    runner.run(test())


def test_deadlines_and_callers_that_go_free_the_worker_for_others(
    runner: asyncio.Runner, service: Dispatcher, tmp_path: Path
) -> None:
    async def test() -> None:
        await until(lambda: service.status().ready)
        never, other = tmp_path / "never", tmp_path / "other"
        late = asyncio.create_task(service.run([picture("a", f"wait {never}")], 0.5))
        assert reasons(await late) == ["deadline"]
        goes = asyncio.create_task(service.run([picture("b", f"wait {other}")], 60))
        await until(began(other))
        goes.cancel()
        assert reasons(await service.run([picture("c")], 60)) == ["made"]
        with pytest.raises(asyncio.CancelledError):
            await goes

    runner.run(test())


def test_two_hundred_requests_of_sixteen_clients_get_their_own_answers(
    runner: asyncio.Runner, service: Dispatcher
) -> None:
    chance = random.Random(3)

    async def client(name: int, requests: int) -> int:
        right = 0
        for number in range(requests):
            jobs = [
                picture(
                    f"{name}-{number}-{index}",
                    chance.choice(["a meadow", "a lake"]),
                    seed=chance.randrange(10**9),
                    width=chance.choice([64, 128]),
                    steps=chance.choice([1, 2, 3]),
                    client=f"key-{name % 5}",
                )
                for index in range(chance.randint(1, 3))
            ]
            asked = [*jobs, review(f"{name}-{number}-r", f"text {name} {number}")]
            answers = await service.run(asked, 60)
            assert [answer.job for answer in answers] == [job.id for job in asked]
            assert [answer.png for answer in answers if isinstance(answer, PictureAnswer)] == [
                png_of(job) for job in jobs
            ]
            assert isinstance(answers[-1], ReviewAnswer)
            right += answers[-1].account["text"] == f"text {name} {number}"
        return right

    async def test() -> None:
        await until(lambda: service.status().ready)
        before = Counter(service.status().batches)
        right = await asyncio.gather(*(client(name, 13 if name < 8 else 12) for name in range(16)))
        assert sum(right) == 200
        batches = Counter(service.status().batches) - before
        assert max(batches) <= 5
        assert sum(size * count for size, count in batches.items()) / sum(batches.values()) > 1.5

    runner.run(test())


def test_a_hung_filter_loses_its_own_job_only(tmp_path: Path) -> None:
    async def test() -> None:
        service = dispatcher_in(tmp_path, filter_grace=1.5)
        await service.start()
        file = tmp_path / "file"
        jobs = [picture("a"), picture("b", f"hang {file}")]
        assert reasons(await service.run(jobs, 60)) == ["made", "lost"]
        await service.drain(0)

    asyncio.run(test())


def test_draining_under_load_answers_everything(tmp_path: Path) -> None:
    """Some are made, those that take too long are told that the service stops, and the queue's bound held all the time."""

    others = set(active_children())

    async def test() -> None:
        service = dispatcher_in(tmp_path, queue=16)
        await service.start()
        never = tmp_path / "never"

        async def client(name: int) -> list[str]:
            try:
                prompt = f"wait {never}" if name == 3 else "a meadow"
                return reasons(await service.run([picture(str(name), prompt, steps=1 + name % 2)], 60))
            except Busy as busy:
                assert busy.retry_after >= 1
                return ["busy"]

        asked = [asyncio.create_task(client(name)) for name in range(40)]
        await until(began(never))
        assert service.status().queued <= 16
        await service.drain(0.2)
        counts = Counter(reason for reasons in await asyncio.gather(*asked) for reason in reasons)
        assert counts.keys() == {"made", "draining", "busy"}
        assert counts.total() == 40
        assert service.status().alive == 0
        assert set(active_children()) <= others

    asyncio.run(test())


@pytest.mark.parametrize(
    ("file", "why"), [("refuse", "no such weights"), ("die", "exit code 3 while it started")]
)
def test_a_service_whose_workers_cannot_start_does_not(tmp_path: Path, file: str, why: str) -> None:
    (tmp_path / file).touch()
    others = set(active_children())

    async def test() -> None:
        with pytest.raises(ConfigurationError, match=why):
            await dispatcher_in(tmp_path).start()
        assert set(active_children()) <= others

    asyncio.run(test())


def test_a_worker_that_cannot_come_back_is_told_of_and_comes_back_later(tmp_path: Path) -> None:
    async def test() -> None:
        service = dispatcher_in(tmp_path)
        await service.start()
        (tmp_path / "die").touch()
        assert reasons(await service.run([picture("a", "kill")], 60)) == ["failed"]
        status = service.status()
        assert not status.ready
        assert status.problems == ("worker cpu-1 cannot be started: worker cpu-1 ended with exit code 3",)
        (tmp_path / "die").unlink()
        await until(lambda: service.status().ready)
        assert service.status().problems == ()
        assert reasons(await service.run([picture("a")], 60)) == ["made"]
        await service.drain(5)

    asyncio.run(test())


def test_real_pictures_come_from_a_real_worker() -> None:
    settings = ServiceSettings(models={"playground": ModelSettings(device="cpu")})
    policy = SafetyPolicy(filters=({"use": "playground-glyphs"},))

    async def test() -> None:
        service = Dispatcher(settings, (policy,))
        await service.start()
        ((width, height),) = service.sizes()["playground"][:1]
        size = {"model": "playground", "policy": policy, "width": width, "height": height}
        events: list[Event] = []
        prompt = "a red knight on a meadow"
        jobs = [picture(str(seed), prompt, seed=seed, steps=4, **size) for seed in (1, 2)]
        made = await service.run(jobs, 60, events.append)
        assert all(isinstance(answer, PictureAnswer) for answer in made)
        (alone,) = await service.run([picture("again", prompt, seed=2, steps=4, **size)], 60)
        shown = made[1]
        assert isinstance(shown, PictureAnswer) and isinstance(alone, PictureAnswer)
        assert shown.png is not None
        (together,), (by_itself,) = shown.account["verdicts"], alone.account["verdicts"]
        assert together["scores"] == pytest.approx(by_itself["scores"], abs=1e-3)
        asked = review("r", model="playground", policy=policy, text=None, picture=shown.png)
        (said,) = await service.run([asked], 60)
        await service.drain(5)
        assert isinstance(said, ReviewAnswer)
        assert Progress("2", 4, 4) in events

    asyncio.run(test())
