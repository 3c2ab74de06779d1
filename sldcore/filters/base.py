"""The protocols of filters: post-filters look at decoded pictures, prompt filters at prompts before generation.

Both take a whole batch and return one verdict for each of its members, in order. A filter never decides what is shown:
the policy does. One that raises, or that returns anything but one well-formed verdict per member, fails closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sldcore.types import Verdict

if TYPE_CHECKING:
    from PIL import Image

    from sldcore.policy import SafetyPolicy


@dataclass(frozen=True, slots=True)
class PictureContext:
    """What is known of one picture under review beside its pixels."""

    prompt: str
    seed: int | None
    policy: SafetyPolicy


@runtime_checkable
class PostFilter(Protocol):
    """Reviews decoded pictures. Holds its detector, but nothing of a run."""

    name: str
    version: str

    def review(
        self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]
    ) -> Sequence[Verdict]:
        """One verdict per picture, in order. ``pictures`` are RGB copies: changing them changes nothing."""
        ...


@runtime_checkable
class PromptFilter(Protocol):
    """Reviews prompts before anything is generated."""

    name: str
    version: str

    def review(self, prompts: Sequence[str]) -> Sequence[Verdict]:
        """One verdict per prompt, in order."""
        ...
