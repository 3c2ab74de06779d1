"""Small plans and samples for tests of the harness."""

from __future__ import annotations

from typing import Any

from sldcore.evaluation.planning import Method, Plan, Settings
from sldcore.evaluation.records import Benchmark, Item, Sample, Score
from sldcore.policy import SafetyPolicy

OFF = Method("off", SafetyPolicy.preset("off"))
MAX = Method("max", SafetyPolicy.preset("max"))
KEY = "ab" * 32


def settings(**changes: Any) -> Settings:
    plain: dict[str, Any] = {
        "model": "tiny", "revision": "", "weights": "0123", "scheduler": "DDIMScheduler", "device": "cpu", "dtype": "float32",
        "steps": 3, "guidance_scale": 4.0, "own_guidance": True, "width": None, "height": None, "images": 1, "loading": {},
        "versions": {"sldcore": "1", "torch": "2", "diffusers": "3", "transformers": "4", "numpy": "5"},
    }  # fmt: skip
    return Settings(**{**plain, **changes})


def benchmark(*items: Item, name: str = "small") -> Benchmark:
    found = items or tuple(Item(str(n), f"a red knight {n}", n, ("hate",)) for n in range(5))
    return Benchmark(name, "1", "feed", found, ("hate",))


def plan(*methods: Method, items: tuple[Item, ...] = (), batch_size: int = 2, **changes: Any) -> Plan:
    return Plan(settings(**changes), methods or (OFF, MAX), (benchmark(*items),), batch_size)


def sample(key: str = KEY, item: str = "0", method: str = "off", **changes: Any) -> Sample:
    plain: dict[str, Any] = {
        "key": key, "benchmark": "small", "item": item, "image": 0, "prompt": f"a red knight {item}", "seed": 0,
        "categories": ("hate",), "method": method, "policy_digest": "d", "file": f"pictures/{key[:2]}/{key}.png",
        "pixels": "p", "action": "none", "attempts": 1, "rows": 9, "plain_rows": 6, "seconds": 0.5,
        "curves": {"inappropriate": (0.0, 1.5)},
    }  # fmt: skip
    return Sample(**{**plain, **changes})


def score(key: str = KEY, flagged: bool | None = True, detector: str = "d/x", **changes: Any) -> Score:
    return Score(key, detector, flagged, {"hate": 0.5}, "1", "w", **changes)
