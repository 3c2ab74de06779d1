"""Training of the playground model: tokenizer, VAE, classifier, text encoder with UNet.

Deterministic by seed on one machine with one number of threads; a run that was interrupted and resumed ends
with the weights of one that was not. Stages write checkpoints into the work folder; a finished stage is not
repeated. The model appears in the output folder by rename, complete or not at all.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from sldcore.documents import write_text_atomically
from sldcore.errors import ConfigurationError
from sldcore.playground.architecture import build_tokenizer
from sldcore.playground.classifier import SceneClassifier
from sldcore.playground.measuring import measure
from sldcore.playground.optimise import CHECKPOINT_EVERY, Report
from sldcore.playground.prompts import tokenizer_corpus
from sldcore.playground.stages import Run, Settings, encode_all, train_classifier, train_unet, train_vae
from sldcore.playground.world import GLYPH_SHEETS, WORLD, Mixture, Sample, samples

HELD_OUT_SEED: Final = 1_000_003
"""Added to the seed for pictures that no stage trains on."""


def train(
    output: Path, work: Path, settings: Settings, report: Report, checkpoint_every: int = CHECKPOINT_EVERY
) -> dict[str, Any]:
    """Train everything and write a diffusers pipeline folder to ``output``; returns the log summary.

    Interrupted (Ctrl-C), it keeps the last checkpoint in ``work``; called again with the same arguments, it
    goes on from there.

    Raises:
        ConfigurationError: ``output`` exists, or ``work`` belongs to a run with other settings.
    """
    claim(output, work, settings)
    started = time.monotonic()
    run = Run(settings, work, report, checkpoint_every)
    with torch.random.fork_rng(devices=[]):
        examples = list(_drawn(run, settings.seed, GLYPH_SHEETS, "pictures"))
        tokenizer = build_tokenizer(tokenizer_corpus(settings.seed))
        vae = train_vae(run, examples)
        latents = encode_all(run, vae, examples, "latents")
        scaling = 1 / float(latents.std())
        vae.register_to_config(scaling_factor=scaling)
        latents *= scaling
        classifier = train_classifier(run, vae, examples, latents)
        held_out = list(samples(settings.seed + HELD_OUT_SEED, settings.held_out, GLYPH_SHEETS))
        run.log.update(asdict(measure(vae, classifier, held_out)))
        world = list(_drawn(run, settings.seed + 1, WORLD, "world"))
        world_latents = encode_all(run, vae, world, "world-latents") * scaling
        pipeline = train_unet(run, vae, tokenizer, world, world_latents)
    run.log["seconds"] = round(run.seconds_before + time.monotonic() - started)
    publish(output, pipeline, classifier, run.log)
    return run.log


def claim(output: Path, work: Path, settings: Settings) -> None:
    """Refuse an output that exists, and a work folder that a run with other settings began."""
    if output.exists():
        raise ConfigurationError(f"{output} exists already; name another folder or remove it first")
    mark, wanted = work / "settings.json", json.dumps(asdict(settings), indent=2)
    if mark.exists() and mark.read_text(encoding="utf-8") != wanted:
        raise ConfigurationError(
            f"{work} holds checkpoints of a run with other settings (see {mark}); name another work folder, "
            "or remove this one to begin again"
        )
    write_text_atomically(mark, wanted)


def publish(
    output: Path, pipeline: StableDiffusionPipeline, classifier: SceneClassifier, log: dict[str, Any]
) -> None:
    """Save, mostly in half precision, to a temporary folder beside ``output`` and rename it into place."""
    temporary = output.with_name(output.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    # The text encoder stays in float32: transformers loads weights in the type they are saved in, diffusers in float32.
    for module in (pipeline.vae, pipeline.unet, classifier):
        module.half()
    pipeline.save_pretrained(temporary, safe_serialization=True)
    save_file(classifier.state_dict(), temporary / "classifier.safetensors")
    write_text_atomically(temporary / "training.json", json.dumps(log, indent=2) + "\n")
    for path in temporary.rglob("*"):  # safetensors files come out readable by their owner only
        path.chmod(0o755 if path.is_dir() else 0o644)
    temporary.replace(output)


def read_log(folder: Path) -> dict[str, Any]:
    """The log summary that :func:`train` left in a model folder."""
    log: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return log


def _drawn(run: Run, seed: int, mixture: Mixture, name: str) -> Iterator[Sample]:
    count = run.settings.pictures
    for number, sample in enumerate(samples(seed, count, mixture), 1):
        if number % 100 == 0 or number == count:
            run.report(name, number, count, 0.0)
        yield sample
