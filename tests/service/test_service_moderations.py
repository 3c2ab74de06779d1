from __future__ import annotations

import zlib
from base64 import b64encode
from io import BytesIO
from typing import Any

import pytest
from fake_backend import FakeBackend, png_of
from fastapi.testclient import TestClient
from PIL import Image
from service_app import Made, bearer, left_by_its_client, made_app

from sldcore.policy import SafetyPolicy
from sldcore.service.jobs import ReviewJob

PATH = "/v1/moderations"
RED, BLUE = png_of((255, 0, 0)), png_of((0, 0, 255))


def asked(client: TestClient, input_: Any, **more: Any) -> Any:
    return client.post(PATH, headers=bearer(), json={"input": input_, **more})


def picture(content: bytes, kind: str = "png") -> dict[str, Any]:
    url = f"data:image/{kind};base64,{b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_a_text_has_categories_and_scores_of_the_filters(client: TestClient) -> None:
    answer = asked(client, "a red clown")
    assert answer.status_code == 200
    document = answer.json()
    assert document["id"].startswith("modr-")
    assert document["model"] == "playground"
    (result,) = document["results"]
    assert result["flagged"] is True
    assert result["categories"] == {"clown": True, "axe": False}
    assert result["category_scores"] == {"clown": 0.9, "axe": 0.2}
    assert result["category_applied_input_types"] == {"clown": ["text"], "axe": ["text"]}
    assert result["sld"]["policy_digest"] == SafetyPolicy.preset("medium").digest
    assert result["sld"]["errors"] == []
    assert result["sld"]["inputs"][0]["reason"] == "flagged for clown by fake"


def test_each_text_of_a_list_has_a_result(client: TestClient, made: Made) -> None:
    results = asked(client, ["a red knight", "a red clown"]).json()["results"]
    assert [result["flagged"] for result in results] == [False, True]
    assert made.ledger.actions() == ["none", "black"]


def test_all_parts_share_a_result(client: TestClient, made: Made) -> None:
    results = asked(client, [text("a red knight"), picture(RED)]).json()["results"]
    (result,) = results
    assert result["flagged"] is True
    assert result["category_scores"]["clown"] == 0.9
    assert result["category_applied_input_types"]["clown"] == ["text", "image"]
    assert [each["flagged"] for each in result["sld"]["inputs"]] == [False, True]
    jobs = [job for job in made.backend.seen if isinstance(job, ReviewJob)]
    assert [(job.text, job.picture) for job in jobs] == [("a red knight", None), (None, RED)]
    (harmless,) = asked(client, [picture(BLUE)]).json()["results"]
    assert harmless["flagged"] is False


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_formats_are_told_by_content(client: TestClient, kind: str) -> None:
    buffer = BytesIO()
    Image.new("RGB", (40, 30), "blue").save(buffer, kind)
    assert asked(client, [picture(buffer.getvalue(), "png")]).status_code == 200


def test_what_a_filter_could_not_review_counts_as_flagged() -> None:
    made = made_app(FakeBackend(error="no file /secret/place"))
    with TestClient(made.app) as client:
        (result,) = asked(client, "a red knight").json()["results"]
    assert result["flagged"] is True
    assert result["categories"] == {"clown": False, "axe": False}
    assert result["sld"]["errors"] == [{"input": "input", "message": "fake failed"}]


def test_without_a_record_no_verdict_leaves(client: TestClient, made: Made) -> None:
    made.ledger.broken = True
    answer = asked(client, "a red knight")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "audit_unavailable")


def test_a_client_that_goes_away_cancels_its_reviews() -> None:
    made = made_app(FakeBackend(hold=True))

    left_by_its_client(made, PATH, b'{"input": ["a", "b"]}')
    assert len(made.backend.cancelled) == 2
    assert [each["kind"] for each in made.ledger.records] == ["review", "review"]


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png(width: int, height: int, *between: bytes, data: bytes = b"") -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    pixels = chunk(b"IDAT", data or zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(between) + pixels + chunk(b"IEND", b"")


def animated(kind: str) -> bytes:
    buffer = BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def webp_of(width: int, height: int) -> bytes:
    body = b"VP8X" + (10).to_bytes(4, "little") + bytes(4)
    body += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body


def jpeg_of(width: int, height: int) -> bytes:
    frame = b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x01\x01\x11\x00"
    return b"\xff\xd8\xff\xc0" + (2 + len(frame)).to_bytes(2, "big") + frame


def saved(kind: str) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, kind)
    return buffer.getvalue()


BOMB = b"x\0\0" + zlib.compress(bytes(40_000_000))

PICTURES = {
    "a huge PNG": (png(60_000, 60_000), "image_too_large"),
    "a long PNG": (png(20_000, 1), "image_too_large"),
    "one pixel too many": (png_of((0, 0, 0), (73, 137)), "image_too_large"),
    "a huge JPEG": (jpeg_of(60_000, 60_000), "image_too_large"),
    "a huge WebP": (webp_of(16_000, 16_000), "image_too_large"),
    "a PNG without a size": (png(0, 10), "invalid_image"),
    "a JPEG without a size": (b"\xff\xd8\xff\xd9" + bytes(99), "invalid_image"),
    "a WebP of no kind": (b"RIFF\0\0\0\0WEBPABCD" + bytes(99), "invalid_image"),
    "a text bomb before the pixels": (png(5, 5, chunk(b"zTXt", BOMB)), "invalid_image"),
    "a profile bomb": (png(5, 5, chunk(b"iCCP", BOMB)), "invalid_image"),
    "too few pixels": (png(90, 90), "invalid_image"),
    "pixels that do not unpack": (png(8, 8, data=b"nothing"), "invalid_image"),
    "a truncated PNG": (saved("PNG")[:-200], "invalid_image"),
    "a truncated JPEG": (saved("JPEG")[:-200], "invalid_image"),
    "a truncated WebP": (saved("WEBP")[:-200], "invalid_image"),
    "a PNG that ends in its header": (saved("PNG")[:20], "invalid_image"),
    "an animated PNG": (animated("PNG"), "animated_image"),
    "an animated WebP": (animated("WEBP"), "animated_image"),
    "a GIF": (saved("GIF"), "invalid_image_format"),
    "a BMP": (saved("BMP"), "invalid_image_format"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "invalid_image_format"),
    "a script": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "invalid_image_format"),
    "nothing": (b"", "invalid_image_format"),
}


@pytest.mark.parametrize(("content", "code"), PICTURES.values(), ids=PICTURES.keys())
def test_a_hostile_picture_has_one_clear_refusal(
    client: TestClient, made: Made, content: bytes, code: str
) -> None:
    answer = asked(client, [text("a"), picture(content)])
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, "input.1.image_url.url")
    assert made.backend.seen == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:1/a.png", "invalid_image_url"),
        ("https://example.com/a.png", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("../../etc/passwd", "invalid_image_url"),
        ("data:text/html;base64,AAAA", "invalid_image_url"),
        ("data:image/png,AAAA", "invalid_image_url"),
        ("data:image/png;base64,AA AA", "invalid_base64"),
        ("data:image/png;base64,AAA", "invalid_base64"),
        ("data:image/png;base64,AA-_", "invalid_base64"),
        ("data:image/png;base64,\u0410AAA", "invalid_base64"),
    ],
)
def test_only_base64_in_data_urls_is_taken(client: TestClient, url: str, code: str) -> None:
    answer = asked(client, [{"type": "image_url", "image_url": {"url": url}}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize(
    "input_",
    [
        None, 1, True, {}, [], "", " ", [""], ["a", 1], ["a", text("b")], [text("")], [{"type": "text"}], [{"type": "audio"}],
        [{**text("a"), "path": "/etc"}], [{"type": "image_url", "image_url": "x"}], ["a"] * 5, [[["a"]]], "a" * 501, "a\0",
        [{"type": "image_url", "image_url": {"url": 1}}], [{"type": "image_url", "image_url": {"url": "x", "detail": "high"}}],
    ],
)  # fmt: skip
def test_what_is_no_input_is_refused(client: TestClient, made: Made, input_: Any) -> None:
    answer = asked(client, input_)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("input")
    assert made.backend.seen == []
