"""Memory: a guarded call with one concept holds at most half as much again as the plain guided call."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sldcore.policy import ConceptUse, GuidanceSpec, SafetyPolicy
from sldcore.session import guard


class Peak(TorchDispatchMode):  # type: ignore[misc]
    """The most bytes that tensors made under this mode held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak(pipe: Any, policy: SafetyPolicy | str) -> int:
    """Bytes at the peak of one call without its decoder, whose memory is the same for all."""
    with guard(pipe, policy), Peak() as meter:
        pipe(
            "a red knight on a meadow",
            num_inference_steps=2,
            guidance_scale=5.0,
            height=128,
            width=128,
            output_type="latent",
        )
    return meter.most


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_one_concept_adds_at_most_half_of_the_plain_calls_memory(momentum: float, pipe: Any) -> None:
    options = {"scale": 1000.0, "threshold": 0.5, "momentum_scale": momentum}
    policy = SafetyPolicy(
        guidance=GuidanceSpec(method="sld", options=options), concepts=(ConceptUse(text="blood"),)
    )
    plain, guarded = peak(pipe, "off"), peak(pipe, policy)
    assert plain < guarded <= 1.5 * plain


def test_the_meter_sees_what_is_held_and_what_is_let_go() -> None:
    with Peak() as meter:
        held = torch.zeros(1000)
        for _ in range(3):
            torch.zeros(500) + 1
        del held
    assert 6000 <= meter.most <= 8100 and meter.live == 0
