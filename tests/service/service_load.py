"""Mixed requests for a service from several clients at once, and the same pictures by the engine called alone."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from pathlib import Path
from threading import Event, Lock, Thread, local
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from service_process import BLOCKING, ServiceProcess

from sldcore import SafetyEngine, SafetyPolicy
from sldcore.types import Report

STEPS = 12
SCALE = 4.0
POLICIES: Mapping[str, Any] = {
    "off": "off",
    "weak-noise": "weak-noise",
    "medium": "medium",
    "max": "max",
    "gated": "gated",
    "blocking": BLOCKING,
}
SUBJECTS = (
    "a red knight",
    "a blue clown",
    "a green house",
    "a yellow dancer",
    "a red cat",
    "a white student",
)
PLACES = ("on a meadow", "on the beach", "in the city", "in the desert", "in the snow")


@dataclass(frozen=True)
class Asked:
    """One request."""

    prompt: str
    policy: str
    seed: int
    count: int
    steps: int = STEPS

    @property
    def body(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "prompt": self.prompt,
            "policy": self.policy,
            "seed": self.seed,
            "n": self.count,
            "steps": self.steps,
            "response_format": "b64_json",
        }


@dataclass(frozen=True)
class Answered:
    """One answer: its pictures as arrays, None where nothing is shown, and what it says of safety."""

    pixels: tuple[NDArray[np.uint8] | None, ...]
    safety: tuple[Mapping[str, Any], ...]
    refused: int
    """How often the queue had been full before."""


def requests(number: int, names: Sequence[str] = tuple(POLICIES), steps: int = STEPS) -> list[Asked]:
    """Requests that differ in prompt, policy, seed and number of pictures."""
    return [
        Asked(
            f"{SUBJECTS[index % len(SUBJECTS)]} {PLACES[index // 7 % len(PLACES)]}",
            names[index // 3 % len(names)],
            1000 + index,
            2 if index % 5 == 4 else 1,
            steps,
        )
        for index in range(number)
    ]


def answers(service: ServiceProcess, asked: Sequence[Asked], clients: int) -> list[Answered]:
    """Send everything from so many clients, each with a connection of its own; where the queue is full, as told later."""
    own = local()
    opened: list[HTTPConnection] = []

    def ask(one: Asked) -> Answered:
        refused = 0
        while True:
            if not hasattr(own, "connection"):
                own.connection = service.connect()
                opened.append(own.connection)
            status, headers, content = service.post("/v1/images/generations", one.body, own.connection)
            if status != 429:
                break
            refused += 1
            time.sleep(min(float(headers.get("Retry-After", headers.get("retry-after", 1))), 5.0))
        if status != 200:
            raise HTTPException(f"{status}: {content}")
        entries = content["data"]
        pixels = tuple(pixels_of(entry["b64_json"]) for entry in entries)
        return Answered(pixels, tuple(entry["safety"] for entry in entries), refused)

    try:
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(ask, asked))
    finally:
        for connection in opened:
            connection.close()


def pixels_of(content: str | None) -> NDArray[np.uint8] | None:
    """A picture of an answer."""
    return (
        None if content is None else np.asarray(Image.open(BytesIO(base64.b64decode(content))).convert("RGB"))
    )


class Watched:
    """The longest queue that there was while the block ran."""

    def __init__(self, service: ServiceProcess) -> None:
        self._service, self._over, self._lock = service, Event(), Lock()
        self._thread = Thread(target=self._watch, daemon=True)
        self.longest = 0.0

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.longest = max(self.longest, self._service.number("sld_queue_length"))


def engines(folder: Path, pipe: Any) -> dict[str, SafetyEngine]:
    """An engine for each policy of a service that was started in ``folder``."""
    pipe.set_progress_bar_config(disable=True)
    policies = {
        name: SafetyPolicy.preset(policy)
        if isinstance(policy, str)
        else SafetyPolicy.load(folder / f"{name}.yaml")
        for name, policy in POLICIES.items()
    }
    return {name: SafetyEngine(pipe, policy) for name, policy in policies.items()}


def alone(by_policy: Mapping[str, SafetyEngine], one: Asked) -> tuple[list[NDArray[np.uint8]], list[Report]]:
    """The pictures of a request by the engine called alone, one by one."""
    pictures, reports = [], []
    for index in range(one.count):
        result = by_policy[one.policy].generate(
            one.prompt, seed=one.seed + index, num_inference_steps=one.steps, guidance_scale=SCALE
        )
        pictures.append(np.asarray(result.images[0]))
        reports += result.reports
    return pictures, reports


def difference(answered: Answered, pictures: Sequence[NDArray[np.uint8]]) -> float:
    """The largest mean difference of a picture to that of the engine, in levels of 255."""
    return max(
        float(np.abs(mine.astype(float) - theirs.astype(float)).mean()) if mine is not None else 255.0
        for mine, theirs in zip(answered.pixels, pictures, strict=True)
    )
