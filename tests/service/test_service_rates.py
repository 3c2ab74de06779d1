"""Token buckets under a clock that the test sets."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sldcore.service.rights.keys import Key, KeyLimits
from sldcore.service.rights.rates import Rates, TooMany


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(name: str = "one", requests: int | None = None, pictures: int | None = None) -> Key:
    limits = KeyLimits(requests_per_minute=requests, pictures_per_minute=pictures)
    return Key(id=name, sha256="0" * 64, created=datetime(2026, 1, 1, tzinfo=UTC), limits=limits)


def test_a_minute_s_worth_may_come_at_once_and_no_more() -> None:
    rates = Rates(Clock())
    own = key(requests=3)
    for _ in range(3):
        rates.take(own, 1)
    with pytest.raises(TooMany) as raised:
        rates.take(own, 1)
    assert (raised.value.what, raised.value.limit, raised.value.remaining) == ("requests", 3, 0)
    assert raised.value.retry_after == pytest.approx(20)


def test_tokens_come_back_evenly() -> None:
    clock = Clock()
    rates = Rates(clock)
    own = key(requests=60)
    for _ in range(60):
        rates.take(own, 0)
    clock.now += 1.5
    assert rates.remaining(own) == {"requests": (60, 1)}
    rates.take(own, 0)
    with pytest.raises(TooMany) as raised:
        rates.take(own, 0)
    assert raised.value.retry_after == pytest.approx(0.5)


def test_after_retry_after_it_works() -> None:
    clock = Clock()
    rates = Rates(clock)
    own = key(pictures=10)
    rates.take(own, 7)
    with pytest.raises(TooMany) as raised:
        rates.take(own, 5)
    clock.now += raised.value.retry_after + 1e-6
    rates.take(own, 5)


def test_a_refused_request_takes_nothing_of_either() -> None:
    rates = Rates(Clock())
    own = key(requests=5, pictures=4)
    rates.take(own, 3)
    with pytest.raises(TooMany, match="4 pictures per minute, and 1 are left"):
        rates.take(own, 2)
    assert rates.remaining(own) == {"requests": (5, 4), "pictures": (4, 1)}


def test_what_was_taken_can_be_given_back_and_no_more_than_fits() -> None:
    rates = Rates(Clock())
    own = key(requests=2, pictures=4)
    rates.take(own, 4)
    rates.give_back(own, 4)
    rates.give_back(own, 4)
    assert rates.remaining(own) == {"requests": (2, 2), "pictures": (4, 4)}


def test_more_at_once_than_a_minute_s_worth_is_no_matter_of_waiting() -> None:
    with pytest.raises(ValueError, match="5 pictures are asked for at once, and this key may have 4"):
        Rates(Clock()).take(key(pictures=4), 5)


def test_keys_do_not_share() -> None:
    rates = Rates(Clock())
    rates.take(key("one", requests=1), 1)
    rates.take(key("two", requests=1), 1)
    with pytest.raises(TooMany):
        rates.take(key("two", requests=1), 1)


def test_without_limits_nothing_is_counted() -> None:
    rates = Rates(Clock())
    for _ in range(1000):
        rates.take(key(), 100)
    assert rates.remaining(key()) == {}
    assert not rates._buckets


def test_a_changed_limit_counts_at_once() -> None:
    rates = Rates(Clock())
    rates.take(key(requests=100), 1)
    assert rates.remaining(key(requests=10)) == {"requests": (10, 10)}


def test_full_buckets_are_forgotten() -> None:
    clock = Clock()
    rates = Rates(clock)
    for number in range(500):
        rates.take(key(f"key-{number}", requests=1), 1)
        clock.now += 1
    assert len(rates._buckets) <= 61


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 4)), max_size=60),
    st.integers(1, 20),
    st.integers(4, 20),
)
def test_no_minute_sees_more_than_twice_the_limit(
    steps: list[tuple[float, int]], requests: int, pictures: int
) -> None:
    clock = Clock()
    rates = Rates(clock)
    own = key(requests=requests, pictures=pictures)
    taken: list[tuple[float, int]] = []
    for wait, amount in steps:
        clock.now += wait
        try:
            rates.take(own, amount)
        except TooMany as problem:
            assert problem.retry_after > 0
            continue
        taken.append((clock.now, amount))
        last = [(at, count) for at, count in taken if at > clock.now - 60]
        assert len(last) <= 2 * requests
        assert sum(count for _, count in last) <= 2 * pictures
