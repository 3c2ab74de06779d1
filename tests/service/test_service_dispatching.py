"""What the dispatcher makes of requests, with workers that the tests move by hand."""

from __future__ import annotations

import asyncio
import logging

import pytest
from fake_hosts import picture, review
from hand_workers import answer_to, reasons, run, service, settle

from sldcore.service.backend import Busy
from sldcore.service.jobs import Event, Partial, Progress


def test_answers_come_in_the_order_of_the_jobs() -> None:
    async def test() -> None:
        async with service() as made:
            jobs = [picture("a"), review("r"), picture("b")]
            asked = made.ask(*jobs)
            for _ in range(2):
                batch = await made.batch()
                batch.end.set_result([answer_to(job) for job in reversed(batch.jobs)])
            assert await asked == [answer_to(job) for job in jobs]
            assert made.dispatcher.status().batches == {2: 1, 1: 1}
            assert await made.ask() == []

    run(test())


def test_requests_that_come_together_are_made_together() -> None:
    async def test() -> None:
        async with service(batch=4) as made:
            first = made.ask(picture("a"))
            batch = await made.batch()
            others = [made.ask(picture(name)) for name in "bcd"]
            await settle()
            assert made.dispatcher.status().queued == 3
            batch.finish()
            await first
            others.append(made.ask(picture("e")))
            batch = await made.batch()
            assert batch.ids == ["b", "c", "d", "e"]
            batch.finish()
            await asyncio.gather(*others)

    run(test())


def test_a_batch_that_waited_for_company_goes_without() -> None:
    async def test() -> None:
        async with service(batch=4) as made:
            first, second = made.ask(picture("a")), made.ask(picture("b"))
            (await made.batch()).finish()
            batch = await made.batch()  # waits for the first client, which does not ask again
            assert batch.ids == ["b"]
            batch.finish()
            await asyncio.gather(first, second)

    run(test())


def test_events_are_passed_on_to_who_asked() -> None:
    async def test() -> None:
        async with service() as made:
            heard: list[Event] = []
            other: list[Event] = []
            asked = made.ask(picture("a"), picture("b"), on_event=heard.append)
            batch = await made.batch()
            waits = made.ask(picture("c"), on_event=other.append)
            events = [Progress("a", 1, 2), Partial("b", 0, b"png"), Progress("unknown", 1, 2)]
            for event in events:
                batch.emit(event)
            assert heard == events[:2]
            assert other == []
            batch.finish()
            (await made.batch()).finish()
            await asyncio.gather(asked, waits)

    run(test())


def test_a_listener_that_fails_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with service() as made:
            heard: list[Event] = []

            def listen(event: Event) -> None:
                heard.append(event)
                raise RuntimeError("the client's stream broke")

            asked = made.ask(picture("a"), on_event=listen)
            batch = await made.batch()
            batch.emit(Progress("a", 1, 2))
            batch.emit(Progress("a", 2, 2))
            batch.finish()
            assert reasons(await asked) == ["made"]
            assert len(heard) == 1

    with caplog.at_level(logging.ERROR, "sldcore.service"):
        run(test())
    assert "the client's stream broke" in caplog.text


def test_a_full_queue_takes_nothing_of_a_request() -> None:
    async def test() -> None:
        async with service(queue=3, batch=2) as made:
            running = made.ask(picture("a"), picture("b"))
            batch = await made.batch()
            waiting = made.ask(picture("c"), picture("d"))
            await settle()
            with pytest.raises(Busy) as busy:
                await made.ask(picture("e"), picture("f"))
            assert busy.value.retry_after == 1.0
            assert made.dispatcher.status().queued == 2
            room = made.ask(picture("g"))
            batch.finish()
            for _ in range(2):
                (await made.batch()).finish()
            answers = await asyncio.gather(running, waiting, room)
            assert [reasons(each) for each in answers] == [["made"] * 2, ["made"] * 2, ["made"]]

    run(test())


def test_retry_after_is_how_long_the_queue_will_take() -> None:
    async def test() -> None:
        async with service(queue=8, batch=1) as made:
            made.dispatcher._measure(3.0)  # seconds for a job
            asked = [made.ask(picture(str(number))) for number in range(9)]
            batch = await made.batch()
            await settle()
            with pytest.raises(Busy) as busy:
                await made.ask(picture("more"))
            assert busy.value.retry_after == 8 * 3.0
            batch.finish()
            await asked[0]
            assert 0 < made.dispatcher._seconds_per_job < 3.0
            for task in asked[1:]:
                task.cancel()

    run(test())


@pytest.mark.parametrize("running", [True, False])
def test_after_the_deadline_a_job_is_answered_and_nobody_goes_on_with_it(running: bool) -> None:
    async def test() -> None:
        async with service(batch=2) as made:
            blocking = made.ask(picture("a", steps=9))
            first = await made.batch()
            if running:
                first.finish()
                await blocking
            late = made.ask(picture("b"), picture("c"), deadline=0.02)
            batch = await made.batch() if running else first
            answers = await late
            assert reasons(answers) == ["deadline", "deadline"]
            assert made.workers[0].cancelled == (["b", "c"] if running else [])
            assert made.dispatcher.status().queued == 0
            batch.finish()  # too late, and for nobody
            await settle()
            assert made.dispatcher.status().running == 0
            await blocking

    run(test())


def test_no_time_at_all_is_too_late() -> None:
    async def test() -> None:
        async with service() as made:
            assert reasons(await made.ask(picture("a"), deadline=0)) == ["deadline"]
            assert made.workers[0].batches.empty()

    run(test())


def test_a_caller_that_goes_away_gives_its_jobs_up() -> None:
    async def test() -> None:
        async with service(batch=2) as made:
            before = made.ask(picture("before"))
            batch = await made.batch()
            heard: list[Event] = []
            goes = made.ask(picture("a"), picture("b"), picture("c"), on_event=heard.append)
            stays = made.ask(picture("d"))
            await settle()
            batch.finish()
            await before
            batch = await made.batch()
            assert batch.ids == ["a", "d"]
            goes.cancel()
            with pytest.raises(asyncio.CancelledError):
                await goes
            assert made.workers[0].cancelled == ["a"]
            assert made.dispatcher.status().queued == 0
            again = made.ask(
                picture("a", seed=7)
            )  # the id is free again, and the old picture is not its answer
            await settle()
            batch.emit(Progress("a", 1, 2))
            batch.finish()
            assert reasons(await stays) == ["made"]
            assert not again.done()
            assert heard == []
            (await made.batch()).finish()
            assert await again == [answer_to(picture("a", seed=7))]

    run(test())


def test_ids_are_one_jobs_own() -> None:
    async def test() -> None:
        async with service() as made:
            asked = made.ask(picture("a"))
            batch = await made.batch()
            with pytest.raises(ValueError, match="ids of their own"):
                await made.ask(picture("b"), picture("a"))
            batch.finish()
            assert reasons(await asked) == ["made"]

    run(test())


def test_a_model_that_no_worker_has_is_refused_and_the_rest_is_made() -> None:
    async def test() -> None:
        async with service(models=("m", "n")) as made:
            asked = made.ask(picture("a", model="x"), picture("b", model="n"))
            (await made.batch(1)).finish()
            assert reasons(await asked) == ["invalid", "made"]
            assert made.dispatcher.sizes() == {"m": [(64, 64)], "n": [(64, 64)]}

    run(test())


def test_a_worker_that_forgets_a_job_or_breaks_leaves_no_one_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with service() as made:
            asked = made.ask(picture("a"), picture("b"))
            (await made.batch()).end.set_result([answer_to(picture("b"))])
            assert reasons(await asked) == ["failed", "made"]
            asked = made.ask(picture("a"))
            (await made.batch()).end.set_exception(TypeError("a bug"))
            assert reasons(await asked) == ["failed"]

    run(test())
    assert "a bug" in caplog.text


def test_two_workers_of_a_device_share_the_work() -> None:
    async def test() -> None:
        async with service(workers=2, batch=2) as made:
            asked = made.ask(*(picture(name) for name in "abcd"))
            batches = [await made.batch(number) for number in (0, 1)]
            assert [batch.ids for batch in batches] == [["a", "b"], ["c", "d"]]
            assert made.dispatcher.status().running == 4
            for batch in batches:
                batch.finish()
            assert reasons(await asked) == ["made"] * 4

    run(test())
