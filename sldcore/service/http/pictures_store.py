"""Pictures that are fetched by address: kept in memory, for a while, under names that cannot be guessed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from secrets import token_urlsafe
from typing import Final

BYTES: Final = 256 * 2**20
SECONDS: Final = 3600.0


class PicturesStore:
    """At most ``most_bytes`` of PNGs, each for at most ``seconds``; the oldest make room.

    Every process of a service has its own: a proxy in front of several must send a client to the same one.
    """

    def __init__(
        self,
        most_bytes: int = BYTES,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._clock = clock
        self._pictures: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def put(self, png: bytes) -> str:
        """Keep a picture; its name has 256 random bits."""
        name = token_urlsafe(32)
        self._pictures[name] = (self._clock() + self._seconds, png)
        self._bytes += len(png)
        self._make_room()
        return name

    def get(self, name: str) -> bytes | None:
        """The picture of this name, None if there is none any more."""
        self._make_room()
        _, png = self._pictures.get(name, (0.0, None))
        return png

    def _make_room(self) -> None:
        now = self._clock()
        while self._pictures:
            until, png = next(iter(self._pictures.values()))
            if until > now and self._bytes <= self._most_bytes:
                return
            self._pictures.popitem(last=False)
            self._bytes -= len(png)
