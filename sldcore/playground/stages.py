"""The stages of training the playground model: VAE, its latents, classifier, text encoder with UNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sldcore.documents import write_bytes_atomically
from sldcore.playground import architecture
from sldcore.playground.classifier import SceneClassifier, labels_of, sample_pixels
from sldcore.playground.optimise import CHECKPOINT_EVERY, Report, Stage, optimise
from sldcore.playground.world import Sample


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that defines a training run."""

    seed: int = 0
    pictures: int = 24_000
    held_out: int = 1_000
    vae_steps: int = 2_600
    vae_batch: int = 32
    classifier_steps: int = 900
    classifier_batch: int = 64
    unet_steps: int = 6_500
    unet_batch: int = 64
    learning_rate: float = 1.5e-3
    caption_dropout: float = 0.1
    bfloat16: bool = True  # mixed precision for the VAE's convolutions

    @classmethod
    def quick(cls, seed: int = 0) -> Settings:
        """A few steps of everything: shows that training works, not what it can learn."""
        return cls(
            seed,
            pictures=200,
            held_out=100,
            vae_steps=12,
            vae_batch=8,
            classifier_steps=8,
            classifier_batch=16,
            unet_steps=10,
            unet_batch=16,
        )


@dataclass(slots=True)
class Run:
    """State of one training run. ``log`` becomes the summary that is kept beside the weights."""

    settings: Settings
    work: Path
    report: Report
    checkpoint_every: int = CHECKPOINT_EVERY
    log: dict[str, Any] = field(init=False)
    seconds_before: float = 0.0
    """Time that earlier processes spent on this run's stages."""

    def __post_init__(self) -> None:
        self.log = {"settings": asdict(self.settings)}

    def optimise(
        self,
        name: str,
        module: nn.Module,
        steps: int,
        loss_of: Callable[[torch.Generator], Tensor],
        ema_decay: float = 0.999,
    ) -> None:
        """Train ``module`` as one stage of this run and note how it went."""
        stage = Stage(name, steps, self.settings.seed, self.settings.learning_rate, ema_decay)
        outcome = optimise(stage, module, loss_of, self.work, self.report, self.checkpoint_every)
        self.seconds_before += outcome.seconds_before
        self.log[f"{name}_loss"] = round(outcome.loss, 5)
        self.log[f"{name}_seconds"] = round(outcome.seconds)

    def batch(self, generator: torch.Generator, size: int) -> Tensor:
        """Numbers of the training pictures of one batch, [B]."""
        return torch.randint(self.settings.pictures, (size,), generator=generator)


def train_vae(run: Run, examples: Sequence[Sample]) -> AutoencoderKL:
    """Absolute and edge error of the reconstruction; a slight pull of the posterior to the unit normal."""
    torch.manual_seed(run.settings.seed)
    vae = architecture.build_vae()

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = run.batch(generator, run.settings.vae_batch)
        pixels = _pixels(examples, chosen)
        with torch.autocast("cpu", torch.bfloat16, enabled=run.settings.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        decoded, mean, log_variance = decoded.float(), posterior.mean.float(), posterior.logvar.float()
        across, along = (F.l1_loss(a, b) for a, b in zip(_edges(decoded), _edges(pixels), strict=True))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        error = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)
        loss: Tensor = error + 0.5 * (across + along) + 4e-4 * divergence
        return loss

    run.optimise("vae", vae, run.settings.vae_steps, loss_of, ema_decay=0.995)
    return vae


@torch.no_grad()
def encode_all(run: Run, vae: AutoencoderKL, examples: Sequence[Sample], name: str) -> Tensor:
    """Latents [N, 8, 8, 8] of all pictures, not scaled yet; kept as ``name`` in the work folder."""
    path = run.work / f"{name}.safetensors"
    if not path.exists():
        parts = []
        for first in range(0, len(examples), 100):
            part = examples[first : first + 100]
            parts.append(vae.encode(sample_pixels(part)).latent_dist.mean)
            run.report(name, first + len(part), len(examples), 0.0)
        write_bytes_atomically(path, save({"latents": torch.cat(parts).contiguous()}))
    return load_file(path)["latents"]


def train_classifier(
    run: Run, vae: AutoencoderKL, examples: Sequence[Sample], latents: Tensor
) -> SceneClassifier:
    """Half of each batch are drawn pictures, half their reconstructions from slightly noisy latents."""
    torch.manual_seed(run.settings.seed + 1)
    classifier = SceneClassifier()
    scaling = vae.config.scaling_factor

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = run.batch(generator, run.settings.classifier_batch)
        drawn, decoded = chosen.chunk(2)
        noise = 0.15 * torch.randn(latents[decoded].shape, generator=generator)
        with torch.no_grad():
            pictures = vae.decode((latents[decoded] + noise) / scaling).sample.clamp(-1, 1)
        pixels = torch.cat([_pixels(examples, drawn), pictures])
        pixels = pixels + 0.04 * torch.randn(pixels.shape, generator=generator)
        glyphs, *others = labels_of([examples[i].scene for i in chosen.tolist()])
        found, *guesses = classifier(pixels)
        named = [F.cross_entropy(guess, label) for guess, label in zip(guesses, others, strict=True)]
        return 3 * F.binary_cross_entropy_with_logits(found, glyphs) + torch.stack(named).sum()

    run.optimise("classifier", classifier, run.settings.classifier_steps, loss_of, ema_decay=0.99)
    return classifier


def train_unet(
    run: Run, vae: AutoencoderKL, tokenizer: CLIPTokenizer, examples: Sequence[Sample], latents: Tensor
) -> StableDiffusionPipeline:
    """Text encoder and UNet together predict epsilon; some captions are dropped, for guidance.

    ``latents`` [N, 8, 8, 8] are those of ``examples``, scaled to unit variance.
    """
    torch.manual_seed(run.settings.seed + 2)
    text_encoder, unet = architecture.build_text_encoder(tokenizer), architecture.build_unet()
    scheduler = architecture.build_scheduler()
    tokens = _tokens(tokenizer, ["", *(example.caption for example in examples)])

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = run.batch(generator, run.settings.unet_batch)
        dropped = torch.rand(chosen.shape, generator=generator) < run.settings.caption_dropout
        hidden = text_encoder(tokens[torch.where(dropped, 0, chosen + 1)])[0]  # [B, 77, 96]
        noise = torch.randn(latents[chosen].shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, chosen.shape, generator=generator)
        noisy = scheduler.add_noise(latents[chosen], noise, timesteps)
        return F.mse_loss(unet(noisy, timesteps, hidden).sample, noise)

    both = nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})
    run.optimise("unet", both, run.settings.unet_steps, loss_of)
    return architecture.build_pipeline(vae, text_encoder, tokenizer, unet, scheduler)


def _pixels(examples: Sequence[Sample], chosen: Tensor) -> Tensor:
    return sample_pixels([examples[i] for i in chosen.tolist()])


def _edges(pixels: Tensor) -> tuple[Tensor, Tensor]:
    return pixels[..., 1:] - pixels[..., :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


def _tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [N, 77]."""
    tokens = tokenizer(captions, padding="max_length", max_length=architecture.WINDOW, truncation=True)
    return torch.tensor(tokens["input_ids"])
