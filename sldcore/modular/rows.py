"""Concept rows as further batches of a guider: which texts go where, and which prediction comes from where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from sldcore.errors import GuidanceError, listed
from sldcore.types import Row

Texts = Mapping[str, Tensor]

TEXT_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "encoder_hidden_states": ("prompt_embeds",),
    "encoder_hidden_states_2": ("prompt_embeds_2",),
    "cap_feats": ("prompt_embeds",),
    "text_embeds": ("pooled_prompt_embeds",),
    "pooled_projections": ("pooled_prompt_embeds",),
    "encoder_hidden_states_mask": ("prompt_embeds_mask", "prompt_attention_mask"),
    "encoder_attention_mask": ("prompt_embeds_mask", "prompt_attention_mask"),
    "encoder_attention_mask_2": ("prompt_embeds_mask_2",),
}
"""Where a guider's input has another name than the text block's result: names under which that may be found."""

OTHER_FIELDS: Final = ("time_ids", "image_embeds", "is_uncondtion")
"""Inputs that differ between the conditional and the unconditional batch and are no text."""

POSITIONS: Final = ("txt_ids",)
"""Positions of a text's tokens: the same for all texts of one length."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One batch for concepts: at most one row for each picture, as wide as the pictures' batch.

    A place that no row needs is filled with the text of the first one, and its prediction is not used.
    """

    rows: tuple[tuple[int, Row], ...]  # position among the step's rows, and the row
    texts: Texts  # [B, ...] each


def text_fields(
    cond: Mapping[str, Any], uncond: Mapping[str, Any], names: Mapping[str, str], texts: Texts
) -> dict[str, str]:
    """Which of a batch's inputs are text, and what the text block calls each.

    Args:
        cond: the conditional batch's inputs.
        uncond: the unconditional batch's.
        names: the inputs that the pipeline gives as a pair, and what it calls each of them.
        texts: a concept, by the names of the text block.

    Raises:
        GuidanceError: an input is unknown, so that it cannot be told whether it is text; or none is text; or the pipeline made
            none for the unconditional batch.
    """
    found: dict[str, str] = {}
    for field, name in names.items():
        if cond.get(field) is None or cond[field] is uncond.get(field):
            continue  # absent, or the same for both: the latents
        known = next((each for each in (name, field, *TEXT_FIELDS.get(field, ())) if each in texts), None)
        if known is not None:
            found[field] = known
        elif field not in (*OTHER_FIELDS, *POSITIONS):
            raise GuidanceError(
                f"the pipeline's denoiser has an input '{field}' that differs between prompt and negative prompt, and is none "
                f"of what the text block makes of a concept ({listed(texts)}); safety guidance does not know this "
                f"architecture"
            )
    if not found:
        raise GuidanceError(
            "the pipeline gives its guider no text that differs between prompt and negative prompt, so there is no "
            "unconditional prediction; call it with a negative_prompt (an empty one will do)"
        )
    if missing := [field for field in found if uncond.get(field) is None]:
        raise GuidanceError(
            f"the pipeline made no unconditional {missing[0]}, so there is no unconditional prediction; call it with a "
            f"negative_prompt, and not with prompt embeddings alone"
        )
    return found


def slots_of(rows: Sequence[Row], batch: int, concepts: Sequence[Texts], device: torch.device) -> list[Slot]:
    """The fewest batches for ``rows``: texts of one shape together, one row for each picture."""
    taken: list[dict[int, tuple[int, Row]]] = []
    for position, row in enumerate(rows):
        place = next((slot for slot in taken if row.sample not in slot and _alike(slot, row, concepts)), None)
        if place is None:
            taken.append(place := {})
        place[row.sample] = (position, row)
    return [Slot(tuple(slot.values()), _texts(slot, batch, concepts, device)) for slot in taken]


def with_texts(cond: Mapping[str, Any], found: Mapping[str, str], texts: Texts) -> dict[str, Any]:
    """The conditional batch's inputs with the texts swapped.

    Raises:
        GuidanceError: a concept does not fit where a prompt stands.
    """
    changed = dict(cond)
    for field, name in found.items():
        changed[field] = _like(field, texts[name], cond[field])
    lengths = {field: value.shape[1] for field, value in cond.items() if field in found and _is_states(value)}
    for field in POSITIONS:
        if cond.get(field) is not None and any(changed[name].shape[1] != n for name, n in lengths.items()):
            raise GuidanceError(
                f"the concept has another number of tokens than the prompt, and {field} cannot be made for it; use the text "
                f"block's own max_sequence_length"
            )
    return changed


def predictions_of(slots: Sequence[Slot], made: Sequence[Tensor]) -> Tensor:
    """The predictions of the rows, [R, ...] in their order, from those of the slots, [B, ...] each."""
    whole = len(slots) == 1 and [row.sample for _, row in slots[0].rows] == list(range(made[0].shape[0]))
    if whole:
        return made[0]
    placed = {
        position: prediction[row.sample]
        for slot, prediction in zip(slots, made, strict=True)
        for position, row in slot.rows
    }
    return torch.stack([placed[position] for position in range(len(placed))])


def batch_of(cond: Mapping[str, Any], found: Mapping[str, str]) -> tuple[int, torch.device]:
    """How many pictures the conditional batch is for, and where its tensors are; by its texts, if they are known."""
    names = [*found, *TEXT_FIELDS, *cond]
    value = next(cond[name] for name in names if isinstance(cond.get(name), Tensor | list))
    return len(value), value[0].device


def _alike(slot: Mapping[int, tuple[int, Row]], row: Row, concepts: Sequence[Texts]) -> bool:
    _, first = next(iter(slot.values()))
    own, other = concepts[row.concept], concepts[first.concept]
    return own is other or all(own[name].shape == other[name].shape for name in own)


def _texts(
    slot: Mapping[int, tuple[int, Row]], batch: int, concepts: Sequence[Texts], device: torch.device
) -> Texts:
    _, first = next(iter(slot.values()))
    chosen = [slot[sample][1].concept if sample in slot else first.concept for sample in range(batch)]
    return {
        name: (
            value.to(device).expand(batch, *value.shape[1:])
            if len(set(chosen)) == 1
            else torch.cat([concepts[each][name] for each in chosen]).to(device)
        )
        for name, value in concepts[first.concept].items()
    }


def _is_states(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3


def _like(field: str, concept: Tensor, prompt: Any) -> Any:
    """A concept's text [B, ...] in the form that the prompt's has: a tensor, or a list of one tensor for each picture."""
    model = prompt[0] if isinstance(prompt, list) else prompt
    shaped = concept.shape[1:] if isinstance(prompt, list) else concept.shape
    has_width = model.ndim > 2 or isinstance(
        prompt, list
    )  # pooled texts and masks [B, n] are left to the denoiser
    if len(shaped) != model.ndim or (has_width and shaped[-1] != model.shape[-1]):
        raise GuidanceError(
            f"the concept's {field} is {list(concept.shape)} and the prompt's {list(model.shape)}; a block of the pipeline "
            f"changes it after the text block, which safety guidance does not know of"
        )
    own = concept.to(device=model.device, dtype=model.dtype)
    return list(own) if isinstance(prompt, list) else own.contiguous()
