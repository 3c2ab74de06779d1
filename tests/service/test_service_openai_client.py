"""The official client, unchanged, against a real server."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator

import openai
import pytest
from fake_backend import FakeBackend, busy, png_of
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from service_app import TOKENS, made_app, served

from sldcore.service.backend import Draining


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(made_app(FakeBackend(fails={77: "lost"})).app) as address:
        yield address


def client_of(address: str, key: str = TOKENS["user"]) -> openai.OpenAI:
    return openai.OpenAI(api_key=key, base_url=f"{address}/v1", max_retries=0)


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with client_of(address) as client:
        yield client


def test_pictures_in_base64(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt="a red knight",
        n=3,
        model="playground",
        size="128x64",
        extra_body={"seed": 1, "policy": "strong"},
    )
    assert answer.data is not None
    assert [b64decode(picture.b64_json or "") for picture in answer.data] == [
        png_of((0, seed, 255)) for seed in (1, 2, 3)
    ]
    assert (answer.size, answer.output_format, answer.background) == ("128x64", "png", "opaque")
    assert answer._request_id is not None and answer._request_id.startswith("req_")


def test_pictures_by_address(client: openai.OpenAI, address: str) -> None:
    answer = client.images.generate(prompt="a red knight", response_format="url", extra_body={"seed": 4})
    assert answer.data is not None
    url = answer.data[0].url
    assert url is not None and url.startswith(f"{address}/v1/images/files/")
    assert client._client.get(url).content == png_of((0, 4, 255))


def test_a_stream_with_partial_pictures(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        prompt="a red knight", stream=True, partial_images=2, extra_body={"seed": 5}
    )
    events = list(stream)
    assert [type(event) for event in events] == [ImageGenPartialImageEvent] * 2 + [ImageGenCompletedEvent]
    completed = events[-1]
    assert isinstance(completed, ImageGenCompletedEvent)
    assert b64decode(completed.b64_json) == png_of((0, 5, 255))
    assert completed.usage.total_tokens == 0


def test_a_stream_gives_what_was_made_before_it_raises(client: openai.OpenAI) -> None:
    stream = client.images.generate(prompt="a red knight", n=2, stream=True, extra_body={"seed": 76})
    assert isinstance(next(stream), ImageGenCompletedEvent)
    with pytest.raises(openai.APIError, match="told to fail"):
        next(stream)


def test_texts_and_pictures_are_reviewed(client: openai.OpenAI) -> None:
    texts = client.moderations.create(input=["a red knight", "a red clown"])
    assert [result.flagged for result in texts.results] == [False, True]
    url = f"data:image/png;base64,{b64encode(png_of((255, 0, 0))).decode()}"
    both = client.moderations.create(
        input=[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": url}}]
    )
    (result,) = both.results
    assert result.flagged
    assert result.categories.to_dict() == {"clown": True, "axe": False}
    assert result.category_scores.to_dict()["clown"] == 0.9


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["playground", "small"]
    assert client.models.retrieve("small").owned_by == "operator"


def test_errors_are_the_clients_own_classes(client: openai.OpenAI, address: str) -> None:
    with client_of(address, "sld-wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.images.generate(prompt="a")
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a", n=100)
    assert (refused.value.param, refused.value.type) == ("n", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(prompt="a", model="gpt-image-2")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.PermissionDeniedError):
        client.images.generate(prompt="a", extra_body={"policy": "off"})
    with pytest.raises(openai.InternalServerError):
        client.images.generate(prompt="a", extra_body={"seed": 77})
    with client_of(address, TOKENS["limited"]) as limited:
        limited.images.generate(prompt="a", n=2)
        limited.images.generate(prompt="a")
        with pytest.raises(openai.RateLimitError) as limit:
            limited.images.generate(prompt="a")
    assert int(limit.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("problem", "error"), [(busy(), openai.RateLimitError), (Draining(), openai.InternalServerError)]
)
def test_a_service_without_room_says_so(problem: Exception, error: type[Exception]) -> None:
    with (
        served(made_app(FakeBackend(refuses=problem)).app) as address,
        client_of(address) as client,
        pytest.raises(error),
    ):
        client.images.generate(prompt="a")
