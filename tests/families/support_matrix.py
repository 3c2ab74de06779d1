"""The support matrix of docs/models.md, made from the families and the cases that hold them to the reference.

Run it to write the document anew: ``make models``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from inspect import signature
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
from sldcore.families.base import NO_CUT, NO_OPTIONS, DiffusersFamily

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- made by `make models`: do not edit between these marks -->", "<!-- end -->"
PREDICTS = {
    "epsilon": "ε",
    "v": "v",
    "flow": "flow",
    "-flow": "flow, opposite sign",
    "inverted-flow": "flow, time reversed",
    "flow-by-sigmas": "flow",
    "edm": "EDM's preconditioned x0",
}
CLIP = 77
"""Window of the published CLIP encoders; those of the tests are as wide."""
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
    return named - set(cases())


def table() -> str:
    """The matrix in Markdown."""
    rows = [HEADER, tuple("---" for _ in HEADER), *(_row(kind) for kind in sld_families())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def document() -> str:
    """docs/models.md with the matrix as it is now."""
    made = f"{BEGIN}\n\n{table()}\n\n*Made for diffusers {_minor(diffusers.__version__)}.*\n\n{END}"
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: made, DOCUMENT.read_text(), flags=re.DOTALL
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _row(kind: FamilyKind) -> tuple[str, ...]:
    family = kind.create()
    own = [case for name in kind.pipelines for case in cases().get(name, [])]
    scale = f"`{family.guidance_argument}`" + (
        " and `negative_prompt`" if family.needs_negative_prompt else ""
    )
    return (
        f"`{kind.name}`: {kind.description}",
        ", ".join(f"`{name.removesuffix('Pipeline')}`" for name in kind.pipelines),
        f"apart, {', then '.join(family.order)}" if family.apart else f"together, {_parts(own)}",
        ", ".join(dict.fromkeys(PREDICTS[case.prediction] for case in own)),
        scale,
        _window(family, own[0]),
    )


def _parts(own: Iterable[Case]) -> str:
    return " or ".join(dict.fromkeys(f"[{'; '.join(case.parts)}]" for case in own))


def _window(family: DiffusersFamily, case: Case) -> str:
    """Tokens of the narrowest encoder: the family's own number, CLIP's, or the default of the pipeline's argument."""
    pipe, found = case.pipe(), []
    for name, window in family.tokenizers.items():
        if isinstance(window, int):
            found.append((window, ""))
        elif isinstance(window, str):
            taken = [signature(each).parameters for each in (type(pipe).__call__, type(pipe).encode_prompt)]
            default = next(each[window].default for each in taken if window in each)
            found.append((default, f" by default (`{window}`)"))
        elif "CLIP" in type(getattr(pipe, name, None)).__name__:
            found.append((CLIP, ""))
        else:
            found.append((family.window(pipe, NO_OPTIONS), ""))
    tokens, how = min(found)
    return f"{tokens} tokens{how}" if tokens < NO_CUT else "no limit"


if __name__ == "__main__":
    write_text_atomically(DOCUMENT, document())
