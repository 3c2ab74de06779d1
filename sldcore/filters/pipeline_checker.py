"""The safety checker that a Stable Diffusion pipeline brings along.

The pipeline itself blackens what its checker flags and returns bare booleans. Here the checker runs on a copy, its word is
kept per picture, and the engine decides what is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final

from sldcore.types import Failure, Verdict

NAME: Final = "safety-checker"


class CheckerReview:
    """What the checker said in one pipeline call: a verdict per picture, or why there is none."""

    def __init__(self, expected: bool) -> None:
        self.expected = expected
        self._flags: list[bool] | None = None
        self._error: str | None = None

    def note(self, flags: Any, pictures: int) -> None:
        """Keep one flag per picture; anything else is an error."""
        flags = list(flags) if flags is not None else []
        if len(flags) != pictures:
            self._error = f"{len(flags)} verdicts for {pictures} pictures"
        else:
            self._flags = [bool(flag) for flag in flags]

    def fail(self, error: Exception) -> None:
        """Keep the reason why the checker gave no verdicts."""
        self._error = f"{type(error).__name__}: {error}"

    def of(self, index: int) -> tuple[tuple[Verdict, ...], tuple[Failure, ...]]:
        """Verdicts and failures for one picture; a checker that should have spoken and did not is a failure."""
        if not self.expected:
            return (), ()
        release = version("diffusers")
        if self._error is not None or self._flags is None:
            return (), (Failure(NAME, release, self._error or "the pipeline did not run it"),)
        reason = (
            "the pipeline's safety checker found a concept above its threshold" if self._flags[index] else ""
        )
        return (Verdict(NAME, release, self._flags[index], reason=reason),), ()


@contextmanager
def reviewing(pipe: Any) -> Iterator[CheckerReview]:
    """Take the pipeline's own checker out of its hands for one call."""
    checks = getattr(pipe, "safety_checker", None) is not None and hasattr(pipe, "run_safety_checker")
    review = CheckerReview(expected=checks)  # others (Cosmos' guardrail) act inside the pipeline and raise
    if not review.expected:
        yield review
        return
    original = pipe.run_safety_checker

    def run_on_copy(image: Any, device: Any, dtype: Any) -> tuple[Any, None]:
        try:
            _, flags = original(image.clone(), device, dtype)
            review.note(flags, len(image))
        except Exception as error:
            review.fail(error)
        return image, None

    own = {name: value for name, value in vars(pipe).items() if name == "run_safety_checker"}
    pipe.run_safety_checker = run_on_copy
    try:
        yield review
    finally:
        del pipe.run_safety_checker
        vars(pipe).update(own)
