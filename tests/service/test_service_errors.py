from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from fake_backend import FakeBackend, busy
from fastapi.testclient import TestClient
from service_app import TOKENS, Made, bearer, made_app, served

from sldcore.service.backend import Draining
from sldcore.service.http.errors import ServiceError

PATH = "/v1/images/generations"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def made() -> Made:
    return made_app(limits={"prompt_characters": 500, "body_bytes": 4096})


@pytest.fixture
def client(made: Made) -> Iterator[TestClient]:
    with TestClient(made.app) as client:
        yield client


def sent(client: TestClient, content: str | bytes, path: str = PATH, **headers: str) -> Any:
    return client.post(path, headers={**JSON, **bearer(), **headers}, content=content)


def error_of(answer: Any) -> dict[str, Any]:
    """The error in OpenAI's shape, and nothing beside it."""
    document = answer.json()
    assert set(document) == {"error"}
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["message"].isprintable()
    assert isinstance(error, dict)
    return error


HOSTILE = {
    "no JSON": ("{", "invalid_json"),
    "nothing": ("", "invalid_json"),
    "a list": ("[]", "invalid_json"),
    "a text": ('"prompt"', "invalid_json"),
    "not UTF-8": (b'{"prompt": "\xff"}', "invalid_json"),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16"), "invalid_json"),
    "a key twice": ('{"prompt": "a", "prompt": "b"}', "invalid_json"),
    "NaN": ('{"prompt": "a", "n": NaN}', None),
    "an infinite number": ('{"prompt": "a", "n": 1e999}', "invalid_json"),
    "a long number": ('{"prompt": "a", "seed": ' + "9" * 4000 + "}", "invalid_value"),
    "a half character": ('{"prompt": "a\\ud800b"}', "invalid_json"),
    "a half character as a key": ('{"prompt": "a", "\\udfff": 1}', "invalid_json"),
    "a half character deep inside": ('{"prompt": "a", "policy": {"name": ["\\udc00"]}}', "invalid_json"),
    "a NUL": ('{"prompt": "a\\u0000b"}', "invalid_characters"),
    "an escape": ('{"prompt": "a\\u001b[31m"}', "invalid_characters"),
    "a carriage return": ('{"prompt": "a\\r\\nb"}', "invalid_characters"),
    "a C1 control": ('{"prompt": "a\\u0085b"}', "invalid_characters"),
    "a raw control": (b'{"prompt": "a\x07b"}', "invalid_json"),
    "an empty prompt": ('{"prompt": ""}', None),
    "white space": ('{"prompt": " \\n\\t"}', "empty_string"),
    "a long prompt": (json.dumps({"prompt": "a" * 501}), "string_above_max_length"),
    "no prompt": ("{}", "missing_required_parameter"),
    "a null prompt": ('{"prompt": null}', "invalid_value"),
    "a list of prompts": ('{"prompt": ["a"]}', "invalid_value"),
    "a number as a prompt": ('{"prompt": 1}', "invalid_value"),
    "a text as a number": ('{"prompt": "a", "n": "1"}', "invalid_value"),
    "a fraction": ('{"prompt": "a", "n": 1.5}', "invalid_value"),
    "a truth as a number": ('{"prompt": "a", "steps": true}', "invalid_value"),
    "a number as a truth": ('{"prompt": "a", "stream": 1}', "invalid_value"),
    "an unknown field": ('{"prompt": "a", "negative_prompt": "b"}', "unknown_parameter"),
    "a field with a control character": ('{"prompt": "a", "x\\u001by": 1}', "unknown_parameter"),
    "deep": ('{"prompt": "a", "policy": ' + '{"a":' * 40 + "1" + "}" * 40 + "}", "invalid_json"),
    "very deep": ("[" * 4000, "invalid_json"),
    "a strange size": ('{"prompt": "a", "size": "64x64x64"}', "invalid_value"),
    "a negative size": ('{"prompt": "a", "size": "-64x64"}', "invalid_value"),
    "a size in other digits": ('{"prompt": "a", "size": "\\u0666x\\u0664"}', "invalid_value"),
}


@pytest.mark.parametrize(("body", "code"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_has_one_clear_refusal(
    client: TestClient, made: Made, body: str | bytes, code: str | None
) -> None:
    answer = sent(client, body)
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["type"] == "invalid_request_error"
    assert code is None or error["code"] == code
    assert made.backend.seen == []


TRAVERSAL = [
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\x",
    "file:///etc/passwd",
    "playground/../playground",
    "medium.yaml",
]


@pytest.mark.parametrize("path", TRAVERSAL)
@pytest.mark.parametrize(
    ("field", "status"),
    [("model", 404), ("policy", 403), ("size", 400), ("quality", 400), ("response_format", 400)],
)
def test_no_text_of_a_request_is_a_path(
    client: TestClient, made: Made, path: str, field: str, status: int
) -> None:
    answer = sent(client, json.dumps({"prompt": "a", field: path}))
    assert answer.status_code == status
    assert error_of(answer)["param"] == field
    assert made.backend.seen == []


@pytest.mark.parametrize("path", TRAVERSAL)
def test_no_inline_policy_names_a_file(client: TestClient, made: Made, path: str) -> None:
    for policy in (
        {"plugins": [path]},
        {"concepts": [path]},
        {"filters": [{"use": path}]},
        {"filters": [{"use": "q16", "on_flag": {"do": "replace", "picture": path}}]},
    ):
        answer = sent(client, json.dumps({"prompt": "a", "policy": policy}), **bearer("own"))
        assert answer.status_code in (400, 403)
        assert error_of(answer)["param"] == "policy"
    assert made.backend.seen == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/policies/..%2fx",
        "/v1/images/files/..%2f..%2fx.png",
        "/page/..%2f..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page//etc/passwd",
        "/nothing",
        "/v1/",
    ],
)
def test_what_is_not_there_is_a_404(client: TestClient, path: str) -> None:
    answer = client.get(path, headers=bearer())
    assert answer.status_code == 404
    assert error_of(answer)["type"] == "invalid_request_error"


def test_a_wrong_method_is_told_the_right_one(client: TestClient) -> None:
    answer = client.get(PATH, headers=bearer())
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert error_of(answer)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/yaml", ""]
)
def test_only_json_is_taken(client: TestClient, kind: str) -> None:
    answer = sent(client, '{"prompt": "a"}', **{"Content-Type": kind})
    assert answer.status_code == 415
    error_of(answer)


def test_a_charset_is_no_other_type(client: TestClient) -> None:
    assert (
        sent(client, '{"prompt": "a"}', **{"Content-Type": "Application/JSON; charset=utf-8"}).status_code
        == 200
    )


@pytest.mark.parametrize("path", [PATH, "/v1/moderations"])
def test_a_body_is_read_up_to_the_limit_only(client: TestClient, path: str) -> None:
    field = "prompt" if path == PATH else "input"
    body = json.dumps({field: "a" * 5000})
    answer = sent(client, body, path)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"
    chunked = client.post(
        path, headers={**JSON, **bearer()}, content=(body[i : i + 100].encode() for i in range(0, 5000, 100))
    )
    assert chunked.status_code == 413


@pytest.mark.parametrize("chunked", [False, True])
def test_a_prompt_of_a_megabyte_is_refused_by_a_real_server(chunked: bool) -> None:
    with (
        served(made_app().app) as address,
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as line,
    ):
        body = json.dumps({"prompt": "a" * 2**20}).encode()
        head = [
            f"POST {PATH} HTTP/1.1",
            "Host: here",
            "Content-Type: application/json",
            f"Authorization: Bearer {TOKENS['user']}",
        ]
        head.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
        line.sendall("\r\n".join([*head, "", ""]).encode())
        line.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        answer = line.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_many_values_are_too_many(made: Made) -> None:
    made = made_app()
    with TestClient(made.app) as client:
        answer = sent(client, '{"input": [' + "1," * 200_001 + "1]}", "/v1/moderations")
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer sld-wrong",
        "Bearer ",
        "Basic c2xkLXVzZXI=",
        "sld-user",
        "Bearer sld-user sld-user",
        "Bearer \xff",
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/policies", "/v1/me", "/v1/audit", "/v1/models/playground"]
)
def test_without_a_key_nothing_is_answered(client: TestClient, header: str | None, path: str) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = client.get(path, headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert error_of(answer)["code"] == "invalid_api_key"


def test_the_key_is_asked_for_before_the_body_is_read(client: TestClient) -> None:
    answer = client.post(PATH, headers=JSON, content="{" * 5000)
    assert answer.status_code == 401


def test_a_weaker_policy_is_refused_with_what_is_weaker(client: TestClient, made: Made) -> None:
    weak = {
        "guidance": {"method": "sld", "options": {"scale": 1}},
        "concepts": ["inappropriate"],
    }
    answer = sent(client, json.dumps({"prompt": "a", "policy": weak}), **bearer("own"))
    error = error_of(answer)
    assert (answer.status_code, error["type"], error["param"]) == (403, "permission_error", "policy")
    assert "weaker than 'strong'" in error["message"]
    (record,) = made.ledger.records
    assert (record["action"], record["key"], record["kind"]) == ("refused", "own", "image")
    named = sent(client, json.dumps({"prompt": "a", "policy": "strong"}), **bearer("limited"))
    assert named.status_code == 403


def test_a_full_queue_says_when_to_come_back() -> None:
    made = made_app(FakeBackend(refuses=busy()))
    with TestClient(made.app) as client:
        for _ in range(3):  # what the queue refused is not counted against the key's rate of 2
            answer = sent(client, '{"prompt": "a"}', **bearer("limited"))
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
            assert error_of(answer)["code"] == "queue_full"
    assert made.ledger.records == []


def test_a_keys_rate_says_when_to_come_back(client: TestClient) -> None:
    answers = [sent(client, '{"prompt": "a"}', **bearer("limited")) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    error = error_of(answers[-1])
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60


def test_a_service_that_stops_says_so() -> None:
    made = made_app(FakeBackend(refuses=Draining()))
    with TestClient(made.app) as client:
        answer = sent(client, '{"prompt": "a"}')
    assert (answer.status_code, error_of(answer)["code"]) == (503, "draining")


def test_what_breaks_behind_is_recorded_and_gives_no_details(caplog: pytest.LogCaptureFixture) -> None:
    made = made_app(FakeBackend(breaks=RuntimeError("secret place")))
    with TestClient(made.app) as client:
        answer = sent(client, '{"prompt": "a"}')
    assert answer.status_code == 500
    assert error_of(answer)["type"] == "server_error"
    assert "secret" not in answer.text
    assert "secret place" in caplog.text
    assert made.ledger.actions() == ["failed"]


def test_what_breaks_in_a_route_gives_no_details(caplog: pytest.LogCaptureFixture) -> None:
    made = made_app()

    @made.app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("secret place")

    with TestClient(made.app) as client:
        answer = client.get("/broken")
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in error_of(answer)["message"]
    assert "secret" not in answer.text
    assert "secret place" in caplog.text


def test_an_unknown_status_has_a_type_of_its_class() -> None:
    assert ServiceError(409, "x").body["error"]["type"] == "invalid_request_error"
    assert ServiceError(507, "x").body["error"]["type"] == "server_error"
