"""How often a key may ask: token buckets, filled evenly, that hold a minute's worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Final

from sldcore.errors import SLDError

if TYPE_CHECKING:
    from sldcore.service.rights.keys import Key

MINUTE: Final = 60.0

REQUESTS: Final = "requests"
PICTURES: Final = "pictures"


class TooMany(SLDError):
    """A key asks too often. ``retry_after`` in seconds; ``limit`` per minute and what is ``remaining`` of it, of ``what``."""

    def __init__(self, what: str, retry_after: float, limit: int, remaining: int) -> None:
        super().__init__(
            f"this key may ask for {limit} {what} per minute, and {remaining} are left; try again in {retry_after:.1f} s"
        )
        self.what = what
        self.retry_after = retry_after
        self.limit = limit
        self.remaining = remaining


@dataclass(slots=True)
class _Bucket:
    """Tokens that fill up evenly to ``limit`` within a minute; ``at`` is when they were last counted, in seconds."""

    limit: int
    tokens: float
    at: float

    def count(self, limit: int, now: float) -> None:
        """Let time pass, under a limit that may have changed."""
        filled = self.tokens + max(0.0, now - self.at) * limit / MINUTE
        self.limit, self.tokens, self.at = limit, min(float(limit), filled), now


class Rates:
    """Requests and pictures per minute, by key; full buckets are forgotten, so that memory is bounded by the keys in use.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._lock = Lock()

    def take(self, key: Key, pictures: int) -> None:
        """Count one request for ``pictures`` pictures; all of it or, if there is too little left, nothing.

        Raises:
            TooMany: the key has asked too often.
            ValueError: more pictures than the key may have in a minute: waiting would not help.
        """
        with self._lock:
            self._forget_full()
            wanted = dict(_wanted(key, pictures))
            for what, (limit, amount) in wanted.items():
                self._require(self._bucket(key, what, limit), what, amount)
            for what, (_, amount) in wanted.items():
                self._buckets[key.id, what].tokens -= amount

    def give_back(self, key: Key, pictures: int) -> None:
        """Undo a :meth:`take` whose request was not carried out, such as one that the queue had no room for."""
        with self._lock:
            for what, (limit, amount) in _wanted(key, pictures):
                bucket = self._bucket(key, what, limit)
                bucket.tokens = min(float(limit), bucket.tokens + amount)

    def remaining(self, key: Key) -> dict[str, tuple[int, int]]:
        """Limit per minute and what is left of it, for what has a limit: ``requests`` and ``pictures``."""
        with self._lock:
            return {
                what: (limit, int(self._bucket(key, what, limit).tokens))
                for what, (limit, _) in _wanted(key, 0)
            }

    @staticmethod
    def _require(bucket: _Bucket, what: str, amount: int) -> None:
        if amount > bucket.limit:
            raise ValueError(
                f"{amount} {what} are asked for at once, and this key may have {bucket.limit} in a minute"
            )
        if bucket.tokens < amount:
            wait = (amount - bucket.tokens) * MINUTE / bucket.limit
            raise TooMany(what, wait, bucket.limit, int(bucket.tokens))

    def _bucket(self, key: Key, what: str, limit: int) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault((key.id, what), _Bucket(limit, float(limit), now))
        bucket.count(limit, now)
        return bucket

    def _forget_full(self) -> None:
        """Drop what a new bucket would be equal to."""
        now = self._clock()
        for name, bucket in list(self._buckets.items()):
            bucket.count(bucket.limit, now)
            if bucket.tokens >= bucket.limit:
                del self._buckets[name]


def _wanted(key: Key, pictures: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Limit per minute and amount of what a request takes, as far as the key limits it."""
    if key.limits.requests_per_minute is not None:
        yield REQUESTS, (key.limits.requests_per_minute, 1)
    if key.limits.pictures_per_minute is not None:
        yield PICTURES, (key.limits.pictures_per_minute, pictures)
