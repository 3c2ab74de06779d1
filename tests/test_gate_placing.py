"""Gates whose first pass ends early, on denoisers that are offloaded: the second pass and the next call are as ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from made_gated import CALL, CLOSE, PROMPTS, gated, made, pipeline
from numpy.typing import NDArray

from sldcore import Result, SafetyEngine

Setup = Callable[[Any], None]


def offload_whole_models(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_layers(pipe: Any) -> None:
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))


def pixels(result: Result) -> NDArray[np.float32]:
    return np.stack(result.images)


@pytest.mark.parametrize("setup", [offload_whole_models, offload_layers])
def test_a_second_pass_after_an_interrupted_first_one(setup: Setup) -> None:
    expected, off = pixels(made(gated(-1.0))), pixels(made("off"))
    pipe = pipeline()
    setup(pipe)
    engine = SafetyEngine(pipe, gated(-1.0))
    for _ in range(2):
        again = engine.generate(PROMPTS, seed=7, **CALL)
        assert all(report.probes[0].restarts for report in again.reports)
        assert np.abs(pixels(again) - expected).max() < CLOSE
    nothing_found = SafetyEngine(pipe, gated(1.0)).generate(PROMPTS, seed=7, **CALL)
    assert not any(report.probes[0].guides for report in nothing_found.reports)
    assert np.abs(pixels(nothing_found) - off).max() < CLOSE
