"""Jobs, filters and hosts for the tests of the service's engines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sldcore import SafetyPolicy
from sldcore.catalogue import using
from sldcore.contributions import MarkKind, PostFilterKind, PromptFilterKind, StepHookKind
from sldcore.errors import SafetyFailure
from sldcore.service.hosting.engine_host import EngineHost
from sldcore.service.jobs import Answer, Event, Failed, Job, PictureAnswer, PictureJob
from sldcore.service.settings import ModelSettings
from sldcore.testing import catalogue_of
from sldcore.types import Verdict

STEPS: Final = 8
CLOSE: Final = 2
"""Levels by which a picture may differ between a batch and a call alone."""

GO_ON = threading.Event()
"""Set to let the filter go on that hangs."""


def clean(shown: Sequence[Any], contexts: Sequence[Any]) -> list[Verdict]:
    return [Verdict("clean", "1", False, {"x": 0.1}, {"x": 0.5}) for _ in shown]


def flags(shown: Sequence[Any], contexts: Sequence[Any]) -> list[Verdict]:
    return [Verdict("flags", "1", True, {"x": 0.9}, {"x": 0.5}) for _ in shown]


def raises(shown: Sequence[Any], contexts: Sequence[Any]) -> list[Verdict]:
    words = [getattr(context, "prompt", text) for text, context in zip(shown, contexts, strict=True)]
    raise ValueError(f"cannot read {words[0]!r} in /opt/secret/model.bin")


def hangs(shown: Sequence[Any], contexts: Sequence[Any]) -> list[Verdict]:
    GO_ON.wait(30)
    return clean(shown, contexts)


class Reviewer:
    version = "1"

    def __init__(self, name: str, review: Callable[[Sequence[Any], Sequence[Any]], list[Verdict]]) -> None:
        self.name, self._review = name, review

    def review(self, shown: Sequence[Any], contexts: Sequence[Any]) -> list[Verdict]:
        return self._review(shown, contexts)


class Spoils:
    """A step hook that answers with NaN from its third step on."""

    name, version = "spoils", "1"

    def before_guidance(self, step: Any, predictions: Any) -> None:
        return None

    def after_guidance(self, step: Any, predictions: Any, guided: Any) -> Any:
        return guided * float("nan") if step.index >= 2 else None


class CannotSign:
    name, version = "cannot-sign", "1"

    def mark(self, pictures: Sequence[Any], contexts: Sequence[Any]) -> list[Any]:
        return list(pictures)

    def mark_bytes(self, content: bytes, report: Any) -> bytes:
        raise SafetyFailure("the key is gone")


REVIEWS: Final = {"clean": clean, "flags": flags, "raises": raises, "hangs": hangs}
KINDS: Final = [
    *(
        kind(name=name, create=lambda options, name=name, review=review: Reviewer(name, review))
        for kind in (PostFilterKind, PromptFilterKind)
        for name, review in REVIEWS.items()
    ),
    StepHookKind(name="spoils", create=lambda options: Spoils()),
    MarkKind(name="cannot-sign", create=lambda options: CannotSign()),
]


@contextmanager
def hosting(**models: ModelSettings) -> Iterator[EngineHost]:
    with using(catalogue_of(*KINDS)):
        yield EngineHost(models or {"playground": ModelSettings(steps=STEPS, device="cpu")})


def policy(preset: str = "off", **fields: Any) -> SafetyPolicy:
    return SafetyPolicy.preset(preset).replace(**fields)


def job(
    prompt: str = "a blue house", seed: int = 1, own: SafetyPolicy | None = None, **fields: Any
) -> PictureJob:
    own = policy() if own is None else own
    name = fields.pop("id", f"{prompt[:6]}-{seed}-{own.digest[:6]}")
    return PictureJob(
        name, "playground", prompt, seed, own, **{"width": 64, "height": 64, "steps": STEPS, **fields}
    )


def run(host: EngineHost, *jobs: Job, emit: Callable[[Event], None] | None = None) -> list[Answer]:
    return host.run(jobs, emit or (lambda event: None), lambda: ())


def pictures(answers: Sequence[Answer]) -> list[PictureAnswer]:
    assert not [answer for answer in answers if isinstance(answer, Failed)]
    return [answer for answer in answers if isinstance(answer, PictureAnswer)]


def pixels(content: bytes | None) -> NDArray[np.int16]:
    assert content is not None
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"), dtype=np.int16)


def png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
