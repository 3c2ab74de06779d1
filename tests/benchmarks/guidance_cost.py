"""What does safety guidance cost? Seconds per picture, as a ratio to the plain diffusers pipeline.

    python tests/benchmarks/guidance_cost.py --repeats 9 --json out/cost.json

Two models: the playground, and a random-weight Stable Diffusion with the UNet topology of version 1.5 at reduced
width. In every round each contender makes the same pictures once, in rotating order, and its time is divided by
the plain pipeline's time in that round; reported are medians over the rounds, with quartiles. Nothing here asserts
a time: machines differ, and a busy one measures its other work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionPipelineSafe,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging

from sldcore import SafetyEngine, SLDPipeline, load_pipeline
from sldcore.documents import write_text_atomically
from sldcore.playground import architecture
from sldcore.playground.prompts import ROLE_PROMPTS
from sldcore.provenance import library_versions

PLAIN: Final = "plain pipeline"
Contender = Callable[[], Any]


def playground() -> StableDiffusionPipeline:
    """The embedded model: 64 x 64 pictures, latents [8, 8, 8]."""
    return load_pipeline("playground", dtype="float32")


def reduced_sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5's block types and depth, a tenth of its width, random weights, latents [4, 32, 32]."""
    torch.manual_seed(0)
    tokenizer = load_pipeline("playground").tokenizer
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=architecture.WIDTH,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    )
    text_encoder = architecture.build_text_encoder(tokenizer)
    scheduler = architecture.build_scheduler()
    for module in (unet, vae, text_encoder):
        module.eval()
    return architecture.build_pipeline(vae, text_encoder, tokenizer, unet, scheduler)


MODELS: Final[Mapping[str, Callable[[], StableDiffusionPipeline]]] = {
    "playground": playground,
    "reduced-sd15": reduced_sd15,
}


def contenders(pipe: StableDiffusionPipeline, batch: int, steps: int, scale: float) -> dict[str, Contender]:
    """Calls that make the same ``batch`` pictures, by name."""
    parts = {
        name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    } | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    ours, theirs = SLDPipeline(**parts), StableDiffusionPipelineSafe(**parts)
    theirs.safety_concept = ours.safety_concept
    arguments: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": scale}
    prompts = list(ROLE_PROMPTS[:batch])

    def by_pipeline(pipeline: Any) -> Contender:
        pipeline.set_progress_bar_config(disable=True)
        return lambda: pipeline(
            prompts, generator=[torch.Generator().manual_seed(i) for i in range(batch)], **arguments
        )

    def by_engine(policy: str) -> Contender:
        engine = SafetyEngine(pipe, policy)
        return lambda: engine.generate(prompts, seed=list(range(batch)), **arguments)

    return {
        PLAIN: by_pipeline(pipe),
        **{f"engine, {policy}": by_engine(policy) for policy in ("off", "weak", "medium")},
        "SLDPipeline, medium": by_pipeline(ours),
        "StableDiffusionPipelineSafe, medium": by_pipeline(theirs),
    }


def measure(calls: Mapping[str, Contender], repeats: int, label: str) -> dict[str, list[float]]:
    """Seconds of every contender in every round; the first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(repeats + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            calls[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
        print(f"{label}: round {number} of {repeats}", file=sys.stderr, flush=True)
    return seconds


def summary(seconds: Mapping[str, Sequence[float]], batch: int) -> dict[str, dict[str, float]]:
    """Per contender: median seconds per picture, and median and quartiles of the ratio to the plain pipeline."""
    summaries = {}
    for name, times in seconds.items():
        ratios = [mine / plain for mine, plain in zip(times, seconds[PLAIN], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        summaries[name] = {
            "seconds_per_picture": statistics.median(times) / batch,
            "ratio": statistics.median(ratios),
            "ratio_lower_quartile": low,
            "ratio_upper_quartile": high,
        }
    return summaries


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    versions = library_versions()
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "load before": load,
        "versions": ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "diffusers")),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def markdown(results: Mapping[str, Mapping[str, Mapping[str, float]]], options: argparse.Namespace) -> str:
    """One line per model, batch and contender."""
    lines = [
        f"{options.steps} DDIM steps, guidance scale {options.guidance_scale:g}, median of {options.repeats} rounds.",
        "",
        "| model, batch | contender | seconds per picture | ratio to plain | quartiles |",
        "|---|---|---:|---:|---:|",
    ]
    for label, contended in results.items():
        for name, found in contended.items():
            quartiles = f"{found['ratio_lower_quartile']:.2f} to {found['ratio_upper_quartile']:.2f}"
            lines.append(
                f"| {label} | {name} | {found['seconds_per_picture']:.3f} | {found['ratio']:.2f} | {quartiles} |"
            )
    return "\n".join(lines)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1], help="pictures per call")
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = options_of(arguments)
    diffusers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")  # the deprecated pipeline's
    described, seconds, results = machine(), {}, {}
    for model in options.models:
        pipe = MODELS[model]()
        for batch in options.batches:
            label = f"{model}, {batch}"
            calls = contenders(pipe, batch, options.steps, options.guidance_scale)
            seconds[label] = measure(calls, options.repeats, label)
            results[label] = summary(seconds[label], batch)
    print(markdown(results, options))
    print("\n" + "; ".join(f"{name}: {value}" for name, value in described.items()))
    if options.json:
        document = {"machine": described, "summary": results, "seconds": seconds}
        write_text_atomically(options.json, json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
