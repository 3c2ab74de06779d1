"""Workers that end, and a service that stops: nothing taken is without an answer, with workers that the tests move by hand."""

from __future__ import annotations

import asyncio
import gc

import pytest
from fake_hosts import picture
from hand_workers import Batch, Service, reasons, run, service, settle

from sldcore.errors import ConfigurationError
from sldcore.service.backend import Draining
from sldcore.service.jobs import Event, Failed, Partial, Progress
from sldcore.service.working.batching import Waiting
from sldcore.service.working.seats import Restarts
from sldcore.service.working.taken import Request, Taken
from sldcore.service.working.workforce import WorkerLost


def test_jobs_of_a_lost_worker_are_run_once_more_each_alone() -> None:
    async def test() -> None:
        async with service() as made:
            asked = made.ask(*(picture(name) for name in "abc"))
            assert (await made.batch()).ids == ["a", "b", "c"]
            made.workers[0].die()
            assert (await made.batch()).ids == ["a"]
            made.workers[0].die()
            for name in "bc":
                batch = await made.batch()
                assert batch.ids == [name]
                batch.finish()
            assert reasons(await asked) == ["lost", "made", "made"]
            assert made.dispatcher.status().restarts == 2
            assert made.workers[0].starts == 3

    run(test())


def test_pictures_of_the_way_are_shown_once_though_made_twice() -> None:
    async def test() -> None:
        async with service() as made:
            heard: list[Event] = []
            asked = made.ask(picture("a"), on_event=heard.append)
            (await made.batch()).emit(Partial("a", 0, b"first"))
            made.workers[0].die()
            batch = await made.batch()
            batch.emit(Partial("a", 0, b"again"))
            batch.emit(Partial("a", 1, b"second"))
            batch.finish()
            await asked
            assert heard == [Partial("a", 0, b"first"), Partial("a", 1, b"second")]

    run(test())


def test_given_up_jobs_of_a_lost_worker_are_not_run_again() -> None:
    async def test() -> None:
        async with service() as made:
            goes, stays = made.ask(picture("a"), deadline=0.01), made.ask(picture("b"))
            assert (await made.batch()).ids == ["a"]
            assert reasons(await goes) == ["deadline"]
            made.workers[0].die()
            batch = await made.batch()
            assert batch.ids == ["b"]
            batch.finish()
            await stays

    run(test())


def test_a_worker_that_cannot_be_started_again_is_a_problem_until_it_can() -> None:
    async def test() -> None:
        async with service(models=("m", "n")) as made:
            bad = made.workers[0]
            bad.refusing = ConfigurationError("the weights are gone")
            first, second = made.ask(picture("a")), made.ask(picture("b", steps=9))
            await made.batch()
            bad.die()
            assert reasons(await first + await second) == ["failed", "failed"]
            assert reasons(await made.ask(picture("c"))) == ["failed"]
            status = made.dispatcher.status()
            assert status.problems == ("worker cpu-1 cannot be started: the weights are gone",)
            assert status.ready  # the other device's
            assert status.alive == 1
            other = made.ask(picture("d", model="n"))
            (await made.batch(1)).finish()
            assert reasons(await other) == ["made"]
            bad.refusing = None
            while not bad.alive:
                await asyncio.sleep(0.001)
            await settle()
            status = made.dispatcher.status()
            assert (status.problems, status.alive, status.restarts) == ((), 2, 1)
            again = made.ask(picture("a"))
            (await made.batch()).finish()
            assert reasons(await again) == ["made"]

    run(test())


def test_without_any_worker_it_is_not_ready() -> None:
    async def test() -> None:
        async with service() as made:
            assert made.dispatcher.status().ready
            made.workers[0].refusing = WorkerLost("ended")
            made.workers[0].die()
            assert not made.dispatcher.status().ready

    run(test())


def test_waits_between_restarts_grow_and_end() -> None:
    restarts = Restarts(first=1, most=30)
    assert [restarts.delay(failures) for failures in (1, 2, 3, 4, 8, 10_000)] == [0, 1, 2, 4, 30, 30]


def test_a_start_that_fails_leaves_no_worker() -> None:
    async def test() -> None:
        made = Service(models=("m", "n"))
        made.workers[1].refusing = ConfigurationError("no such weights")
        with pytest.raises(ConfigurationError, match="no such weights"):
            await made.dispatcher.start()
        assert not any(worker.alive for worker in made.workers)
        made.workers[1].refusing = WorkerLost("worker cuda:0-1 ended with exit code 3")
        with pytest.raises(ConfigurationError, match="exit code 3 while it started; its output says why"):
            await made.dispatcher.start()

    run(test())


def test_draining_finishes_what_was_taken_and_takes_nothing_more() -> None:
    async def test() -> None:
        async with service(batch=1) as made:
            asked = [made.ask(picture(name)) for name in "abc"]
            batch = await made.batch()
            drain = asyncio.create_task(made.dispatcher.drain(30))
            await settle()
            with pytest.raises(Draining):
                await made.ask(picture("d"))
            assert not made.dispatcher.status().ready
            batch.finish()
            (await made.batch()).finish()
            assert made.workers[0].alive
            made.workers[0].die()  # what runs when a worker dies is made, too
            (await made.batch()).finish()
            await drain
            assert [reasons(answers) for answers in await asyncio.gather(*asked)] == [["made"]] * 3
            assert not made.workers[0].alive

    run(test())


def test_draining_waits_for_no_company() -> None:
    async def test() -> None:
        async with service(batch=4, batch_wait=10) as made:
            first, second = made.ask(picture("a")), made.ask(picture("b"))
            (await made.batch()).finish()
            await first
            await settle()
            assert made.workers[0].batches.empty()
            drain = asyncio.create_task(made.dispatcher.drain(30))
            await settle()
            made.workers[0].batches.get_nowait().finish()
            await drain
            assert reasons(await second) == ["made"]

    run(test())


def test_after_draining_the_rest_is_answered() -> None:
    async def test() -> None:
        async with service(batch=1) as made:
            asked = [made.ask(picture(name)) for name in "abc"]
            (await made.batch()).finish()
            await made.batch()
            patient = asyncio.create_task(made.dispatcher.drain(30))
            await settle()
            await made.dispatcher.drain(0.01)  # told to stop a second time, and sooner
            await patient
            assert [reasons(answers) for answers in await asyncio.gather(*asked)] == [
                ["made"],
                ["draining"],
                ["draining"],
            ]
            assert made.workers[0].cancelled == ["b"]

    run(test())


def test_nothing_is_kept_of_requests() -> None:
    """2,000 jobs, some answered, some given up, some lost; afterwards there are as many objects as before."""

    ours = (Waiting, Request, Taken, Failed)

    def kept() -> list[object]:
        gc.collect()
        return [each for each in gc.get_objects() if isinstance(each, ours)]

    before = kept()  # what is logged in other tests holds some by its traceback

    async def test() -> None:
        async with service(batch=4, batch_wait=0) as made:

            async def play() -> None:
                while True:
                    end(await made.batch())

            def end(batch: Batch) -> None:
                if int(batch.ids[0]) % 50 == 0:
                    made.workers[0].die()
                else:
                    batch.emit(Progress(batch.ids[0], 1, 2))
                    batch.finish()

            player = asyncio.create_task(play())
            for start in range(0, 2000, 10):
                asked = [
                    made.ask(picture(str(start + number), steps=1 + number % 3), on_event=lambda event: None)
                    for number in range(10)
                ]
                if start % 100 == 0:
                    asked[9].cancel()
                await asyncio.gather(*asked, return_exceptions=True)
            player.cancel()
            asked.clear()
            await settle()
            assert [each for each in kept() if not any(each is one for one in before)] == []
            assert made.dispatcher.status().restarts >= 40

    run(test())
