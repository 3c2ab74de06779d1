"""The code of docs/models.md runs on pipelines in miniature and guides them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_setups as setups
import torch
from tiny_modular import TINY

from sldcore import guard
from sldcore.session import Session

DOCUMENT = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
Names = Callable[[dict[str, Any]], dict[str, Any]]


def with_names(setup: Any, **names: str) -> Names:
    """A setup under the names that the document uses for the arguments of its call."""

    def made(parts: dict[str, Any]) -> dict[str, Any]:
        pipe, call = setup(parts)
        given = {ours: call[theirs] for ours, theirs in names.items()}
        return {"pipe": pipe, **{name: _first(value) for name, value in given.items()}}

    return made


def _first(value: Any) -> Any:
    """What belongs to the first of two samples."""
    if isinstance(value, list):
        return [_first(each) for each in value]
    return value[:1] if isinstance(value, torch.Tensor) else value


EXAMPLES: dict[str, Names] = {
    "Models": with_names(setups.text_to_image),
    "A picture to start from": with_names(setups.image_to_image, image="image"),
    "Inpainting": with_names(setups.inpainting, image="image", mask="mask_image"),
    "ControlNet": with_names(setups.controlnet, control="image"),
    "LoRA": with_names(setups.lora),
    "Callbacks": with_names(setups.text_to_image),
    "Negative prompts": with_names(setups.text_to_image),
}
NOT_RUN = {
    "IP-Adapter": "its embeddings are of both halves, made by the setup for one prompt: test_integrations runs it",
    "Compilation": "test_integrations compiles without code generation",
    "Several devices": "there is one device",
    "A family of your own": "a class on its own; the families in sldcore.families are like it",
}


def sections() -> dict[str, str]:
    """Heading to the Python code below it."""
    parts = re.split(r"^#+ (.+)$", DOCUMENT, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    found = {title: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for title, text in pairs}
    return {title: blocks[0] for title, blocks in found.items() if blocks}


class Short:
    """A pipeline that makes small pictures in few steps, whatever it is asked for."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def __call__(self, *args: Any, **call: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        small = {"height": 32, "width": 32} if "mask_image" in call else {}
        return self.pipe(*args, generator=generator, num_inference_steps=12, **small, **call)


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs_and_guides(title: str, parts: dict[str, Any]) -> None:
    names = EXAMPLES[title](parts)
    sessions: list[Session] = []

    @contextmanager
    def guarding(short: Short, policy: str) -> Iterator[Session]:
        with guard(short.pipe, policy) as session:
            sessions.append(session)
            yield session

    names["pipe"] = Short(names["pipe"])
    code = sections()[title].replace("from sldcore import guard\n", "")
    exec(compile(code, "docs/models.md", "exec"), {**names, "guard": guarding})
    assert sessions[0].trace.applied.any()


def test_the_examples_for_modular_pipelines_run_and_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"^## Modular Diffusers\n(.*?)^## ", DOCUMENT, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"pipe": TINY["sdxl"].build()}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        small = block.replace(
            'output="images"', 'output="images", height=32, width=32, num_inference_steps=4'
        )
        exec(compile(small, "docs/models.md", "exec"), names)
    assert len(blocks) == 2 and names["session"].trace.applied.any()
    assert names["pipe"].guider.trace.applied.any()
    assert type(names["guider"].base).__name__ == "AdaptiveProjectedGuidance"


def test_every_example_is_run_or_said_not_to_be() -> None:
    elsewhere = {
        "Video",
        "Modular Diffusers",
    }  # the one in tests/families/test_video_engine.py, the other above
    assert set(sections()) == {*EXAMPLES, *NOT_RUN, *elsewhere}
