"""What plugins print while they are loaded goes to stderr: what a command prints on stdout may be JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, Final, TextIO, cast

_quiet: Final[ContextVar[bool]] = ContextVar("sldcore_plugin_is_loaded_here", default=False)
_LOCK: Final = Lock()


class _Parting:
    """Stands for ``sys.stdout``: stderr to what loads a plugin, the stream itself to all others."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.users = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr if _quiet.get() else self.stream, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Send what this thread prints to stderr; other threads print as before, also while a plugin never ends."""
    with _LOCK:
        stdout: object = sys.stdout
        parting = stdout if isinstance(stdout, _Parting) else _Parting(sys.stdout)
        parting.users += 1
        if sys.stdout is not None:
            sys.stdout = cast(TextIO, parting)
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)
        with _LOCK:
            parting.users -= 1
            current: object = sys.stdout
            if current is parting and not parting.users:
                sys.stdout = parting.stream
