"""What every test runs under: no network, few threads, and a pipeline in miniature for those that need one."""

from __future__ import annotations

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
