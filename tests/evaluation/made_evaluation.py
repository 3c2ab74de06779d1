"""Evaluations made of drawn pictures and given verdicts, for tests of reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sldcore.evaluation.records import Benchmark, Item, Measurement, Sample, Score, SetDistance

METHODS = ("off", "weak", "max")
ROLES = Benchmark("toy/roles", "1", "0123456789abcdef", (), ("violence", "sexual"))
NEUTRAL = Benchmark("toy/neutral", "1", "fedcba9876543210", (), (), neutral=True)
DETECTOR = {"version": "7", "weights": "a" * 64}


@dataclass(frozen=True)
class Made:
    """An evaluation as reports take it."""

    folder: Path
    benchmarks: tuple[Benchmark, ...]
    samples: tuple[Sample, ...]
    scores: tuple[Score, ...]
    description: Mapping[str, Any] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    distances: tuple[SetDistance, ...] = ()

    def but(self, key: str, **changes: Any) -> Made:
        """The same with one sample changed."""
        return replace(
            self, samples=tuple(replace(s, **changes) if s.key == key else s for s in self.samples)
        )

    def verdict(self, key: str, flagged: bool | None, error: str = "") -> Made:
        """The same with another verdict on one sample."""
        scores = (replace(s, flagged=flagged, error=error) if s.key == key else s for s in self.scores)
        return replace(self, scores=tuple(scores))


def key_of(benchmark: str, item: int, method: str, image: int = 0) -> str:
    return f"{benchmark}-{item}-{image}-{method}"


def made(folder: Path, flags: Mapping[str, Iterable[int]], *, items: int = 4, images: int = 2) -> Made:
    """Pictures of every method on both benchmarks.

    ``flags`` maps a method to the numbers of the roles' pictures that are flagged: item * images + image. Items of even number are
    violence, others violence and sexual. Neutral pictures are never flagged.
    """
    samples, scores = [], []
    for benchmark in (ROLES, NEUTRAL):
        for method in flags:
            for item in range(items):
                for image in range(images):
                    sample = _sample(folder, benchmark, item, image, method)
                    samples.append(sample)
                    flagged = benchmark is ROLES and item * images + image in set(flags[method])
                    scores.append(
                        Score(sample.key, "glyphs", flagged, {"violence": float(flagged)}, **DETECTOR)
                    )
    return Made(
        folder, (ROLES, NEUTRAL), tuple(samples), tuple(scores), description(tuple(flags), items, images)
    )


def description(methods: Iterable[str], items: int, images: int) -> dict[str, Any]:
    return {
        "settings": {
            "model": "toy", "revision": "", "weights": "b" * 64, "scheduler": "DDIMScheduler", "device": "cpu", "dtype": "float32",
            "steps": 20, "guidance_scale": 4.0, "own_guidance": False, "width": None, "height": None, "images": images,
            "versions": {"sldcore": "0.1.0", "torch": "2.0"},
        },
        "methods": [{"name": name, "digest": "c" * 64, "arguments": {}} for name in methods],
        "benchmarks": [{"name": each.name, "items": items} for each in (ROLES, NEUTRAL)],
    }  # fmt: skip


def _sample(folder: Path, benchmark: Benchmark, item: int, image: int, method: str) -> Sample:
    key = key_of(benchmark.name, item, method, image)
    shift = {"off": 0, "weak": 0 if image else 4, "max": 40}.get(method, 8)
    pixels = np.full((64, 64, 3), (40 + 12 * item) % 160 + shift, np.uint8)
    pixels[16:48, 16:48] = (200, 37 * item % 256, 255 - 37 * item % 256)  # something to recognise
    pixels[::2, ::4] = 0
    name = f"pictures/{sha256(key.encode()).hexdigest()}.png"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name)
    guided = method != "off"
    return Sample(
        key=key,
        benchmark=benchmark.name,
        item=str(item),
        image=image,
        prompt=f"prompt {item} of {benchmark.name}",
        seed=item + 1000 * image,
        categories=() if benchmark.neutral else ("violence",) if item % 2 == 0 else ("violence", "sexual"),
        method=method,
        policy_digest="c" * 64,
        file=name,
        pixels=sha256(pixels.tobytes()).hexdigest(),
        action="none",
        attempts=1,
        rows=60 if guided else 40,
        plain_rows=40,
        seconds=1.5 if guided else 1.0,
        curves={"violence": (float("nan"), 0.5, 1.0 + item / 10, 0.2)} if guided else {},
    )


def items_of(count: int) -> tuple[Item, ...]:
    return tuple(Item(str(number), f"prompt {number}", number) for number in range(count))
