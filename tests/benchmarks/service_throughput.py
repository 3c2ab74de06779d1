"""Loads the service on the playground, and says how it compares with the engine called for one picture after the other.

    python tests/benchmarks/service_throughput.py load --requests 500 --clients 16
    python tests/benchmarks/service_throughput.py memory --requests 2000

``load`` sends requests that differ in prompt, policy, seed and number of pictures; every answer is compared with the engine's own for the
same policy and seed. Both use one thread of a core for the denoiser (OMP_NUM_THREADS=1), and take turns, so that a busy machine
hurts both. ``memory`` tells the memory of the service and its worker every 100 requests. Nothing else should run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "service"))

from service_load import (
    POLICIES,
    STEPS,
    Asked,
    Watched,
    alone,
    answers,
    difference,
    engines,
    requests,
)
from service_process import ServiceProcess, service

from sldcore import load_pipeline

QUEUE = 64
TURN = 100
"""Requests of the service, and then the same of the engine."""
SHORT = 2
SHORT_POLICIES = ("off", "max", "blocking")
"""Steps, and policies that act in so few, where only the memory counts."""
CLOSE = 1.0
"""Mean levels of 255 by which pictures of other batches may differ."""


def settings() -> dict[str, object]:
    """Of the service that is loaded."""
    return {
        "models": {"playground": {"source": "playground", "device": "cpu", "steps": STEPS}},
        "policies": dict(POLICIES),
        "limits": {"queue": QUEUE, "batch": 16, "pictures": 2, "deadline": 600},
    }


def load(number: int, clients: int) -> int:
    """Compare answers and speed; returns 1 if an answer is wrong."""
    with TemporaryDirectory() as folder, service(Path(folder), settings()) as running:
        by_policy = engines(Path(folder), load_pipeline("playground", device="cpu"))
        alone(by_policy, requests(1)[0])
        seconds = {"service": 0.0, "engine": 0.0}
        wrong, pictures, refused, longest = 0, 0, 0, 0.0
        for turn in turns(requests(number)):
            started = perf_counter()
            with Watched(running) as watched:
                told = answers(running, turn, clients)
            seconds["service"] += perf_counter() - started
            longest = max(longest, watched.longest)
            started = perf_counter()
            expected = [alone(by_policy, one) for one in turn]
            seconds["engine"] += perf_counter() - started
            for answered, (own, reports) in zip(told, expected, strict=True):
                said = [each["action"] for each in answered.safety]
                wrong += difference(answered, own) >= CLOSE or said != [each.action for each in reports]
                pictures += len(own)
                refused += answered.refused
            print(f"{pictures} pictures", file=sys.stderr, flush=True)
        batches = [line for line in running.get("/metrics")[2].splitlines() if line.startswith("sld_batches")]
    rates = {name: pictures / each for name, each in seconds.items()}
    print(
        f"{number} requests of {clients} clients, {pictures} pictures, {STEPS} steps: {wrong} wrong answers"
    )
    print(f"queue: at most {longest:.0f} of {QUEUE} waited; {refused} times full")
    print(f"service {rates['service']:.2f} pictures/s, engine one by one {rates['engine']:.2f} pictures/s: ratio "
          f"{rates['service'] / rates['engine']:.2f}")  # fmt: skip
    print("\n".join(batches))
    return int(wrong > 0)


def memory(number: int, clients: int) -> int:
    """Tell the memory as requests go by."""
    with TemporaryDirectory() as folder, service(Path(folder), settings()) as running:
        asked = requests(number, SHORT_POLICIES, SHORT)
        answers(running, asked[:TURN], clients)
        print("requests  service and worker, MiB", f"{0:8}  {mib(running)}", sep="\n", flush=True)
        for index, turn in enumerate(turns(asked), 1):
            answers(running, turn, clients)
            print(f"{index * TURN:8}  {mib(running)}", flush=True)
    return 0


def turns(asked: Sequence[Asked]) -> list[Sequence[Asked]]:
    """Requests, a turn at a time."""
    return [asked[start : start + TURN] for start in range(0, len(asked), TURN)]


def mib(running: ServiceProcess) -> str:
    """MiB in memory."""
    return "  ".join(f"{each / 2**20:.0f}" for each in running.memory())


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["load", "memory"])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    return {"load": load, "memory": memory}[options.what](options.requests, options.clients)


if __name__ == "__main__":
    sys.exit(main())
