"""What a replica does with calls, without Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_hosts import FakeHost, picture, png_of, settings_for

from sldcore import __version__
from sldcore.service.jobs import Failed, PictureAnswer, Progress
from sldcore.service.working import ray_replica
from sldcore.service.working.ray_replica import Broken, Bundle, FromReplica, Replica, Said
from sldcore.service.working.worker import Alive, Done, Ready, Refused


async def warm(folder: Path) -> tuple[Replica, AsyncIterator[Bundle]]:
    """A replica of the life ``a``, and what it says of it."""
    replica = Replica("app", FakeHost, settings_for(folder).models, ())
    living = replica.live("a", __version__)
    assert [type(message) for message in await messages(living, Ready)] == [Alive, Ready]
    return replica, living


async def messages(bundles: AsyncIterator[Bundle], last: type) -> list[FromReplica]:
    """What a stream brings until a message of a type has come."""
    said: list[FromReplica] = []
    async with asyncio.timeout(30):
        while not any(isinstance(message, last) for message in said):
            said += await anext(bundles)
    return said


def test_a_batch_is_streamed_and_its_answers_come_last(tmp_path: Path) -> None:
    async def test() -> None:
        replica, _ = await warm(tmp_path)
        jobs = [picture("x", seed=1), picture("y", seed=2)]
        said = await messages(replica.run("a", 1, jobs), Done)
        *events, done = [message for message in said if not isinstance(message, Alive)]
        assert events == [Progress(id, step, 2) for step in (1, 2) for id in "xy"]
        assert isinstance(done, Done)
        assert [answer.png for answer in done.answers if isinstance(answer, PictureAnswer)] == [
            png_of(job) for job in jobs
        ]

    asyncio.run(test())


@pytest.mark.parametrize(("life", "number"), [("b", 2), ("a", 1), ("", 2)])
def test_a_batch_of_another_life_and_one_that_was_run_already_are_refused(
    tmp_path: Path, life: str, number: int
) -> None:
    async def test() -> None:
        replica, _ = await warm(tmp_path)
        await messages(replica.run("a", 1, [picture("x")]), Done)
        with pytest.raises(RuntimeError, match="to another replica, or twice"):
            await anext(replica.run(life, number, [picture("x")]))

    asyncio.run(test())


def test_a_replica_that_nobody_warmed_up_runs_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        replica = Replica("app", FakeHost, settings_for(tmp_path).models, ())
        with pytest.raises(RuntimeError, match="to another replica, or twice"):
            await anext(replica.run("a", 1, [picture("x")]))

    asyncio.run(test())


def test_a_replica_has_one_life_only(tmp_path: Path) -> None:
    async def test() -> None:
        replica, _ = await warm(tmp_path)
        with pytest.raises(RuntimeError, match="has a service already"):
            await anext(replica.live("b", __version__))

    asyncio.run(test())


def test_a_cancellation_that_overtakes_its_batch_counts_and_one_that_is_late_does_not(tmp_path: Path) -> None:
    async def test() -> None:
        replica, _ = await warm(tmp_path)
        await replica.cancel("a", 1, ["x"])
        await replica.cancel("b", 1, ["y"])  # of another life
        (first, second) = await answers_of(replica, 1)
        assert isinstance(first, Failed)
        assert isinstance(second, PictureAnswer)
        await replica.cancel("a", 1, ["x"])
        assert all(isinstance(answer, PictureAnswer) for answer in await answers_of(replica, 2))

    async def answers_of(replica: Replica, number: int) -> tuple[object, ...]:
        said = await messages(replica.run("a", number, [picture("x"), picture("y")]), Done)
        return next(message.answers for message in said if isinstance(message, Done))

    asyncio.run(test())


def test_models_that_cannot_be_had_are_told(tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()

    async def test() -> None:
        replica = Replica("app", FakeHost, settings_for(tmp_path).models, ())
        said = await messages(replica.live("a", __version__), Refused)
        assert said[-1] == Refused("no such weights; name others")

    asyncio.run(test())


def test_another_version_of_the_package_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        replica = Replica("app", FakeHost, settings_for(tmp_path).models, ())
        refused = (await messages(replica.live("a", "0.0.1"), Refused))[-1]
        assert isinstance(refused, Refused)
        assert f"has sldcore {__version__}, and the service 0.0.1" in refused.message

    asyncio.run(test())


def test_a_host_that_raises_is_told_with_its_traceback(tmp_path: Path) -> None:
    async def test() -> None:
        replica, _ = await warm(tmp_path)
        broken = (await messages(replica.run("a", 1, [picture("x", "raise")]), Broken))[-1]
        assert isinstance(broken, Broken)
        assert broken.kind == "RuntimeError"
        assert "the host broke" in broken.text

    asyncio.run(test())


def test_what_is_logged_in_a_replica_reaches_the_service(tmp_path: Path) -> None:
    async def test() -> None:
        _, living = await warm(tmp_path)
        logging.getLogger("sldcore.service").warning("a filter %s", "broke")
        assert await messages(living, Said) == [Said(logging.WARNING, "a filter broke")]

    asyncio.run(test())


def test_a_replica_that_hears_of_no_service_has_its_application_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[str] = []
    monkeypatch.setattr(ray_replica, "delete_application", deleted.append)

    async def test() -> None:
        replica, _ = await warm(tmp_path)
        monkeypatch.setattr(ray_replica, "ABANDONED", 60.0)
        await replica.check_health()
        assert not deleted
        monkeypatch.setattr(ray_replica, "ABANDONED", -1.0)
        await replica.check_health()
        assert deleted == ["app"]

    asyncio.run(test())
