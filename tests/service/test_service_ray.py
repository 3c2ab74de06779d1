"""Workers that are replicas of Ray Serve, on one Ray of this machine that all tests share."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from io import BytesIO
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_hosts import FakeHost, picture, png_of, settings_for
from service_hosts import pictures, pixels
from service_process import BLOCKING, service

from sldcore.errors import ConfigurationError
from sldcore.evaluation.ray_cluster import ray_cluster
from sldcore.policy import SafetyPolicy
from sldcore.service.hosting.engine_host import EngineHost
from sldcore.service.jobs import Event, Failed, PictureAnswer, PictureJob, Progress
from sldcore.service.settings import ServiceSettings
from sldcore.service.working.dispatching import Dispatcher
from sldcore.service.working.ray_serving import RayServe, serve_module
from sldcore.service.working.ray_workers import RayWorker, ray_workers
from sldcore.service.working.workforce import WorkerLost, assignments

MARK = "SLD_TEST_RAY"
"""A variable in the environment of all that the tests start."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray with room for two workers and no GPU, and Serve on it; nothing is left of it afterwards."""
    mark = tmp_path_factory.mktemp("ray").name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parent, *sys.path))))
        with ray_cluster(2) as started:
            serve_module().start(proxy_location="Disabled")
            yield started
    _, left = psutil.wait_procs(_marked(mark), timeout=60)
    assert not left


@pytest.fixture(autouse=True)
def no_application_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "ray" in request.fixturenames:
        from ray import serve

        assert not serve.status().applications


def _marked(mark: str) -> list[psutil.Process]:
    """Processes of others that have the mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue  # it has ended meanwhile, or is somebody else's
    return found


def _listening(process: psutil.Process) -> set[IPv4Address | IPv6Address]:
    """Addresses at which a process waits for connections."""
    places = [ip_address(each.laddr.ip) for each in process.net_connections() if each.status == "LISTEN"]
    return {getattr(each, "ipv4_mapped", None) or each for each in places}


def timeless(answer: PictureAnswer) -> dict[str, Any]:
    """Its account without how long the filters took."""
    verdicts = [{**verdict, "seconds": 0} for verdict in answer.account["verdicts"]]
    return {**answer.account, "verdicts": verdicts}


def connect(connection: HTTPConnection) -> None:
    """Connect as soon as the service listens."""
    until = time.monotonic() + 30
    while connection.sock is None:
        try:
            connection.connect()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def ignore(event: object) -> None:
    """Listen to nothing."""


def test_pictures_are_those_of_an_engine_host_and_steps_are_told(ray: Any) -> None:
    settings = ServiceSettings(models={"playground": {"steps": 8, "device": "cpu"}})
    policies = [SafetyPolicy.preset("max-noise"), SafetyPolicy.model_validate(dict(BLOCKING))]
    jobs = [
        PictureJob(f"{number}", "playground", "a red knight on a meadow", number, policy, 64, 64, 8)
        for number, policy in enumerate(policies)
    ]
    events: list[Event] = []

    async def test() -> list[Any]:
        dispatcher = Dispatcher(settings, policies, worker_factory=make)
        await dispatcher.start()
        assert dispatcher.sizes() == {"playground": [(64, 64)]}
        answers = await dispatcher.run(jobs, 60, events.append)
        await dispatcher.drain(5)
        return list(answers)

    with ray_workers(settings, policies) as make:
        answers = asyncio.run(test())
    host = EngineHost(settings.models)
    expected = host.run(jobs, ignore, lambda: ())
    for answer, like in zip(pictures(answers), pictures(expected), strict=True):
        assert (pixels(answer.png) == pixels(like.png)).all()
        assert timeless(answer) == timeless(like)
    assert {event.step for event in events if isinstance(event, Progress)} == set(range(1, 9))


def test_a_replica_that_dies_is_replaced_and_its_job_made_once_more(ray: Any, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    job = picture("a", f"kill-once {tmp_path / 'killed'}")

    async def test() -> None:
        dispatcher = Dispatcher(settings, (), worker_factory=make)
        await dispatcher.start()
        (answer,) = await dispatcher.run([job], 120)
        assert isinstance(answer, PictureAnswer)
        assert answer.png == png_of(job)
        status = dispatcher.status()
        assert (status.restarts, status.batches) == (1, {1: 2})
        await dispatcher.drain(5)

    with ray_workers(settings, (), FakeHost) as make:
        asyncio.run(test())


def test_cancellations_reach_a_busy_replica_and_one_that_hangs_is_killed(ray: Any, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, filter_grace=3)

    async def test() -> None:
        worker = make(assignments(settings)[0])
        assert isinstance(worker, RayWorker)
        await worker.start()
        waits = tmp_path / "never"
        batch = asyncio.create_task(worker.run([picture("a", f"wait {waits}"), picture("b")], ignore))
        await reached(waits)
        worker.cancel(["a"])
        first, second = await asyncio.wait_for(batch, 60)
        assert isinstance(first, Failed)
        assert isinstance(second, PictureAnswer)
        with pytest.raises(WorkerLost, match=r"worker cpu-1 hung for 3 s and was killed"):
            await worker.run([picture("c", f"hang {tmp_path / 'hangs'}")], ignore)
        await worker.ended()
        assert not worker.alive
        with pytest.raises(WorkerLost, match="not running"):
            await worker.run([picture("d")], ignore)
        await worker.stop(0)

    async def reached(file: Path) -> None:
        async with asyncio.timeout(60):
            while not Path(f"{file}.reached").exists():
                await asyncio.sleep(0.02)

    with ray_workers(settings, (), FakeHost) as make:
        asyncio.run(test())


def test_a_host_that_cannot_have_its_models_says_why_and_is_not_tried_again(ray: Any, tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    settings = settings_for(tmp_path)

    async def test() -> None:
        dispatcher = Dispatcher(settings, (), worker_factory=make)
        with pytest.raises(ConfigurationError, match=r"^no such weights; name others$"):
            await dispatcher.start()

    with ray_workers(settings, (), FakeHost) as make:
        asyncio.run(test())


def test_a_cluster_without_room_says_what_was_asked_and_what_there_is(ray: Any, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, models=("m", "n"))
    said = r"no room for worker cuda:0-1 within 1 s: 2 replicas of 1 CPU each, 1 of them with a GPU, .* 2 CPUs .* and 0 GPUs"

    async def test() -> None:
        worker = make(assignments(settings)[1])
        with pytest.raises(ConfigurationError, match=said):
            await worker.start()

    with ray_workers(settings, (), FakeHost, room_limit=1) as make:
        asyncio.run(test())


def test_the_service_joins_a_cluster_and_leaves_nothing_there_on_sigterm(ray: Any, tmp_path: Path) -> None:
    settings = {
        "ray": True,
        "ray_address": ray.get_runtime_context().gcs_address,
        "models": {"playground": {"steps": 4, "device": "cpu"}},
        "policies": {"blocking": BLOCKING},
    }
    with service(tmp_path, settings) as running, closing(running.process.stderr or BytesIO()):
        body = {"prompt": "a red knight on a meadow", "seed": 1, "response_format": "b64_json"}
        with closing(running.connect()) as connection:
            connect(connection)
            status, _, answer = running.post("/v1/images/generations", body, connection)
        assert (status, len(answer["data"])) == (200, 1), answer
        assert answer["data"][0]["safety"]["policy"] == "blocking"
        started = {process.name(): process for process in _marked(os.environ[MARK])}
        assert any(name.startswith("ray::ServeReplica") for name in started)
        assert {str(each) for process in started.values() for each in _listening(process)} == {"127.0.0.1"}
        assert running.stop() == 0, "".join(running.log)


def test_a_cluster_that_cannot_grow_is_asked_at_once_for_its_gpus(ray: Any, tmp_path: Path) -> None:
    staff = assignments(settings_for(tmp_path, models=("m", "n")))
    with pytest.raises(ConfigurationError, match=r"2 replicas of 1 CPU each, 1 of them with a GPU"):
        RayServe(ray, serve_module(), staff, (), FakeHost).require_gpus()
    RayServe(ray, serve_module(), staff[:1], (), FakeHost).require_gpus()


def test_the_address_of_a_ray_client_is_refused(tmp_path: Path) -> None:
    settings = settings_for(tmp_path).model_copy(update={"ray_address": "ray://127.0.0.1:10001"})
    said = "run the service on a machine of the cluster"
    with pytest.raises(ConfigurationError, match=said), ray_workers(settings, ()):
        raise AssertionError("there is no client")


def test_the_handler_of_sigterm_is_as_before(ray: Any, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ray_workers(settings_for(tmp_path), (), FakeHost):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_ray_without_serve_names_the_extra(ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)  # an import finds nothing
    said = r"pip install 'sldcore\[ray,serve\]'"
    with pytest.raises(ConfigurationError, match=said), ray_workers(settings_for(tmp_path), ()):
        raise AssertionError("there is no Serve")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=said), ray_workers(settings_for(tmp_path), ()):
        raise AssertionError("there is no Ray")
