"""How good the playground's VAE and classifier are, on pictures that neither was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sldcore.playground.classifier import SceneClassifier, labels_of, sample_pixels
from sldcore.playground.world import GLYPHS, Sample


@dataclass(frozen=True, slots=True)
class Quality:
    """Reconstruction error in decibels, and accuracies 0..1 on reconstructed pictures."""

    vae_psnr_db: float
    vae_psnr_worst_db: float
    classifier_glyph_accuracy: dict[str, float]
    classifier_subject_accuracy: float
    classifier_colour_accuracy: float
    classifier_place_accuracy: float


@torch.no_grad()
def measure(vae: AutoencoderKL, classifier: SceneClassifier, held_out: Sequence[Sample]) -> Quality:
    """PSNR of the VAE (pixels in 0..1), mean and worst, and share of right answers of the classifier."""
    errors, glyphs_right, others_right = [], [], []
    for first in range(0, len(held_out), 100):
        part = held_out[first : first + 100]
        pixels = sample_pixels(part)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        errors.append(((decoded - pixels) / 2).square().mean((1, 2, 3)))
        glyphs, others = _right(classifier, decoded, part)
        glyphs_right.append(glyphs)
        others_right.append(others)
    psnr = -10 * torch.cat(errors).log10()
    rates = [round(rate, 4) for rate in torch.cat(glyphs_right).mean(0).tolist()]
    subject, colour, place = (round(rate, 4) for rate in torch.cat(others_right).mean(0).tolist())
    return Quality(
        round(float(psnr.mean()), 2),
        round(float(psnr.min()), 2),
        dict(zip(GLYPHS, rates, strict=True)),
        subject,
        colour,
        place,
    )


def _right(classifier: SceneClassifier, decoded: Tensor, part: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Which answers are right, as 0/1: glyphs [B, 7]; subject, colour and place [B, 3]."""
    glyphs, *others = labels_of([sample.scene for sample in part])
    found, *guesses = classifier(decoded)
    named = [guess.argmax(1) == label for guess, label in zip(guesses, others, strict=True)]
    return ((found > 0).float() == glyphs).float(), torch.stack(named, 1).float()
