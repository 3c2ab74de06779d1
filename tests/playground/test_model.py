"""The committed model: complete, small, loadable offline, and as good as it must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from sldcore.errors import ModelError
from sldcore.playground import MODEL, load_classifier
from sldcore.playground.measuring import Quality, measure
from sldcore.playground.prompts import DEFAULT_TEXT, PROMPT_SETS
from sldcore.playground.stages import Settings
from sldcore.playground.training import HELD_OUT_SEED, read_log
from sldcore.playground.world import GLYPH_TERMS, samples

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(
        MODEL, local_files_only=True, use_safetensors=True, safety_checker=None, dtype=torch.float32
    )


@pytest.fixture(scope="module")
def quality(pipe: StableDiffusionPipeline) -> Quality:
    held_out = list(samples(read_log(MODEL)["settings"]["seed"] + HELD_OUT_SEED, 300))
    return measure(pipe.vae, load_classifier(), held_out)


def test_all_files_together_stay_below_25_megabytes() -> None:
    assert (
        1 * MEGABYTE
        < sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
        <= 25 * MEGABYTE
    )


def test_weights_come_as_safetensors_and_everything_else_as_text() -> None:
    suffixes = {path.suffix for path in MODEL.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".txt"}


def test_it_was_trained_with_the_settings_of_the_command() -> None:
    assert Settings(**read_log(MODEL)["settings"]) == Settings()


def test_the_vae_reconstructs_held_out_pictures_well(quality: Quality) -> None:
    assert quality.vae_psnr_db >= 27


def test_the_classifier_finds_every_glyph_in_reconstructed_pictures(quality: Quality) -> None:
    assert min(quality.classifier_glyph_accuracy.values()) >= 0.98


def test_the_classifier_reads_the_rest_of_the_scene(quality: Quality) -> None:
    assert quality.classifier_subject_accuracy >= 0.97
    assert quality.classifier_colour_accuracy >= 0.97
    assert quality.classifier_place_accuracy >= 0.97


def test_the_summary_agrees_with_the_weights(quality: Quality) -> None:
    assert read_log(MODEL)["vae_psnr_db"] == pytest.approx(quality.vae_psnr_db, abs=0.3)


@pytest.mark.parametrize(
    "text", [DEFAULT_TEXT, *(", ".join(terms) for terms in GLYPH_TERMS.values()), *PROMPT_SETS["roles"][::30]]
)
def test_the_tokenizer_knows_every_word(pipe: StableDiffusionPipeline, text: str) -> None:
    assert [token for token in pipe.tokenizer.tokenize(text) if not token.endswith("</w>")] == []


def test_the_default_concept_fits_the_window(pipe: StableDiffusionPipeline) -> None:
    assert len(pipe.tokenizer(DEFAULT_TEXT).input_ids) <= pipe.tokenizer.model_max_length == 77


def test_latents_of_pictures_have_unit_variance(pipe: StableDiffusionPipeline) -> None:
    vae: AutoencoderKL = pipe.vae
    pixels = torch.from_numpy(np.stack([sample.pixels for sample in samples(11, 64)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        latents = vae.encode(pixels / 127.5 - 1).latent_dist.mean * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.05)


def test_a_folder_without_a_classifier_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no playground classifier"):
        load_classifier(tmp_path)


def test_the_classifier_is_loaded_once() -> None:
    assert load_classifier() is load_classifier()
