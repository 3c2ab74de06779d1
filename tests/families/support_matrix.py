"""The support matrix of docs/models.md, made from the families and the cases that hold them to the reference.

Run it to write the document anew: ``make models``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import cases_images
import cases_transformers
import cases_video
import diffusers
import test_stable_diffusion_family
from family_checks import Case

from sldcore.builtin import sld_families
from sldcore.contributions import FamilyKind
from sldcore.documents import write_text_atomically
from sldcore.families.base import DiffusersFamily

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- made by `make models`: do not edit between these marks -->", "<!-- end -->"
ELSEWHERE = {
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
}
"""Classes that tests/test_integrations.py holds to a reference of its own."""
PREDICTS = {
    "epsilon": "ε",
    "v": "v",
    "flow": "flow",
    "-flow": "flow, opposite sign",
    "inverted-flow": "flow, time reversed",
}
HEADER = ("Family", "Pipelines", "Called", "Predicts", "Scale of guidance", "Text at most")


@cache
def cases() -> dict[str, list[Case]]:
    """Name of a pipeline class to the cases that run it."""
    found: dict[str, list[Case]] = {}
    groups = (test_stable_diffusion_family, cases_images, cases_transformers, cases_video)
    for case in (case for group in groups for case in group.CASES):
        found.setdefault(type(case.pipe()).__name__, []).append(case)
    return found


def untested() -> set[str]:
    """Supported pipeline classes that no test holds to a reference."""
    named = {name for kind in sld_families() for name in kind.pipelines}
    return named - set(cases()) - ELSEWHERE


def table() -> str:
    """The matrix in Markdown."""
    rows = [HEADER, tuple("---" for _ in HEADER), *(_row(kind) for kind in sld_families())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def document() -> str:
    """docs/models.md with the matrix as it is now."""
    made = f"{BEGIN}\n\n{table()}\n\n*Made for diffusers {_minor(diffusers.__version__)}.*\n\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: made, DOCUMENT.read_text(), flags=re.DOTALL)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _row(kind: FamilyKind) -> tuple[str, ...]:
    family = kind.create()
    own = [case for name in kind.pipelines for case in cases().get(name, [])]
    scale = f"`{family.guidance_argument}`" + (" and `negative_prompt`" if family.needs_negative_prompt else "")
    return (
        f"`{kind.name}`: {kind.description}",
        ", ".join(f"`{name.removesuffix('Pipeline')}`" for name in kind.pipelines),
        ("apart, " if family.apart else "together, ") + _parts(own),
        ", ".join(dict.fromkeys(PREDICTS[case.prediction] for case in own)),
        scale,
        _window(family, own),
    )


def _parts(own: Iterable[Case]) -> str:
    return " or ".join(dict.fromkeys(f"[{'; '.join(case.parts)}]" for case in own))


def _window(family: DiffusersFamily, own: list[Case]) -> str:
    """Tokens of the narrowest encoder, as the family says them, or as the real class's default has them."""
    fixed = [window for window in getattr(family, "tokenizers", {}).values() if isinstance(window, int)]
    named = any(window is None for window in getattr(family, "tokenizers", {}).values())
    if fixed and not named:
        return f"{min(fixed)} tokens"
    return "the tokenizer's `model_max_length` (CLIP: 77)" if named else "`max_sequence_length`"


if __name__ == "__main__":
    write_text_atomically(DOCUMENT, document())
