"""Other people's code called with a lock and a time limit."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import perf_counter
from typing import Generic, TypeVar

T = TypeVar("T")


class Guarded(Generic[T]):
    """One object that is called by one thread at a time, and given up when a call takes too long.

    A call that hangs cannot be ended from outside: its thread stays behind, and the object is not called again.
    """

    def __init__(self, made: T) -> None:
        self.made = made
        self._lock = Lock()
        self._hangs = False

    def call(self, function: Callable[[T], object], seconds: float) -> tuple[object, float]:
        """What ``function`` of the object returns, and the seconds it took.

        Raises:
            TimeoutError: It took longer than ``seconds``, or an earlier call still does.
            Exception: Whatever ``function`` raises.
        """
        if not self._lock.acquire(timeout=seconds):
            raise TimeoutError(f"busy with another call for more than {seconds:g} s")
        try:
            if self._hangs:
                raise TimeoutError(
                    "an earlier call took too long and has not come back; it is not called again"
                )
            return self._call(function, seconds)
        finally:
            self._lock.release()

    def _call(self, function: Callable[[T], object], seconds: float) -> tuple[object, float]:
        answers: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()

        def work() -> None:
            try:
                answers.put((function(self.made), None))
            except BaseException as error:
                answers.put((None, error))

        started = perf_counter()
        Thread(target=copy_context().run, args=(work,), daemon=True, name="sldcore-filter").start()
        try:
            answer, error = answers.get(timeout=seconds)
        except Empty:
            self._hangs = True
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        if isinstance(error, Exception):
            raise error
        if error is not None:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        return answer, perf_counter() - started
