from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from io import BytesIO
from typing import Any

import pytest
from fake_backend import FakeBackend, png_of
from fastapi.testclient import TestClient
from PIL import Image
from service_app import Made, RawRequest, bearer, left_by_its_client, made_app

from sldcore.policy import SafetyPolicy
from sldcore.service.http.app import create_app
from sldcore.service.http.pictures_store import PicturesStore
from sldcore.service.jobs import PictureJob
from sldcore.service.ledger import open_ledger
from sldcore.service.settings import AuditSettings, ServiceSettings

PATH = "/v1/images/generations"


def asked(client: TestClient, key: str = "user", **request: Any) -> Any:
    return client.post(PATH, headers=bearer(key), json={"prompt": "a red knight", **request})


def pixel(b64: str) -> tuple[int, ...]:
    with Image.open(BytesIO(b64decode(b64))) as picture:
        found = picture.convert("RGB").getpixel((0, 0))
    assert isinstance(found, tuple)
    return found


def test_pictures_come_in_the_order_of_their_seeds(client: TestClient, made: Made) -> None:
    answer = asked(client, n=3, seed=5, steps=7, size="128x64", model="playground")
    assert answer.status_code == 200
    document = answer.json()
    assert [entry["seed"] for entry in document["data"]] == [5, 6, 7]
    assert [pixel(entry["b64_json"]) for entry in document["data"]] == [
        (0, 5, 255),
        (0, 6, 255),
        (0, 7, 255),
    ]
    assert document["size"] == "128x64"
    job = made.backend.seen[0]
    assert isinstance(job, PictureJob)
    assert (job.width, job.height, job.steps, job.prompt) == (128, 64, 7, "a red knight")


def test_what_is_left_out_or_null_is_the_models_and_the_keys_own(client: TestClient, made: Made) -> None:
    assert asked(client, n=None, size="auto", steps=None, policy=None).status_code == 200
    (job,) = made.backend.seen
    assert isinstance(job, PictureJob)
    assert (job.model, job.width, job.height, job.steps) == ("playground", 64, 64, 10)
    assert job.policy == SafetyPolicy.preset("medium")


def test_without_a_seed_every_picture_has_a_random_one(client: TestClient) -> None:
    seeds = [entry["seed"] for _ in range(2) for entry in asked(client, n=8).json()["data"]]
    assert len(set(seeds)) == 16
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_withheld_picture_is_an_entry_that_says_why(client: TestClient) -> None:
    answer = asked(client, prompt="a red clown", seed=1)
    assert answer.status_code == 200
    (entry,) = answer.json()["data"]
    assert pixel(entry["b64_json"]) == (0, 0, 0)
    assert entry["safety"] == {
        "withheld": True,
        "action": "black",
        "flagged": True,
        "unreviewed": False,
        "reason": "flagged for clown by fake",
        "policy": "medium",
        "policy_digest": SafetyPolicy.preset("medium").digest,
        "attempts": 1,
    }


def test_a_filters_own_error_is_told_to_operators_only() -> None:
    made = made_app(FakeBackend(error="no file /secret/place"))
    with TestClient(made.app) as client:
        reasons = [asked(client, key).json()["data"][0]["safety"]["reason"] for key in ("user", "operator")]
    assert reasons == ["fake failed", "fake failed: no file /secret/place"]


def test_an_explanation_has_verdicts_heat_and_curves(client: TestClient) -> None:
    (entry,) = asked(client, explain=True).json()["data"]
    safety = entry["safety"]
    assert safety["verdicts"][0]["scores"] == {"clown": 0.1, "axe": 0.2}
    assert pixel(safety["heat_b64"]) == (9, 9, 9)
    assert safety["curves"] == {"violence": {"norm": [None, 1.0], "relevance": [None, 0.5]}}
    assert safety["seconds"] == 0.5
    assert "unguided_b64" not in safety


def test_unguided_pictures_are_for_operators(client: TestClient, made: Made) -> None:
    refused = asked(client, unguided=True)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "operators_only"
    assert made.ledger.actions() == ["refused"]
    (entry,) = asked(client, "operator", unguided=True).json()["data"]
    assert pixel(entry["safety"]["unguided_b64"]) == (1, 2, 3)


def test_one_that_fails_takes_no_other_with_it() -> None:
    made = made_app(FakeBackend(fails={2: "lost"}))
    with TestClient(made.app) as client:
        answer = asked(client, n=3, seed=1)
    assert answer.status_code == 200
    kept, failed, also_kept = answer.json()["data"]
    assert kept["b64_json"] and also_kept["b64_json"]
    assert failed["b64_json"] is None
    assert failed["error"] == {
        "message": "told to fail",
        "type": "server_error",
        "param": None,
        "code": "lost",
    }
    assert made.ledger.actions() == ["none", "failed", "none"]


@pytest.mark.parametrize(
    ("reason", "status"),
    [("invalid", 400), ("deadline", 504), ("draining", 503), ("lost", 502), ("failed", 500)],
)
def test_if_all_fail_the_answer_does(reason: Any, status: int) -> None:
    made = made_app(FakeBackend(fails={1: reason, 2: reason}))
    with TestClient(made.app) as client:
        answer = asked(client, n=2, seed=1)
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == "told to fail"
    assert made.ledger.actions() == ["failed", "failed"]


def test_each_picture_has_a_record_of_its_own(client: TestClient, made: Made) -> None:
    answer = asked(client, prompt="a red clown", n=2, seed=1)
    request = answer.headers["x-request-id"]
    assert [(each["request"], each["index"], each["key"]) for each in made.ledger.records] == [
        (request, 0, "user"),
        (request, 1, "user"),
    ]
    assert made.ledger.actions() == ["black", "black"]
    assert "red clown" not in json.dumps(made.ledger.records)


def test_without_a_record_no_picture_leaves(client: TestClient, made: Made) -> None:
    made.ledger.broken = True
    answer = asked(client)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "audit_unavailable"
    assert "secret" not in answer.text
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "audit" in ready.json()["reasons"][0]
    made.ledger.broken = False
    # Who is not ready gets no requests, so that asking whether it is must be enough.
    assert client.get("/readyz").status_code == 200
    assert asked(client).status_code == 200
    assert [each["kind"] for each in made.ledger.records] == ["start", "image"]


def test_the_real_ledger_takes_what_is_recorded(tmp_path: Any) -> None:
    settings = ServiceSettings(audit=AuditSettings(path=tmp_path / "audit.sqlite"))
    ledger = open_ledger(settings.audit)
    app = create_app(settings, FakeBackend(), ledger, sizes={"playground": [(64, 64)]})
    with TestClient(app, base_url="http://localhost") as client:
        assert client.post(PATH, json={"prompt": "a red clown", "n": 2, "steps": 3}).status_code == 200
    assert [(each["action"], each["key"]) for each in open_ledger(settings.audit).page(2)] == [
        ("black", "anonymous")
    ] * 2


def test_a_client_that_goes_away_cancels_its_pictures_and_leaves_records() -> None:
    made = made_app(FakeBackend(hold=True))

    request = left_by_its_client(made, PATH, b'{"prompt": "a red knight", "n": 2}')
    assert request.status == 499
    assert len(made.backend.cancelled) == 2
    assert [each["failed"]["reason"] for each in made.ledger.records] == ["cancelled", "cancelled"]


def test_a_server_that_gives_up_a_request_leaves_records_too() -> None:
    made = made_app(FakeBackend(hold=True))

    async def scenario() -> None:
        async with made.app.router.lifespan_context(made.app):
            task = asyncio.create_task(RawRequest(PATH, b'{"prompt": "a red knight"}').send_to(made.app))
            await made.backend.running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scenario())
    assert len(made.backend.cancelled) == 1
    assert [each["failed"]["reason"] for each in made.ledger.records] == ["cancelled"]


def test_pictures_can_be_fetched_by_address(client: TestClient) -> None:
    (entry,) = asked(client, response_format="url", seed=3).json()["data"]
    assert entry["b64_json"] is None
    assert entry["url"].startswith("http://testserver/v1/images/files/")
    answer = client.get(entry["url"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content == png_of((0, 3, 255))
    assert client.get(entry["url"].replace(".png", "x.png")).status_code == 404


@pytest.mark.parametrize("host", ["evil.example/a", "a@b", "x y", "", "[::1", "a:1:2", 'a"b'])
def test_a_strange_host_header_is_not_repeated(client: TestClient, host: str) -> None:
    answer = client.post(
        PATH,
        headers={**bearer(), "Host": host},
        json={"prompt": "a red knight", "response_format": "url"},
    )
    assert answer.json()["data"][0]["url"].startswith("http://127.0.0.1:8000/v1/images/files/")


def test_the_store_forgets_what_is_old_and_what_is_too_much() -> None:
    now = [0.0]
    store = PicturesStore(most_bytes=10, seconds=60, clock=lambda: now[0])
    first, second = store.put(b"12345"), store.put(b"67890")
    assert (store.get(first), store.get(second)) == (b"12345", b"67890")
    third = store.put(b"1")
    assert (store.get(first), store.get(second), store.get(third)) == (None, b"67890", b"1")
    now[0] = 61.0
    assert store.get(second) is None
    assert first != second and len(first) >= 43


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("n", {"n": 9}),
        ("n", {"n": 0}),
        ("steps", {"steps": 101}),
        ("steps", {"steps": 1, "model": "small"}),
        ("size", {"size": "65x64"}),
        ("size", {"size": "128x64", "model": "small"}),
        ("seed", {"seed": 2**32}),
        ("seed", {"seed": 2**32 - 1, "n": 2}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": True}),
        ("partial_images", {"partial_images": 1}),
        ("progress", {"progress": True}),
        ("response_format", {"response_format": "url", "stream": True}),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    client: TestClient, made: Made, field: str, request_: Any
) -> None:
    answer = asked(client, **request_)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert made.backend.seen == []


def test_the_last_seeds_can_be_asked_for(client: TestClient) -> None:
    seeds = [entry["seed"] for entry in asked(client, seed=2**32 - 2, n=2).json()["data"]]
    assert seeds == [2**32 - 2, 2**32 - 1]


def test_a_keys_own_limits_count(client: TestClient) -> None:
    refusals = {
        "n": {"n": 3},
        "steps": {"steps": 21},
        "prompt": {"prompt": "a red knight on a meadow"},
        "model": {"model": "playground"},
    }
    for field, request in refusals.items():
        assert asked(client, "limited", **request).json()["error"]["param"] == field
    assert asked(client, "limited", n=2).status_code == 200


def test_fields_of_openai_that_change_nothing_are_accepted(client: TestClient) -> None:
    fields = {
        "user": "someone", "safety_identifier": "x", "quality": "hd", "style": "vivid", "moderation": "low",
        "background": "opaque", "output_format": "png", "output_compression": 50, "complexity": "low", "svg": None,
    }  # fmt: skip
    assert asked(client, **fields).status_code == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("output_format", "webp"),
        ("background", "transparent"),
        ("svg", {"model": "x"}),
        ("frame_count", 3),
        ("promt", "x"),
    ],
)
def test_fields_that_change_the_meaning_are_refused(client: TestClient, field: str, value: Any) -> None:
    error = asked(client, **{field: value}).json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", field)
