"""What an attacker, a careless operator or an unlucky moment might get past the service, found in a review of it."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fake_backend import FakeBackend, png_of
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from service_app import SIZES, MemoryLedger, RawRequest, bearer, made_app, made_keys, made_settings

from sldcore import SafetyPolicy
from sldcore.service.backend import Status
from sldcore.service.http import routes_moderations
from sldcore.service.http.app import create_app
from sldcore.service.rights.access import Access
from sldcore.service.rights.keys import Key, KeyFile, Keys, hash_of, new_token, read_keys, write_keys
from sldcore.strictness import at_least, weaker_where

IMAGES, MODERATIONS = "/v1/images/generations", "/v1/moderations"


def key(name: str, token: str, **fields: Any) -> Key:
    return Key(id=name, sha256=hash_of(token), created="2026-01-31", **fields)


# --- keys ---------------------------------------------------------------------------------------------------------------


def test_a_revoked_key_goes_whatever_else_is_wrong_in_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.yaml"
    leaked, stays, typo = (new_token() for _ in range(3))
    write_keys(file, KeyFile(keys=(key("leaked", leaked), key("stays", stays))))
    keys = Keys.load(file)
    Access(made_settings(), keys)
    unfit = key("typo", typo, policies=("no-such-policy",))
    write_keys(file, KeyFile(keys=(*read_keys(file).keys[1:], unfit)))
    assert keys.find(leaked) is None
    assert keys.find(stays) is not None
    assert keys.find(typo) is None
    assert "key 'typo' is refused" in caplog.text and "no-such-policy" in caplog.text
    write_keys(file, KeyFile(keys=(*read_keys(file).keys[:1], key("typo", typo))))
    assert keys.find(typo) is not None


@pytest.mark.parametrize(
    ("before", "after"), [(0o640, 0o640), (0o644, 0o644), (0o600, 0o600), (0o400, 0o600)]
)
def test_who_may_read_the_keys_stays_when_a_key_is_made_or_revoked(
    tmp_path: Path, before: int, after: int
) -> None:
    file = tmp_path / "keys.yaml"
    write_keys(file, KeyFile())
    file.chmod(before)
    write_keys(file, KeyFile(keys=(key("a", new_token()),)))
    assert stat.S_IMODE(file.stat().st_mode) == after


# --- rates --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "request_body"),
    [(IMAGES, {"prompt": "a"}), (MODERATIONS, {"input": "a"})],
    ids=["images", "reviews"],
)
def test_refused_requests_count_so_that_they_cannot_fill_the_ledger(
    path: str, request_body: dict[str, str]
) -> None:
    made = made_app()
    with TestClient(made.app) as client:
        body = {**request_body, "policy": "strong"}
        answers = [client.post(path, headers=bearer("limited"), json=body) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [403, 403, 429, 429]
    assert made.ledger.actions() == ["refused", "refused"]


# --- records ------------------------------------------------------------------------------------------------------------


@dataclass
class SlowLedger(MemoryLedger):
    """Its disk waits until it is told to go on."""

    go_on: Event = field(default_factory=Event)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        assert self.go_on.wait(30)
        super().append(records)


def test_what_was_made_is_recorded_though_its_client_goes_while_the_disk_is_slow() -> None:
    ledger = SlowLedger()
    app = create_app(made_settings(), FakeBackend(), ledger, keys=made_keys(), sizes=SIZES)

    async def test() -> None:
        async with app.router.lifespan_context(app):
            bodies = (json.dumps({"prompt": "a", "seed": seed}).encode() for seed in range(3))
            clients = [RawRequest(IMAGES, body) for body in bodies]
            requests = [asyncio.create_task(client.send_to(app)) for client in clients]
            recorder = app.state.gateway.recorder
            while len(recorder._under_way) < 3:
                await asyncio.sleep(0)
            for client in clients[1:]:
                client.gone.set()
            await asyncio.gather(*requests[1:])
            ledger.go_on.set()
            await requests[0]
        assert [client.status for client in clients] == [200, 499, 499]

    asyncio.run(test())
    assert [record["seed"] for record in ledger.records] == [0, 1, 2]
    assert ledger.closed


def test_large_pictures_of_one_client_keep_no_answer_of_others_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many requests with pictures as there are threads that decode, and one more."""
    made = made_app()
    go_on, begun = Event(), []

    def slowly(*_: Any) -> bytes:
        begun.append(1)
        assert go_on.wait(30)
        return png_of((0, 0, 0))

    monkeypatch.setattr(routes_moderations, "picture_of", slowly)
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}

    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        async with made.app.router.lifespan_context(made.app):
            large = [RawRequest(MODERATIONS, json.dumps({"input": [part]}).encode()) for _ in range(3)]
            waiting = [asyncio.create_task(each.send_to(made.app)) for each in large]
            while len(begun) < 2:
                await asyncio.sleep(0)
            small = RawRequest(IMAGES, json.dumps({"prompt": "a"}).encode())
            await asyncio.wait_for(small.send_to(made.app), 10)
            go_on.set()
            await asyncio.gather(*waiting)
            assert [each.status for each in (small, *large)] == [200] * 4

    try:
        asyncio.run(test())
    finally:
        go_on.set()


# --- operators ----------------------------------------------------------------------------------------------------------


def test_a_service_that_lost_one_of_its_workers_stays_in_service(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_app()
    problems = ("worker cuda:1-1 cannot be started: secret place",)
    for alive, status in ((1, 200), (0, 503)):
        now = Status(alive > 0, workers=2, alive=alive, queued=0, capacity=64, running=0, problems=problems)
        monkeypatch.setattr(made.backend, "status", lambda now=now: now)
        with TestClient(made.app) as client:
            answer = client.get("/readyz")
        assert answer.status_code == status
        assert answer.json()["reasons"][-1] == "1 workers cannot be started; the log says why"


# --- floors -------------------------------------------------------------------------------------------------------------


def momentum(scale: float, beta: float) -> SafetyPolicy:
    options = {"scale": 1000, "threshold": 0.01, "momentum_scale": scale, "momentum_beta": beta}
    return SafetyPolicy.model_validate({"guidance": {"options": options}, "concepts": ["inappropriate"]})


@pytest.mark.parametrize("name", ["medium", "strong", "max"])
def test_momentum_cannot_be_put_off_to_the_end(name: str) -> None:
    floor = SafetyPolicy.preset(name)
    assert floor.guidance is not None
    options = {**floor.guidance.options, "momentum_scale": 1.0, "momentum_beta": 0.9999}
    guidance = {**floor.guidance.model_dump(), "options": options}
    found = weaker_where(floor.replace(guidance=guidance), floor)
    assert found == (
        f"momentum_beta is 0.9999, which cannot be compared with {floor.guidance.options['momentum_beta']}",
    )


PAIRS = st.tuples(st.sampled_from([0.0, 0.3, 0.4, 0.5, 0.6]), st.sampled_from([0.0, 0.4, 0.7, 0.9]))


@given(PAIRS, PAIRS, PAIRS)
def test_momentum_is_ordered(first: tuple[float, float], second: Any, third: Any) -> None:
    a, b, c = (momentum(*pair) for pair in (first, second, third))
    assert at_least(a, a)
    if at_least(a, b) and at_least(b, c):
        assert at_least(a, c)
    if at_least(a, b) and at_least(b, a) and first[0] > 0:
        assert first == second


WEAK_PARTS = [
    {"use": "inappropriate-ar/violence", "weight": 0.001},
    {"use": "inappropriate-ar/violence", "strength": 0.001},
    {"use": "inappropriate-ar/illegal-activity", "window": {"start": 30}},
]


@pytest.mark.parametrize("part", WEAK_PARTS)
def test_no_concept_takes_the_place_of_a_part_of_one_that_is_split(part: dict[str, Any]) -> None:
    """The text of the pack is longer than the window; some of its rows are the texts of concepts."""
    floor = SafetyPolicy.preset("max").replace(concepts=["inappropriate-ar"])
    (reason,) = weaker_where(floor.replace(concepts=[part, "inappropriate-ar"]), floor)
    assert f"'{part['use']}' has a part of the text of 'inappropriate-ar'" in reason
    assert at_least(floor.replace(concepts=["inappropriate-ar", part]), floor)
    assert at_least(floor.replace(concepts=[part["use"], "inappropriate-ar"]), floor)
    own = floor.replace(concepts=[part, "inappropriate-ar"])
    assert at_least(own, own)


def test_no_text_takes_the_place_of_the_same_one_with_a_prefix() -> None:
    floor = SafetyPolicy.preset("max").replace(concepts=[{"text": "knight clown", "prefix": "a red"}])
    own = floor.replace(concepts=[{"text": "a red knight clown", "weight": 0.01}, *floor.concepts])
    assert not at_least(own, floor)
