"""What becomes of the pipeline's own rows in a denoiser call: which are evaluated, and which get another text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sldcore.errors import GuidanceError
from sldcore.families.base import COND, UNCOND
from sldcore.types import OwnRow

FOLLOWED: Final[Mapping[str, str]] = {"perturbed": COND, "neither": UNCOND}
"""Parts that pipelines give the text of another part: PAG's third, and InstructPix2Pix's."""


@dataclass(frozen=True, slots=True)
class RowSource:
    """Where some rows stand in a call: on the host, and as an index on the device.

    A slice if they lie together in order, which needs no copy.
    """

    positions: tuple[int, ...]
    index: Tensor | slice

    def of(self, value: Tensor, group: int = 1) -> Tensor:
        """The rows of ``value``, each of them ``group`` entries."""
        grouped = value if group == 1 else value.reshape(-1, group, *value.shape[1:])
        rows = (
            grouped[self.index]
            if isinstance(self.index, slice)
            else grouped.index_select(0, self.index.to(value.device))
        )
        return rows if group == 1 else rows.flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Swap:
    """Other texts [S, ...], by argument, for rows at ``at`` (positions among those kept); ``whole`` if these are all."""

    at: Tensor
    texts: Mapping[str, Tensor]
    whole: bool

    def put(self, name: str, value: Tensor, text: Tensor, group: int) -> Tensor:
        """``value`` [N * group, ...] with ``text`` [S * group, ...] in the place of the rows.

        Raises:
            GuidanceError: only some rows get another text, and it has another length.
        """
        if self.whole:
            return text.contiguous()
        fitted = fitted_text(name, text, value)
        grouped = value.reshape(-1, group, *value.shape[1:])
        others = fitted.reshape(-1, group, *value.shape[1:])
        return grouped.index_copy(0, self.at.to(value.device), others).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class OwnRows:
    """What becomes of a call's own rows: ``kept`` are evaluated, and ``swaps`` says which of these get another text.

    ``answers`` [rows] says for every row of the call which of the evaluated ones stands for it.
    """

    kept: RowSource
    swaps: tuple[Swap, ...]
    answers: Tensor

    @property
    def texts(self) -> tuple[str, ...]:
        """Arguments that hold another text."""
        return tuple(dict.fromkeys(name for swap in self.swaps for name in swap.texts))


def own_rows(
    parts: tuple[str, ...],
    batch: int,
    out: frozenset[int],
    texts: Mapping[OwnRow, Mapping[str, Tensor]],
    device: torch.device,
) -> OwnRows | None:
    """A call of ``batch`` rows for each part without the samples ``out``, with other ``texts`` [1, ...] for some rows.

    Rows that are left out are answered with those of the first sample that is not, so that no pipeline divides by the
    norm of nothing. Where all samples are out, the first one stays. None if nothing changes.
    """
    own = [OwnRow(sample, part) for part in parts for sample in range(batch)]
    first = next((sample for sample in range(batch) if sample not in out), 0)
    kept = [position for position, row in enumerate(own) if row.sample == first or row.sample not in out]
    mine = {row: texts[key] for row in own if (key := _follows(row)) in texts}
    swapped: dict[tuple[tuple[str, torch.Size], ...], list[int]] = {}
    for index, position in enumerate(kept):
        if own[position] in mine:
            shapes = ((name, text.shape) for name, text in sorted(mine[own[position]].items()))
            swapped.setdefault(tuple(shapes), []).append(index)
    if len(kept) == len(own) and not swapped:
        return None
    everything = len(kept) == len(own)
    source = RowSource(tuple(kept), slice(None) if everything else torch.tensor(kept, device=device))
    at = {own[position]: index for index, position in enumerate(kept)}
    answers = [at.get(row, at[OwnRow(first, row.part)]) for row in own]
    swaps = []
    for indices in swapped.values():
        chosen = [mine[own[kept[index]]] for index in indices]
        merged = {name: torch.cat([each[name].to(device) for each in chosen]) for name in chosen[0]}
        swaps.append(Swap(torch.tensor(indices, device=device), merged, len(indices) == len(kept)))
    return OwnRows(source, tuple(swaps), torch.tensor(answers, device=device))


def _follows(row: OwnRow) -> OwnRow:
    return OwnRow(row.sample, FOLLOWED.get(row.part, row.part))


def fitted_text(name: str, concept: Tensor, value: Tensor) -> Tensor:
    """A concept's text [R, L, ...] at the length that the call's has.

    Prompts longer than the encoder's window arrive as several windows in a row; a concept's states are repeated to the
    same length then, which leaves attention over them exactly as it is.

    Raises:
        GuidanceError: the call's length is no multiple.
    """
    if concept.ndim < 2 or value.shape[1] == concept.shape[1]:
        return concept
    times, rest = divmod(value.shape[1], concept.shape[1])
    if rest:
        raise GuidanceError(
            f"{name} has {value.shape[1]} tokens and the concept {concept.shape[1]}; prompt embeddings must be a whole "
            f"number of the text encoder's windows long"
        )
    return concept.repeat(1, times, *(1,) * (concept.ndim - 2))
