"""Which jobs wait, and which of them go together next: a bounded queue, without clocks, threads or event loops.

Order: clients take turns in the order in which they came, and each client's jobs go first come, first served. The first job that may go
decides what its batch is made of (one ``Shape``, or reviews of one model); jobs of other clients fill it up in turns, so that
one client with many pictures leaves room for the others.

Waiting for company: a batch that is not full waits only for requests that are likely to come. How many requests make use of a shape at
the same time is known from its last batch: those that were in it and are answered now (their clients tend to ask again) and those that
waited meanwhile. A client that is alone never waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Final

from sldcore.service.jobs import Job, PictureJob

_REMEMBERED: Final = 64
"""Of how many shapes it is known how many requests to expect; the one longest unused is forgotten first."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job in the queue. Times in seconds on the caller's clock; ``turn`` counts jobs, ``request`` requests, as they came.

    ``kind`` is what the jobs of a batch have in common; ``alone``: it shares its batch with no other.
    """

    job: Job
    kind: Hashable
    client: Hashable
    request: int
    turn: int
    since: float
    deadline: float
    alone: bool = False


class JobQueue:
    """Jobs that wait.

    Args:
        capacity: Jobs that may wait, at most; those that are given back come on top.
        batch: Jobs of a batch, at most.
        wait: Seconds that a batch waits for others, at most.
        share: Jobs of one named client that may wait, at most; as many as there is room for by default.
    """

    def __init__(self, capacity: int, batch: int, wait: float, share: int | None = None) -> None:
        self.capacity = capacity
        self._share = capacity if share is None else share
        self._batch, self._wait = batch, wait
        self._clients: dict[Hashable, dict[str, Waiting]] = {}  # whose turn it is comes first
        self._of: dict[str, Hashable] = {}
        self._last: dict[
            Hashable, tuple[float, int]
        ] = {}  # by kind: when its last batch ended, requests expected
        self._turns = self._requests = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._of)

    def push(self, jobs: Sequence[Job], now: float, deadline: float) -> list[Waiting] | None:
        """Take all jobs of a request, or none (None) if there is no room for them.

        Jobs without a client's name count as a client of their own, together.

        Raises:
            ValueError: a job of this id waits already.
        """
        if len({job.id for job in jobs} - self._of.keys()) < len(jobs):
            raise ValueError("jobs that wait together need ids of their own")
        if len(self) + len(jobs) > self.capacity:
            return None
        coming = Counter(job.client for job in jobs if job.client)
        if any(len(self._clients.get(client, ())) + count > self._share for client, count in coming.items()):
            return None
        self._requests += 1
        taken = []
        for job in jobs:
            self._turns += 1
            kind = job.shape if isinstance(job, PictureJob) else ("review", job.model)
            client = job.client or self._requests
            taken.append(Waiting(job, kind, client, self._requests, self._turns, now, deadline))
            self._insert(taken[-1])
        return taken

    def give_back(self, batch: Sequence[Waiting]) -> None:
        """Take jobs again whose worker died: each goes alone, in its old place, and it is its client's turn."""
        for waiting in sorted(batch, key=lambda waiting: waiting.turn, reverse=True):
            self._insert(replace(waiting, kind=waiting.job.id, alone=True))
            jobs = self._clients.pop(waiting.client)
            in_order = dict(sorted(jobs.items(), key=lambda item: item[1].turn))
            self._clients = {waiting.client: in_order, **self._clients}

    def remove(self, id: str) -> Waiting | None:
        """Take a job out, if it waits."""
        if id not in self._of:
            return None
        client = self._of.pop(id)
        waiting = self._clients[client].pop(id)
        if not self._clients[client]:
            del self._clients[client]
        return waiting

    def take(self, now: float, models: Collection[str]) -> list[Waiting] | None:
        """The next batch for a worker that has these models, or None as long as nothing should go. Nothing that is too late is given out."""
        seen = set()
        for waiting in self._all():
            if waiting.job.model not in models or waiting.deadline <= now or waiting.kind in seen:
                continue
            seen.add(waiting.kind)
            batch = self._company(waiting, now)
            if self._complete(batch, now):
                for member in batch:
                    self.remove(member.job.id)
                if waiting.client in self._clients:
                    self._clients[waiting.client] = self._clients.pop(waiting.client)  # to the end
                return batch
        return None

    def finished(self, batch: Sequence[Waiting], now: float) -> None:
        """A batch is done, and who asked for it may ask again."""
        kind = batch[0].kind
        if not batch[0].alone:
            others = {waiting.request for waiting in self._all() if waiting.kind == kind}
            self._last.pop(kind, None)
            self._last[kind] = (now, len(others | {waiting.request for waiting in batch}))
            if len(self._last) > _REMEMBERED:
                del self._last[next(iter(self._last))]

    def wakes(self, now: float) -> float | None:
        """When to try ``take`` again, if nothing else happens: when the next batch has waited long enough."""
        times = (self._patience(waiting) for waiting in self._all())
        return min((time for time in times if time > now), default=None)

    def close(self) -> None:
        """Nothing more is going to come, so that nothing waits for it."""
        self._closed = True

    def waiting(self, which: Callable[[Job], bool]) -> list[str]:
        """The ids of the jobs of which something is true."""
        return [waiting.job.id for waiting in self._all() if which(waiting.job)]

    def _insert(self, waiting: Waiting) -> None:
        self._of[waiting.job.id] = waiting.client
        self._clients.setdefault(waiting.client, {})[waiting.job.id] = waiting

    def _all(self) -> Iterable[Waiting]:
        return chain.from_iterable(jobs.values() for jobs in self._clients.values())

    def _company(self, first: Waiting, now: float) -> list[Waiting]:
        """What goes with a job: one of each client in turns, its own client first."""
        fitting: dict[Hashable, list[Waiting]] = {first.client: []}
        for waiting in self._all():
            if waiting.kind == first.kind and waiting.deadline > now:
                fitting.setdefault(waiting.client, []).append(waiting)
        rounds = chain.from_iterable(zip_longest(*fitting.values()))
        return [waiting for waiting in rounds if waiting is not None][: self._batch]

    def _complete(self, batch: Sequence[Waiting], now: float) -> bool:
        _, expected = self._last.get(batch[0].kind, (0.0, 1))
        return (
            len(batch) >= self._batch
            or len({waiting.request for waiting in batch}) >= expected
            or self._closed
            or len(self) >= self.capacity
            or min(self._patience(waiting) for waiting in batch) <= now
        )

    def _patience(self, waiting: Waiting) -> float:
        """Until when a job waits for company."""
        ended, _ = self._last.get(waiting.kind, (waiting.since, 1))
        return max(waiting.since, ended) + self._wait
