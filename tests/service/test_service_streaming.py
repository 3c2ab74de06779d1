from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fake_backend import FakeBackend, busy
from fastapi.testclient import TestClient
from service_app import Made, RawRequest, bearer, left_by_its_client, made_app

from sldcore.service.http import streaming

PATH = "/v1/images/generations"


def streamed(client: TestClient, **request: Any) -> Any:
    return client.post(PATH, headers=bearer(), json={"prompt": "a red knight", "stream": True, **request})


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_partial_pictures_come_before_the_picture(client: TestClient, made: Made) -> None:
    answer = streamed(client, partial_images=2, seed=4)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    found = events(answer.text)
    assert [name for name, _ in found] == ["image_generation.partial_image"] * 2 + [
        "image_generation.completed"
    ]
    assert [data["partial_image_index"] for _, data in found[:2]] == [0, 1]
    done = found[-1][1]
    assert done["type"] == "image_generation.completed"
    assert (done["seed"], done["index"], done["size"]) == (4, 0, "64x64")
    assert done["safety"]["action"] == "none"
    assert [(each["action"], each["partials"]) for each in made.ledger.records] == [("none", 2)]


def test_progress_comes_if_it_is_asked_for(client: TestClient) -> None:
    found = events(streamed(client, progress=True, n=2).text)
    steps = [
        (data["index"], data["step"], data["total"], data["attempt"])
        for name, data in found
        if "progress" in name
    ]
    assert steps == [(index, step, 3, 1) for index in (0, 1) for step in (1, 2, 3)]
    assert [data["index"] for name, data in found if "completed" in name] == [0, 1]
    assert len(events(streamed(client).text)) == 1


def test_what_fails_comes_last() -> None:
    made = made_app(FakeBackend(fails={1: "lost"}))
    with TestClient(made.app) as client:
        found = events(streamed(client, n=2, seed=1).text)
    assert [(name, data["index"]) for name, data in found] == [
        ("image_generation.completed", 1),
        ("error", 0),
    ]
    assert found[1][1]["error"]["code"] == "lost"


def test_what_goes_wrong_before_the_first_event_has_a_status() -> None:
    made = made_app(FakeBackend(refuses=busy()))
    with TestClient(made.app) as client:
        answer = streamed(client)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    made = made_app(FakeBackend(fails={1: "deadline"}))
    with TestClient(made.app) as client:
        assert streamed(client, seed=1).status_code == 504


def test_what_goes_wrong_later_is_an_event() -> None:
    made = made_app(FakeBackend(fails={1: "deadline"}))
    with TestClient(made.app) as client:
        answer = streamed(client, seed=1, progress=True)
    assert answer.status_code == 200
    name, data = events(answer.text)[-1]
    assert (name, data["error"]["code"]) == ("error", "deadline")


def test_without_a_record_no_streamed_picture_leaves(client: TestClient, made: Made) -> None:
    made.ledger.broken = True
    found = events(streamed(client, partial_images=1).text)
    assert [name for name, _ in found] == ["image_generation.partial_image", "error"]
    assert found[-1][1]["error"]["code"] == "audit_unavailable"
    # From then on it is known that records cannot be written.
    assert streamed(client, partial_images=1).status_code == 503


def test_a_client_that_leaves_its_stream_cancels_the_work() -> None:
    made = made_app(FakeBackend(hold=True))

    async def scenario() -> RawRequest:
        async with made.app.router.lifespan_context(made.app):
            request = RawRequest(PATH, b'{"prompt": "x", "stream": true, "partial_images": 2}')
            task = asyncio.create_task(request.send_to(made.app))
            await made.backend.running.wait()
            while len(request.messages) < 3:
                await asyncio.sleep(0)
            request.gone.set()
            await task
            return request

    request = asyncio.run(scenario())
    assert request.status == 200
    assert len(made.backend.cancelled) == 1
    (record,) = made.ledger.records
    assert (record["failed"]["reason"], record["partials"]) == ("cancelled", 2)


def test_a_client_that_leaves_before_the_first_event_cancels_the_work() -> None:
    made = made_app(FakeBackend(hold=True))

    assert left_by_its_client(made, PATH, b'{"prompt": "x", "stream": true}').status == 499
    assert [each["failed"]["reason"] for each in made.ledger.records] == ["cancelled"]


def test_a_silent_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SILENCE", 0.001)
    made = made_app(FakeBackend(hold=True))

    async def scenario() -> RawRequest:
        async with made.app.router.lifespan_context(made.app):
            request = RawRequest(PATH, b'{"prompt": "x", "stream": true}')
            task = asyncio.create_task(request.send_to(made.app))
            while len(request.messages) < 3:
                await asyncio.sleep(0.001)
            request.gone.set()
            await task
            return request

    assert [each["body"] for each in asyncio.run(scenario()).messages[1:3]] == [b": still at work\n\n"] * 2
