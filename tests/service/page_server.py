"""A stand-in for the service, for tests of its page: canned answers, also those that are hard to provoke in the real one.

The prompt says what happens: ``SCENES`` maps words in it to what the stream sends.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from sldcore.service import http

FILES = Path(http.__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KEY = "sld-test-key"
STEPS = 20
DIGEST = "sha256:" + "3f9c0a" * 10
CONCEPTS = ("knight", "clown", "doctor", "inappropriate/violence")
ACTIONS = ("none", "none", "flag", "black", "none", "block", "pixelate")


@cache
def picture(tone: int) -> str:
    """A picture of 64 x 64 with a disc, as PNG in base64."""
    y, x = np.mgrid[0:64, 0:64]
    disc = (x - 32) ** 2 + (y - 26) ** 2 < 260
    red = np.where(disc, tone, 90 + y)
    pixels = np.stack([red, np.where(disc, 70, 150 - y), np.where(disc, 60, 200 - 2 * y)], axis=-1)
    buffer = BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def verdict(score: float, **changes: Any) -> dict[str, Any]:
    found = {
        "filter": "playground-glyphs",
        "version": "1.0",
        "flagged": score >= 0.5,
        "shadow": False,
        "seconds": 0.0123,
    }
    return (
        found
        | {
            "scores": {"glyph": score, "other": 0.00002},
            "thresholds": {"glyph": 0.5, "other": 0.9},
            "reason": "",
        }
        | changes
    )


def curve(height: float) -> dict[str, list[float | None]]:
    norms = [None if step % 7 == 6 else height * np.exp(-(((step - 8) / 5) ** 2)) for step in range(STEPS)]
    return {"norm": norms, "relevance": [None if norm is None else norm / 9 for norm in norms]}


def safety(action: str, score: float, **changes: Any) -> dict[str, Any]:
    trace = [
        {
            "concept": name,
            "steps_applied": 17,
            "rows_evaluated": 17,
            "first_step_acted": 3,
            "max_norm": 8.25,
            "mean_relevance": 0.31,
        }
        for name in CONCEPTS
    ]
    said = {
        "action": action, "flagged": score >= 0.5, "withheld": action not in ("none", "flag"), "reason": "", "policy": "medium",
        "policy_digest": DIGEST, "attempts": 1, "rows": 260, "plain_rows": 40, "verdicts": [verdict(score)], "trace": trace,
        "curves": {name: curve(8.0 - 2 * place) for place, name in enumerate(CONCEPTS)}, "heat_b64": picture(120),
    }  # fmt: skip
    return said | changes


def completed(index: int, said: dict[str, Any], **changes: Any) -> tuple[str, dict[str, Any]]:
    shown = None if said["action"] in ("drop", "block") else picture(220 - 40 * index)
    entry = {
        "type": "image_generation.completed",
        "index": index,
        "b64_json": shown,
        "seed": 7 + index,
        "safety": said,
    }
    return "image_generation.completed", entry | changes


def progress(step: int, index: int = 0, attempt: int = 1) -> tuple[str, dict[str, Any]]:
    return "image_generation.progress", {"index": index, "step": step, "total": STEPS, "attempt": attempt}


def partial(index: int = 0) -> tuple[str, dict[str, Any]]:
    return "image_generation.partial_image", {
        "index": index,
        "partial_image_index": 0,
        "b64_json": picture(150),
    }


SCENES: dict[str, list[Any]] = {
    "flagged": [progress(STEPS), completed(0, safety("flag", 0.97, reason="playground-glyphs: glyph 0.97 is at least 0.5"))],
    "withheld": [progress(STEPS), completed(0, safety("black", 0.97, reason="playground-glyphs: glyph 0.97 is at least 0.5"))],
    "dropped": [completed(0, safety("drop", 0.97, attempts=4, reason="dropped after 4 attempts", heat_b64=None))],
    "blurred": [completed(0, safety("pixelate", 0.97))],
    "unreviewed": [completed(0, safety("none", 0.0, unreviewed=True, verdicts=[]))],
    "again": [progress(STEPS), progress(5, attempt=2), 0.4, completed(0, safety("none", 0.1, attempts=2))],
    "broken": [progress(4), ("error", {"error": {"message": "the worker died twice", "type": "server_error"}})],
    "short": [progress(4)],
    "half": [completed(0, safety("none", 0.1)), ("error", {"index": 1, "error": {"message": "too late", "type": "server_error"}})],
    "three": [*(progress(9, index) for index in range(3)), partial(1), 0.4,
              completed(2, safety("none", 0.1)), completed(0, safety("flag", 0.9)), completed(1, safety("block", 0.0, verdicts=[],
              reason="the filter did not answer in time"))],
    "slow": [progress(5), partial(), 30.0],
    "compare": [completed(0, safety("flag", 0.9, unguided_b64=picture(250)))],
}  # fmt: skip
USUAL = [
    progress(3),
    partial(),
    0.3,
    progress(12),
    0.2,
    progress(STEPS),
    completed(0, safety("none", 0.04, unguided_b64=picture(250))),
]


def record(number: int) -> dict[str, Any]:
    action = ACTIONS[number % len(ACTIONS)]
    return {
        "number": number, "time": f"2031-05-04T10:{number % 60:02d}:00Z", "key": "team-<b>a</b>", "policy": "medium", "action": action,
        "verdicts": [verdict(0.03 if action == "none" else 0.93)], "prompt_sha256": f"{number:04x}" * 16, "kind": "image",
    }  # fmt: skip


class Service(ThreadingHTTPServer):
    """``requests`` are the bodies that were posted; ``broken_off`` is set when a client went away in the middle of a stream."""

    daemon_threads = True

    def __init__(self, *, keys: bool, operator: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.keys, self.operator = keys, operator
        self.requests: list[dict[str, Any]] = []
        self.broken_off = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if not url.path.startswith("/v1/"):
            self._file(FILES / ("index.html" if url.path == "/" else url.path.removeprefix("/page/")))
        elif self._known():
            self._json(
                200,
                self._document(url.path, {name: values[0] for name, values in parse_qs(url.query).items()}),
            )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        if not self._known():
            return
        if "busy" in body["prompt"]:
            self._error(429, "the queue is full", {"Retry-After": "1"})
        elif "forbidden" in body["prompt"]:
            self._error(403, "the policy <b>none</b> is weaker than the floor")
        else:
            self._stream(next((scene for word, scene in SCENES.items() if word in body["prompt"]), USUAL))

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read what the browser says instead."""

    def _known(self) -> bool:
        known = not self.server.keys or self.headers["Authorization"] == f"Bearer {KEY}"
        if not known:
            self._error(401, "no such key")
        return known

    def _document(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        if path == "/v1/me":
            return {
                "id": "team-a",
                "operator": self.server.operator,
                "default_policy": "medium",
                "limits": {"pictures": 4},
            }
        if path == "/v1/policies":
            names = {"weak": "A gentle push away.", "medium": "Guidance and the glyph filter."}
            return {
                "object": "list",
                "data": [
                    {"name": name, "description": text, "digest": DIGEST} for name, text in names.items()
                ],
            }
        if path == "/v1/models":
            model = {
                "id": "playground",
                "object": "model",
                "sizes": ["64x64"],
                "steps": STEPS,
                "max_steps": 100,
            }
            return {"object": "list", "data": [model]}
        before, limit = int(query.get("before", 61)), int(query["limit"])
        found = [record(number) for number in range(before - 1, 0, -1)]
        found = [each for each in found if query.get("action") in (None, each["action"])]
        more = len(found) > limit
        return {
            "object": "list",
            "data": found[:limit],
            "next_before": found[limit - 1]["number"] if more else None,
        }

    def _file(self, path: Path) -> None:
        if path.is_file():
            self._answer(200, path.read_bytes(), TYPES[path.suffix], {"Content-Security-Policy": CSP})
        else:
            self._error(404, "no such page")

    def _error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self._json(
            status, {"error": {"message": message, "type": "error", "param": None, "code": None}}, headers
        )

    def _json(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(document).encode(), "application/json", headers or {})

    def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, scene: list[Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for part in scene:
                if isinstance(part, float):
                    self._wait(part)
                else:
                    self.wfile.write(f"event: {part[0]}\ndata: {json.dumps(part[1])}\n\n".encode())
        except OSError:
            self.server.broken_off.set()

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.05)
            self.wfile.write(b": still here\n\n")


@contextmanager
def serving(*, keys: bool = False, operator: bool = True) -> Iterator[Service]:
    """The stand-in, at ``address`` until the block ends."""
    service = Service(keys=keys, operator=operator)
    thread = threading.Thread(target=service.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()
        thread.join()
