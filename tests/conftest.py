"""What every test runs under: no network, few threads, and a pipeline in miniature for those that need one."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest
from hypothesis import settings

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first: one that begins last keeps one process busy while the others have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What imports have left lives until the end: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


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
