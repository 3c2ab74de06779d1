"""A pipeline without weights: called, guided and guarded like Stable Diffusion, and done in a few milliseconds.

What it draws means nothing, but it obeys the rules that guidance relies on: the same seed gives the same picture, alone and
in a batch; the text changes the prediction, element by element; a word has the same meaning in a prompt and in a concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final, Self
from zlib import crc32

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

WINDOW: Final = 77
"""Tokens that the text encoder takes, begin and end included."""

CHANNELS: Final = 4
WIDTH: Final = 8
VOCABULARY: Final = 8192
BEGIN, END = 0, 1


def count_tokens(text: str) -> int:
    """One token per word or sign, and two for begin and end."""
    return len(_token_ids(text))


class FakeTokenizer:
    """Splits at blanks and commas; a word's number is a checksum of it."""

    model_max_length = WINDOW

    def __call__(self, text: str, truncation: bool = False, **_: Any) -> SimpleNamespace:
        """Token numbers as ``input_ids``, cut to the window with ``truncation``."""
        ids = _token_ids(text)
        return SimpleNamespace(
            input_ids=[*ids[: WINDOW - 1], END] if truncation and len(ids) > WINDOW else ids
        )

    def __len__(self) -> int:
        return VOCABULARY


class FakeTextEncoder(nn.Module):
    """Looks the states of tokens up in a table: token numbers [B, L] to [B, L, 8]."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.arange(VOCABULARY * WIDTH, dtype=torch.float64).mul(1.618).sin().view(VOCABULARY, WIDTH)
        table[END] = 0.0
        self.table = nn.Parameter(table.float(), requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """The states."""
        return self.table[input_ids]


class FakeDenoiser(nn.Module):
    """Predicts noise from what it sees and reads: latents [N, 4, H, W] and text [N, L, 8]."""

    def __init__(self) -> None:
        super().__init__()
        mix = (
            torch.arange(WIDTH * CHANNELS * 4, dtype=torch.float64).mul(2.399).cos().view(WIDTH, CHANNELS, 4)
        )
        self.mix = nn.Parameter(mix.float(), requires_grad=False)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> SimpleNamespace | tuple[Tensor]:
        """The prediction, as diffusers' UNets give it."""
        text = encoder_hidden_states.sum(1)  # [N, 8]
        waves = _waves(sample.shape[-2], sample.shape[-1], sample)  # [4, H, W]
        drawing = torch.einsum("nd,dcm,mhw->nchw", text, self.mix.to(sample.dtype), waves)
        prediction = 0.5 * sample + 0.05 * drawing
        return (prediction,) if not return_dict else SimpleNamespace(sample=prediction)


class StableDiffusionPipeline:
    """Nothing but a name, under which the family of Stable Diffusion knows :class:`FakePipeline`."""


class FakePipeline(StableDiffusionPipeline):
    """Prompts to pictures of 16 x 16 pixels; see the module.

    Args:
        scheduler: any scheduler of diffusers that Stable Diffusion takes; DDIM if left out.
        device: where the denoiser and the text encoder are.
        dtype: what they compute in.
    """

    def __init__(
        self, scheduler: Any = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.unet: nn.Module = FakeDenoiser()
        self.text_encoder: nn.Module = FakeTextEncoder()
        self.tokenizer = FakeTokenizer()
        self.scheduler = scheduler or DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        self.safety_checker = None
        self.name_or_path = "fake"
        self.clip_skip: int | None = None
        self.cross_attention_kwargs: dict[str, Any] | None = None
        self.guidance_scale = 1.0
        self.num_timesteps = 0
        self._interrupt = False
        self.to(device, dtype)

    def to(self, *place: torch.device | str | torch.dtype) -> Self:
        """Move to a device, another dtype, or both."""
        for each in place:
            self.unet.to(each)
            self.text_encoder.to(each)
        return self

    @property
    def components(self) -> dict[str, Any]:
        """What diffusers' pipelines list."""
        parts = ("unet", "text_encoder", "tokenizer", "scheduler", "safety_checker")
        return {name: getattr(self, name) for name in parts}

    @property
    def _execution_device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call under way has an unconditional half."""
        return self.guidance_scale > 1

    def maybe_free_model_hooks(self) -> None:
        """What diffusers calls at the end; there is nothing to free."""

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | Sequence[str] | None = None,
        clip_skip: int | None = None,
        lora_scale: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """States [B, 77, 8] of the prompts, and of the negative prompts if there is an unconditional half."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        states = self._states(prompts, device).repeat_interleave(num_images_per_prompt, 0)
        if not do_classifier_free_guidance:
            return states, None
        negative = negative_prompt or ""
        negatives = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
        return states, self._states(negatives, device).repeat_interleave(num_images_per_prompt, 0)

    def _states(self, texts: Sequence[str], device: torch.device) -> Tensor:
        ids = [self.tokenizer(text, truncation=True).input_ids for text in texts]
        padded = [[*each, *[END] * (WINDOW - len(each))] for each in ids]
        states: Tensor = self.text_encoder(torch.tensor(padded, device=self._execution_device))
        return states.to(device)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 10,
        guidance_scale: float = 5.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        height: int = 16,
        width: int = 16,
        output_type: str = "pil",
        return_dict: bool = True,
        clip_skip: int | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Make pictures: ``output_type`` is ``pil``, ``np`` ([B, H, W, 3] in 0..1) or ``latent`` ([B, 4, H/2, W/2])."""
        self.guidance_scale, self.clip_skip = guidance_scale, clip_skip
        self.cross_attention_kwargs, self._interrupt = cross_attention_kwargs, False
        device = self._execution_device
        if prompt_embeds is not None:
            cond = prompt_embeds.repeat_interleave(num_images_per_prompt, 0)
            uncond = self._states([""] * len(cond), device)
        else:
            cond, uncond = self.encode_prompt(  # type: ignore[assignment]
                prompt or "", device, num_images_per_prompt, guidance_scale > 1, negative_prompt
            )
        text = torch.cat([uncond, cond]) if guidance_scale > 1 else cond
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        if latents is None:
            latents = _noise((len(cond), CHANNELS, height // 2, width // 2), generator, device, cond.dtype)
        latents = self._denoise(latents.to(device, cond.dtype) * self.scheduler.init_noise_sigma, text)
        images = _decoded(latents, output_type)
        self.maybe_free_model_hooks()
        output = SimpleNamespace(images=images, nsfw_content_detected=None)
        return output if return_dict else (images, None)

    def _denoise(self, latents: Tensor, text: Tensor) -> Tensor:
        timesteps = self.scheduler.timesteps
        self.num_timesteps = len(timesteps)
        for timestep in timesteps:
            if self._interrupt:
                continue
            twice = torch.cat([latents] * 2) if self.do_classifier_free_guidance else latents
            given = self.scheduler.scale_model_input(twice, timestep)
            (prediction,) = self.unet(
                given,
                timestep,
                encoder_hidden_states=text,
                cross_attention_kwargs=self.cross_attention_kwargs,
                return_dict=False,
            )
            if self.do_classifier_free_guidance:
                uncond, cond = prediction.chunk(2)
                prediction = uncond + self.guidance_scale * (cond - uncond)
            latents = self.scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return latents


def _token_ids(text: str) -> list[int]:
    words = text.lower().replace(",", " , ").split()
    return [BEGIN, *(2 + crc32(word.encode()) % (VOCABULARY - 2) for word in words), END]


def _waves(height: int, width: int, like: Tensor) -> Tensor:
    """Four patterns [4, H, W]."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype).view(-1, 1)
    columns = torch.arange(width, device=like.device, dtype=like.dtype).view(1, -1)
    flat = torch.zeros_like(rows + columns)
    return torch.stack([flat + 1, (rows + flat).sin(), (columns + flat).cos(), (rows * columns).sin()])


def _noise(
    shape: tuple[int, ...],
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Starting latents; with a list of generators each picture has its own, so that it is the same in any batch."""
    if isinstance(generator, list):
        rows = [
            torch.randn(1, *shape[1:], generator=each, device=each.device).to(device) for each in generator
        ]
        return torch.cat(rows).to(dtype)
    made_on = generator.device if generator is not None else device
    return torch.randn(shape, generator=generator, device=made_on).to(device, dtype)


def _decoded(latents: Tensor, output_type: str) -> Any:
    if output_type == "latent":
        return latents
    pixels = latents[:, :3].float().sigmoid().repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return images
    return [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]
