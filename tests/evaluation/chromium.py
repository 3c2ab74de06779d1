"""A headless Chromium for tests of pages, driven through the pipe of its debugging protocol: nothing beside the browser is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 60.0


def installed() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page; ``events`` are those that the browser sent: requests, console output, log entries, exceptions."""

    def __init__(self, process: subprocess.Popen[bytes], reader: int, writer: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._process, self._reader, self._writer = process, reader, writer
        self._buffer, self._number, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there with all of its parts."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.named("Page.loadEventFired"):
            self._next()

    def visit(self, url: str) -> None:
        """Load an address and wait until it is there with all of its parts."""
        loaded = len(self.named("Page.loadEventFired"))
        self.call("Page.navigate", url=url)
        while len(self.named("Page.loadEventFired")) == loaded:
            self._next()

    def wait_for(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(f"Boolean({script})"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"still not so: {script}")
            time.sleep(0.02)

    def type(self, text: str) -> None:
        """Put text where the focus is, as if it were typed."""
        self.call("Input.insertText", text=text)

    def viewport(self, width: int, height: int, *, dark: bool = False) -> None:
        """The window's size in CSS pixels, and the colours that its user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A picture of the window, or of the whole page."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    def named(self, method: str) -> list[dict[str, Any]]:
        """What the events of one kind say."""
        return [event["params"] for event in self.events if event["method"] == method]

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, key: str, *, control: bool = False) -> None:
        """Press and release a key, with Ctrl held if asked."""
        text = {"Enter": "\r", " ": " "}.get(key)
        codes = {
            "Enter": 13,
            "Tab": 9,
            "Escape": 27,
            " ": 32,
            "ArrowLeft": 37,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
                modifiers=2 if control else 0,
                **extra,
            )

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reader], [], [], max(deadline - time.monotonic(), 0))
            part = os.read(self._reader, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(f"the browser says nothing more (exit code {self._process.poll()})")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Browser]:
    """A Chromium with one page and a profile of its own; it ends with the block."""
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()

    # The protocol's pipe is at file descriptors 3 and 4. They may be in use here, so a shell puts them there.
    order = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    flags = [
        "--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", "--window-size=1280,900", f"--user-data-dir={profile}",
    ]  # fmt: skip
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium's sandbox refuses to run as root
    process = subprocess.Popen(
        ["bash", "-c", order, "bash", program, *flags], pass_fds=(to_browser, from_browser),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(process, answers, commands)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(commands)
        os.close(answers)
