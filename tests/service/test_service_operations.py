"""Logs, readiness, metrics, history, the page and the life of the app."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from fake_backend import FakeBackend
from fastapi import FastAPI
from fastapi.testclient import TestClient
from service_app import TOKENS, Made, MemoryLedger, bearer, made_app, made_keys, made_settings

from sldcore.errors import ModelError
from sldcore.service.http import routes_catalogue
from sldcore.service.http.app import create_app
from sldcore.service.http.routes_page import POLICY, add_page

PATH = "/v1/images/generations"


def sent(client: TestClient, content: str, key: str = "user") -> Any:
    return client.post(PATH, headers={"Content-Type": "application/json", **bearer(key)}, content=content)


def test_the_log_has_a_line_per_request_and_no_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sldcore.service")
    for log_prompts in (False, True):
        caplog.clear()
        with TestClient(made_app(log_prompts=log_prompts).app) as client:
            sent(client, '{"prompt": "a red knight", "n": 2}')
            client.get("/not/a\u2028place")
        first, second = (
            each.getMessage()
            for each in caplog.records
            if each.name == "sldcore.service" and "status" in each.message
        )
        assert re.fullmatch(
            r"req_[0-9a-f]{24} POST /v1/images/generations status=200 key=user pictures=2 ms=\d+( prompt='a red knight')?",
            first,
        )
        assert ("red knight" in first) is log_prompts
        assert " GET unmatched status=404 key=- " in second
        assert TOKENS["user"] not in caplog.text


def test_health_readiness_and_metrics(client: TestClient, made: Made) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "reasons": []}
    sent(client, '{"prompt": "a red clown"}')
    sent(client, '{"prompt": "a red clown", "policy": {"name": "medium", "filters": []}}', "own")
    made.backend.ready = False
    assert client.get("/readyz").status_code == 503
    text = client.get("/metrics").text
    for line in (
        'sld_requests_total{method="POST",route="/v1/images/generations",status="200"} 1.0',
        'sld_pictures_total{action="black",policy="medium"} 1.0',
        'sld_pictures_withheld_total{policy="medium"} 1.0',
        'sld_batches_total{size="4"} 1.0',
        "sld_worker_restarts_total 2.0",
        "sld_queue_capacity 64.0",
        'sld_request_seconds_count{route="/v1/images/generations"} 2.0',
    ):
        assert line in text
    assert "clown" not in text and "sld-" not in text


def test_keys_see_what_they_may_use(client: TestClient) -> None:
    models = client.get("/v1/models", headers=bearer("limited")).json()
    assert [(each["id"], each["sizes"], each["max_steps"]) for each in models["data"]] == [
        ("small", ["32x32"], 20)
    ]
    assert client.get("/v1/models/playground", headers=bearer("limited")).status_code == 404
    assert client.get("/v1/models/playground", headers=bearer()).json()["object"] == "model"
    policies = client.get("/v1/policies", headers=bearer("own")).json()["data"]
    assert [(each["name"], each["default"]) for each in policies] == [("strong", True)]
    assert client.get("/v1/policies/medium", headers=bearer("own")).status_code == 404
    strong = client.get("/v1/policies/strong", headers=bearer("own")).json()
    assert strong["content"]["concepts"] and strong["digest"] == policies[0]["digest"]
    assert strong["content"]["guidance"]["options"]["scale"] == 2000
    me = client.get("/v1/me", headers=bearer("limited")).json()
    assert (me["id"], me["operator"], me["default_policy"], me["models"]) == (
        "limited",
        False,
        "medium",
        ["small"],
    )
    assert (me["limits"]["pictures"], me["limits"]["prompt_characters"]) == (2, 20)


def test_options_that_may_name_files_are_for_operators() -> None:
    content = {
        "guidance": {"method": "safree", "options": {"references": "/srv/latents"}, "window": {"start": 10}},
        "filters": [
            {
                "use": "prompt-terms",
                "options": {"terms": "list.txt"},
                "on_flag": {"do": "replace", "picture": "x.png"},
            }
        ],
        "plugins": ["mine.py"],
    }
    assert routes_catalogue._without_options(content) == {
        "guidance": {"method": "safree", "window": {"start": 10}},
        "filters": [{"use": "prompt-terms", "on_flag": {"do": "replace"}}],
    }


def test_operators_read_the_history_page_by_page(client: TestClient, made: Made) -> None:
    sent(client, '{"prompt": "a red clown", "n": 2}')
    sent(client, '{"prompt": "a red knight"}')
    first = client.get("/v1/audit?limit=2", headers=bearer("operator")).json()
    assert [each["action"] for each in first["data"]] == ["none", "black"]
    rest = client.get(f"/v1/audit?limit=2&before={first['next_before']}", headers=bearer("operator")).json()
    assert ([each["action"] for each in rest["data"]], rest["next_before"]) == (["black"], None)
    black = client.get("/v1/audit?action=black", headers=bearer("operator")).json()
    assert len(black["data"]) == 2
    assert client.get("/v1/audit", headers=bearer()).status_code == 403
    for wrong in ("limit=0", "limit=501", "limit=x", "before=-1"):
        answer = client.get(f"/v1/audit?{wrong}", headers=bearer("operator"))
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, wrong.partition("=")[0])
    made.ledger.broken = True
    assert client.get("/v1/audit", headers=bearer("operator")).status_code == 503


def test_without_keys_everybody_is_served_but_is_no_operator() -> None:
    app = create_app(made_settings(), FakeBackend(), MemoryLedger(), sizes={"playground": [(64, 64)]})
    with TestClient(app, base_url="http://localhost") as client:
        assert client.post(PATH, json={"prompt": "a"}).status_code == 200
        assert client.get("/v1/audit").status_code == 403
        assert client.get("/v1/me").json()["id"] == "anonymous"


def test_the_apps_life_is_the_backends_and_the_ledgers(made: Made) -> None:
    with TestClient(made.app):
        assert made.backend.drained is None
    assert made.backend.drained == 60.0
    assert made.ledger.closed


def test_the_page_has_a_strict_policy_and_loads_its_own_files_only(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!doctype html><title>page</title>")
    (tmp_path / "main.js").write_text("export {};\n")
    app = FastAPI()
    add_page(app, tmp_path)
    with TestClient(app) as client:
        for path, kind in (("/", "text/html"), ("/page/main.js", "javascript")):
            answer = client.get(path)
            assert answer.status_code == 200
            assert kind in answer.headers["content-type"]
            assert answer.headers["content-security-policy"] == POLICY
    empty = FastAPI()
    add_page(empty, tmp_path / "nowhere")
    with TestClient(empty) as client:
        assert client.get("/").status_code == 404


def test_cautious_headers_are_on_everything(client: TestClient) -> None:
    for answer in (client.get("/healthz"), client.get("/nothing"), sent(client, "{")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-request-id"].startswith("req_")


def test_sizes_may_be_told_when_the_backend_has_started() -> None:
    backend = FakeBackend()
    app = create_app(
        made_settings(), backend, MemoryLedger(), keys=made_keys(), sizes=lambda: {"playground": [(72, 72)]}
    )
    with TestClient(app) as client:
        assert client.get("/v1/models/playground", headers=bearer()).json()["sizes"] == ["72x72"]
        assert sent(client, '{"prompt": "a", "model": "small"}').json()["error"]["code"] == "starting"


def test_a_backend_that_cannot_start_leaves_no_open_ledger() -> None:
    class Unstartable(FakeBackend):
        async def start(self) -> None:
            raise ModelError("no such model")

    made = made_app(Unstartable())
    with pytest.raises(ModelError), TestClient(made.app):
        pytest.fail("it started")
    assert made.ledger.closed
    assert made.backend.drained is None


def test_without_keys_only_names_of_this_machine_are_answered() -> None:
    app = made_app(with_keys=False).app
    for host, status in (
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
    ):
        with TestClient(app, base_url=f"http://{host}") as own:
            assert own.get("/v1/me").status_code == status
            assert own.get("/healthz").status_code == 200


def test_addresses_of_pictures_begin_with_the_public_one() -> None:
    made = made_app(public_url="https://pictures.example.org/sld/")
    with TestClient(made.app) as own:
        answer = sent(own, '{"prompt": "a red clown", "response_format": "url"}').json()
    assert answer["data"][0]["url"].startswith("https://pictures.example.org/sld/v1/images/files/")
