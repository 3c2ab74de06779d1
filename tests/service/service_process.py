"""``sld serve`` as a process, as an operator starts it: for load and fault tests, and for the benchmark."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import yaml

STARTED = re.compile(r"serving at http://([^:]+):(\d+)")
PATIENCE = 180.0

BLOCKING: Mapping[str, Any] = {"filters": [{"use": "playground-glyphs", "on_flag": "black"}]}
"""A policy that guides nothing and shows no glyph."""


@dataclass
class ServiceProcess:
    """A running service; ``log`` is what it has said so far."""

    process: subprocess.Popen[str]
    host: str
    port: int
    log: list[str]

    def connect(self) -> HTTPConnection:
        """A connection that is kept open between requests."""
        return HTTPConnection(self.host, self.port, timeout=PATIENCE)

    def post(
        self, path: str, body: Mapping[str, Any], connection: HTTPConnection | None = None, **headers: str
    ) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and JSON of an answer."""
        with nullcontext(connection) if connection is not None else closing(self.connect()) as on:
            on.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
            return _read(on.getresponse())

    def get(self, path: str, **headers: str) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and JSON, or text, of an answer."""
        with closing(self.connect()) as connection:
            connection.request("GET", path, headers=headers)
            return _read(connection.getresponse())

    def number(self, name: str) -> float:
        """One of the service's metrics."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[2], re.MULTILINE)
        if found is None:
            raise ValueError(f"there is no metric {name}")
        return float(found[1])

    def workers(self) -> list[psutil.Process]:
        """The processes in which the engine runs: those that have the models in memory."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in children if "spawn_main" in " ".join(each.cmdline())]

    def memory(self) -> tuple[int, int]:
        """Bytes in memory, of the service and of its workers."""
        own = psutil.Process(self.process.pid).memory_info().rss
        return own, sum(each.memory_info().rss for each in self.workers())

    def stop(self, seconds: float = PATIENCE) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def service(folder: Path, settings: Mapping[str, Any], **environment: str) -> Iterator[ServiceProcess]:
    """A service with these settings on a free port, warm; killed at the end if it has not been stopped.

    Policies that are mappings are written to files of their own.
    """
    policies = {}
    for name, policy in settings.get("policies", {}).items():
        if not isinstance(policy, str):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **policy}))
            policy = f"{name}.yaml"
        policies[name] = policy
    config = folder / "service.yaml"
    content = {"audit": {"path": "audit.sqlite"}, **settings, "port": 0}
    config.write_text(yaml.safe_dump({**content, **({"policies": policies} if policies else {})}))
    process = subprocess.Popen(
        [sys.executable, "-c", "from sldcore.cli import main; main()", "--no-plugins", "serve", "--config", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    log: list[str] = []
    reader = Thread(target=_follow, args=(process, log), daemon=True)
    reader.start()
    try:
        host, port = _address(process, log)
        yield ServiceProcess(process, host, port, log)
    finally:
        for each in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            each.kill()
        process.kill()
        process.wait()
        reader.join(5)
        if process.stderr is not None:
            process.stderr.close()


def _follow(process: subprocess.Popen[str], log: list[str]) -> None:
    if process.stderr is not None:
        log.extend(iter(process.stderr.readline, ""))


def _address(process: subprocess.Popen[str], log: list[str]) -> tuple[str, int]:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found = STARTED.search("".join(log))
        if found:
            return found[1], int(found[2])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the service does not start (exit code {process.poll()}):\n{''.join(log)}")


def _read(response: HTTPResponse) -> tuple[int, Mapping[str, str], Any]:
    content = response.read()
    text = content.decode()
    is_json = "json" in response.headers.get("Content-Type", "")
    return response.status, dict(response.headers), json.loads(text) if is_json else text
