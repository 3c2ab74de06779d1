"""The description and the service agree: what schemathesis makes of the one, the other answers as described."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS, load_all_checks
from service_app import bearer, made_app

from sldcore.service.http.routes_page import POLICY

OPERATIONS = (
    "generate_images", "fetch_image", "review", "list_models", "get_model", "list_policies", "get_policy", "who_am_i",
    "health", "readiness", "metrics", "list_records",
)  # fmt: skip
WITH_WRONG_REQUESTS = ("generate_images", "review", "list_records")
LIMITS = {"prompt_characters": 200, "pictures": 4, "review_inputs": 3}


@pytest.fixture(scope="module")
def described() -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", made_app(limits=LIMITS).app)


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Every other request asks for what there is: names of models and so on are no part of the description."""
    if isinstance(body, dict) and len(str(body)) % 2:
        there = {"model": "small", "size": "32x32", "policy": "medium", "steps": 5, "unguided": False}
        body = {**body, **{name: value for name, value in there.items() if name in body}}
    return body


# Not everything that fits the schema can be had: seeds that run out, models and policies that there are not.
load_all_checks()
CHECKED = [CHECKS.get_one(name) for name in CHECKS.get_all_names() if name != "positive_data_acceptance"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, schemathesis.GenerationMode.POSITIVE) for name in OPERATIONS),
        *((name, schemathesis.GenerationMode.NEGATIVE) for name in WITH_WRONG_REQUESTS),
    ],
)
def test_answers_are_as_described(described: Any, name: str, mode: schemathesis.GenerationMode) -> None:
    operation = described.find_operation_by_id(name)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=25 if operation.method == "post" else 5,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def answers_are_as_described(case: Any) -> None:
        case.validate_response(case.call(headers=bearer("operator")), checks=CHECKED)

    answers_are_as_described()


def test_every_operation_is_tested_against_everything_that_is_described(described: Any) -> None:
    names = {check.__name__ for check in CHECKED}
    assert {
        "not_a_server_error",
        "status_code_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
    } <= names
    assert {each.ok().definition.raw["operationId"] for each in described.get_all_operations()} == set(
        OPERATIONS
    )


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(made_app(limits=LIMITS).app) as client:
        yield client


def test_the_description_has_this_services_limits(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    fields = document["components"]["schemas"]["ImageRequest"]["properties"]
    assert fields["prompt"]["maxLength"] == 200
    assert fields["n"]["anyOf"][0]["maximum"] == 4
    assert fields["steps"]["anyOf"][0]["maximum"] == 100


def test_every_app_describes_its_own_limits(client: TestClient) -> None:
    with TestClient(made_app(limits={"review_inputs": 7, "prompt_characters": 77}).app) as other:
        found = [
            each.get("/openapi.json").json()["components"]["schemas"] for each in (client, other, client)
        ]
    inputs = [each["ModerationRequest"]["properties"]["input"]["anyOf"] for each in found]
    assert [(each[0]["maxLength"], each[1]["maxItems"]) for each in inputs] == [(200, 3), (77, 7), (200, 3)]


def test_routes_say_which_need_a_key_and_what_they_answer(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    needed = {path for path, methods in paths.items() for each in methods.values() if each.get("security")}
    assert needed == {path for path in paths if path.startswith("/v1/") and "files" not in path}
    assert {"401", "403", "413", "415", "429", "503", "504"} <= set(
        paths["/v1/images/generations"]["post"]["responses"]
    )
    contents = paths["/v1/images/generations"]["post"]["responses"]["200"]["content"]
    assert set(contents) == {"application/json", "text/event-stream"}
    assert not [
        each
        for path in paths.values()
        for method in path.values()
        for each in method["responses"]
        if each == "422"
    ]


def test_the_description_for_people_runs_and_loads_nothing(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-security-policy"] == POLICY
    assert "POST /v1/images/generations" in answer.text
    assert not re.search(
        r"<script|<style|\ssrc=|https?:", re.sub(r"<pre>.*?</pre>", "", answer.text, flags=re.DOTALL)
    )


def test_the_description_can_be_left_out() -> None:
    with TestClient(made_app(docs=False, page=False).app) as client:
        assert [client.get(path).status_code for path in ("/docs", "/openapi.json", "/")] == [404, 404, 404]
