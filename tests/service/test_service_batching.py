from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from fake_hosts import picture, review
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from sldcore.service.jobs import Job
from sldcore.service.working.batching import JobQueue, Waiting

MODELS = ("m", "n")


def ids(batch: list[Waiting] | None) -> list[str]:
    return [waiting.job.id for waiting in batch or []]


def queue(capacity: int = 64, batch: int = 4, wait: float = 1.0) -> JobQueue:
    return JobQueue(capacity, batch, wait)


def pictures(names: str, **more: Any) -> list[Job]:
    return [picture(name, **more) for name in names]


def busy(waiting: JobQueue, requests: int, now: float = 0.0) -> None:
    """Let the queue see a batch of so many requests end."""
    for number in range(requests):
        waiting.push([picture(f"before-{number}")], now - 100, 1e9)
    batch = waiting.take(now, MODELS)
    assert batch is not None
    waiting.finished(batch, now)


def test_a_request_is_taken_whole_or_not_at_all() -> None:
    waiting = queue(capacity=3)
    assert waiting.push(pictures("ab"), 0, 10) is not None
    assert waiting.push(pictures("cd"), 0, 10) is None
    assert len(waiting) == 2
    assert waiting.push(pictures("e"), 0, 10) is not None


def test_one_client_leaves_room_for_others() -> None:
    waiting = JobQueue(8, 4, 1.0, share=3)
    assert waiting.push(pictures("ab", client="one"), 0, 10) is not None
    assert waiting.push(pictures("cd", client="one"), 0, 10) is None
    assert waiting.push(pictures("c", client="one"), 0, 10) is not None
    assert waiting.push(pictures("def", client="two"), 0, 10) is not None
    assert waiting.push(pictures("gh"), 0, 10) is not None  # who has no name is bound by the queue alone
    assert waiting.push(pictures("i"), 0, 10) is None


def test_an_id_waits_once() -> None:
    waiting = queue()
    waiting.push(pictures("a"), 0, 10)
    with pytest.raises(ValueError, match="ids of their own"):
        waiting.push(pictures("ba"), 0, 10)
    with pytest.raises(ValueError, match="ids of their own"):
        waiting.push(pictures("cc"), 0, 10)
    assert ids(waiting.take(0, MODELS)) == ["a"]


def test_jobs_of_one_shape_go_together_and_the_oldest_decides_which() -> None:
    waiting = queue()
    waiting.push(pictures("a", steps=5), 0, 10)
    waiting.push(pictures("bc", steps=9), 0, 10)
    waiting.push(pictures("d", steps=5), 0, 10)
    waiting.push([review("r"), review("s")], 0, 10)
    waiting.push([review("t", model="n")], 0, 10)
    assert [ids(waiting.take(5, MODELS)) for _ in range(5)] == [["a", "d"], ["b", "c"], ["r", "s"], ["t"], []]


def test_a_batch_is_no_larger_than_allowed() -> None:
    waiting = queue(batch=3)
    waiting.push(pictures("abcdefgh"), 0, 10)
    assert [ids(waiting.take(5, MODELS)) for _ in range(3)] == [list("abc"), list("def"), list("gh")]


def test_a_worker_gets_jobs_for_its_models_only() -> None:
    waiting = queue()
    waiting.push([picture("a", model="n"), picture("b")], 0, 10)
    assert ids(waiting.take(0, ["m"])) == ["b"]
    assert waiting.take(5, ["m"]) is None
    assert ids(waiting.take(5, ["n"])) == ["a"]


def test_a_client_with_many_pictures_leaves_room_for_others() -> None:
    waiting = queue()
    waiting.push([picture(f"many-{number}", client="many") for number in range(20)], 0, 10)
    waiting.push(pictures("a", client="few"), 0, 10)
    waiting.push(pictures("xyz", client="other"), 0, 10)
    assert ids(waiting.take(5, MODELS)) == ["many-0", "a", "x", "many-1"]
    assert ids(waiting.take(5, MODELS)) == ["y", "many-2", "z", "many-3"]


def test_clients_take_turns_across_shapes() -> None:
    waiting = queue()
    waiting.push([picture(f"many-{number}", client="many") for number in range(20)], 0, 10)
    waiting.push(pictures("a", client="few", steps=9), 0, 10)
    waiting.take(5, MODELS)
    assert ids(waiting.take(5, MODELS)) == ["a"]


def test_requests_without_a_client_take_turns() -> None:
    waiting = queue()
    waiting.push([picture(f"many-{number}") for number in range(20)], 0, 10)
    waiting.push(pictures("a"), 0, 10)
    assert ids(waiting.take(5, MODELS)) == ["many-0", "a", "many-1", "many-2"]


def test_who_is_alone_does_not_wait() -> None:
    waiting = queue(wait=1.0)
    for number in range(3):
        waiting.push([picture(f"{number}"), picture(f"{number}+")], number, 100)
        batch = waiting.take(number, MODELS)
        assert ids(batch) == [f"{number}", f"{number}+"]
        assert batch is not None
        waiting.finished(batch, number + 0.5)


def test_a_batch_waits_for_as_many_requests_as_there_were() -> None:
    waiting = queue(batch=8, wait=1.0)
    busy(waiting, requests=3)
    waiting.push(pictures("a"), 0.1, 100)
    waiting.push(pictures("bcde"), 0.2, 100)
    assert waiting.take(0.2, MODELS) is None
    waiting.push(pictures("f"), 0.3, 100)
    assert ids(waiting.take(0.3, MODELS)) == ["a", "b", "f", "c", "d", "e"]


def test_a_batch_waits_no_longer_than_allowed() -> None:
    waiting = queue(batch=8, wait=1.0)
    busy(waiting, requests=3)
    waiting.push(pictures("a"), 0.25, 100)
    assert waiting.take(1.0, MODELS) is None
    assert waiting.wakes(1.0) == 1.25
    assert ids(waiting.take(1.25, MODELS)) == ["a"]
    assert waiting.wakes(1.25) is None


def test_who_waited_while_a_batch_ran_waits_for_those_who_were_in_it() -> None:
    waiting = queue(wait=1.0)
    waiting.push(pictures("a"), 0, 100)
    first = waiting.take(0, MODELS)
    waiting.push(pictures("b"), 1, 100)
    assert first is not None
    waiting.finished(first, 10)
    assert waiting.take(10, MODELS) is None
    waiting.push(pictures("c"), 10.1, 100)
    assert ids(waiting.take(10.1, MODELS)) == ["b", "c"]


@pytest.mark.parametrize("why", ["full batch", "full queue", "closed"])
def test_a_batch_does_not_wait_if_nothing_can_come(why: str) -> None:
    waiting = queue(capacity=4 if why == "full queue" else 64, batch=3 if why == "full batch" else 8)
    busy(waiting, requests=3)
    waiting.push(pictures("abc"), 0.1, 100)
    if why == "full queue":
        waiting.push(pictures("d", steps=9), 0.1, 100)
    elif why == "closed":
        waiting.close()
    assert ids(waiting.take(0.1, MODELS)) == ["a", "b", "c"]


def test_a_ready_batch_goes_before_one_that_waits() -> None:
    waiting = queue(batch=3)
    busy(waiting, requests=3)
    waiting.push(pictures("a"), 0.1, 100)
    waiting.push(pictures("b", steps=9), 0.1, 100)
    assert ids(waiting.take(0.1, MODELS)) == ["b"]


def test_jobs_given_back_come_first_in_their_order_and_each_alone() -> None:
    waiting = queue(batch=3)
    waiting.push(pictures("abcde", client="c"), 0, 100)
    waiting.push(pictures("x", client="d"), 0, 100)
    batch = waiting.take(5, MODELS)
    assert ids(batch) == ["a", "x", "b"]
    assert batch is not None
    waiting.give_back(batch)
    order = [ids(waiting.take(5, MODELS)) for _ in range(5)]
    assert sorted(order[:3]) == [["a"], ["b"], ["x"]]
    assert order.index(["a"]) < order.index(["b"])
    assert order[3:] == [["c", "d", "e"], []]


def test_what_is_known_of_shapes_is_bounded() -> None:
    waiting = queue()
    for steps in range(1, 500):
        waiting.push([picture("a", steps=steps)], 0, 100)
        batch = waiting.take(0, MODELS)
        assert batch is not None
        waiting.finished(batch, 0)
    assert len(waiting._last) == 64


class Queues(RuleBasedStateMachine):
    """Any order of calls: nothing is lost, nothing comes twice, and what comes is what should."""

    out = Bundle("out")

    def __init__(self) -> None:
        super().__init__()
        self.now, self.number = 0.0, 0
        self.queue = JobQueue(capacity=7, batch=3, wait=0.5)
        self.inside: dict[str, Waiting] = {}
        self.tries: Counter[str] = Counter()
        self.ended: dict[Any, float] = {}

    @rule(
        client=st.sampled_from(["", "a", "b", "c"]),
        kinds=st.lists(st.sampled_from([1, 2, 0]), min_size=1, max_size=4),
        model=st.sampled_from(MODELS),
        seconds=st.sampled_from([0.0, 0.6, 5.0]),
    )
    def push(self, client: str, kinds: list[int], model: str, seconds: float) -> None:
        jobs: list[Job] = []
        for steps in kinds:
            self.number += 1
            id = str(self.number)
            more = {"client": client, "model": model}
            jobs.append(picture(id, steps=steps, **more) if steps else review(id, **more))
        taken = self.queue.push(jobs, self.now, self.now + seconds)
        assert (taken is None) == (len(self.inside) + len(jobs) > 7)
        self.inside |= {waiting.job.id: waiting for waiting in taken or []}

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=out, models=st.sampled_from([MODELS, ("m",)]))
    def take(self, models: tuple[str, ...]) -> Any:
        batch = self.queue.take(self.now, models)
        fitting = [
            waiting
            for waiting in self.inside.values()
            if waiting.job.model in models and waiting.deadline > self.now
        ]
        if batch is None:  # whatever fits waits for company, and not for too long
            assert all(self._waits_since(waiting) + 0.5 > self.now for waiting in fitting)
            return multiple()
        assert 1 <= len(batch) <= 3
        assert len({waiting.kind for waiting in batch}) == 1
        assert all(waiting in fitting for waiting in batch)
        left = [each for each in fitting if each not in batch and each.kind == batch[0].kind]
        assert len(batch) == 3 or not left
        for (
            waiting
        ) in batch:  # a client's own go in order, and none has two more than one that has more waiting
            assert all(each.turn > waiting.turn for each in left if each.client == waiting.client)
        counts = Counter(waiting.client for waiting in batch)
        assert all(counts[each.client] >= max(counts.values()) - 1 for each in left)
        for waiting in batch:
            del self.inside[waiting.job.id]
            self.tries[waiting.job.id] += 1
        return batch

    @rule(batch=out)
    def finish(self, batch: list[Waiting]) -> None:
        self.queue.finished(batch, self.now)
        self.ended[batch[0].kind] = self.now

    @rule(batch=out)
    def give_back(self, batch: list[Waiting]) -> None:
        again = [each for each in batch if self.tries[each.job.id] == 1 and each.job.id not in self.inside]
        self.queue.give_back(again)
        for waiting in again:
            self.tries[waiting.job.id] += 1
            alone = next(each for each in self.queue._all() if each.job.id == waiting.job.id)
            self.inside[waiting.job.id] = alone

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.inside)))
        assert self.queue.remove(id) == self.inside.pop(id)
        assert self.queue.remove(id) is None

    @invariant()
    def holds_what_it_should(self) -> None:
        assert sorted(self.inside) == sorted(self.queue.waiting(lambda job: True))
        assert len(self.queue) == len(self.inside)
        assert set(self.queue._clients) == {waiting.client for waiting in self.inside.values()}

    def _waits_since(self, waiting: Waiting) -> float:
        return max(waiting.since, self.ended.get(waiting.kind, 0.0))


TestQueues = Queues.TestCase
