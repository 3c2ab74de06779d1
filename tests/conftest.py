"""What every test runs under: no network, few threads, and a pipeline in miniature for those that need one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from sldcore.contributions import Contribution

# Before anything imports huggingface_hub, which reads them once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "agg")
# Command output is compared as text: no wrapping at the width of whoever runs the tests, no colours.
os.environ.setdefault("COLUMNS", "200")
os.environ.setdefault("NO_COLOR", "1")

settings.register_profile("sldcore", deadline=None)  # a busy machine is no failure
settings.load_profile("sldcore")


@pytest.fixture(scope="session")
def parts() -> dict[str, Any]:
    """Components of a Stable Diffusion in miniature; ``tiny_pipelines.pipeline`` copies them."""
    import tiny_pipelines

    return tiny_pipelines.parts()


@pytest.fixture
def pipe(parts: dict[str, Any]) -> Any:
    """A StableDiffusionPipeline in miniature, fresh for each test."""
    import tiny_pipelines

    return tiny_pipelines.pipeline(**parts)


@pytest.fixture
def contribute() -> Iterator[Callable[..., None]]:
    """Call it with contributions: during the test the catalogue holds the core's and these."""
    from sldcore.builtin import entries
    from sldcore.catalogue import Catalogue, Entry, Provider, using

    with ExitStack() as stack:

        def add(*contributions: Contribution) -> None:
            own = [Entry(each, Provider("test", "sld-test", "1.0")) for each in contributions]
            stack.enter_context(using(Catalogue([*entries(), *own])))

        yield add


@pytest.fixture(autouse=True)
def core_only() -> Iterator[None]:
    """No test looks for installed plugins unless it asks to."""
    from sldcore.builtin import entries
    from sldcore.catalogue import Catalogue, using

    with using(Catalogue(entries())):
        yield
