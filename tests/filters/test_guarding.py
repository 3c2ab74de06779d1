"""Calls with a lock and a time limit."""

from __future__ import annotations

import threading
import time

import pytest

from sldcore.filters.guarding import Guarded


def test_an_answer_comes_with_its_seconds() -> None:
    answer, seconds = Guarded([3, 1, 2]).call(sorted, 5)
    assert answer == [1, 2, 3]
    assert 0 <= seconds < 5


def test_what_is_raised_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        Guarded(0).call(lambda number: 1 / number, 5)


def test_an_exit_of_the_callee_is_no_exit_of_the_caller() -> None:
    def leave(_: int) -> None:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        Guarded(0).call(leave, 5)


def test_a_call_that_hangs_is_given_up_and_the_object_is_not_called_again() -> None:
    released = threading.Event()
    guarded = Guarded(released)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        guarded.call(lambda event: event.wait(), 0.05)
    with pytest.raises(TimeoutError, match="not called again"):
        guarded.call(lambda event: event.is_set(), 5)
    released.set()


def test_one_thread_at_a_time() -> None:
    inside, most = [0], [0]

    def work(_: object) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1

    guarded = Guarded(object())
    threads = [threading.Thread(target=lambda: guarded.call(work, 5)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
