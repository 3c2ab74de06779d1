"""Detectors in miniature: the real classes with random weights, saved to folders as the real ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPImageProcessorPil,
    CLIPTokenizer,
    CLIPVisionConfig,
    GemmaTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sldcore import SafetyPolicy
from sldcore.filters.base import PictureContext

SIDE: Final = 32
SIZE: Final[dict[str, Any]] = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION: Final[dict[str, Any]] = {**SIZE, "image_size": SIDE, "patch_size": 8}


LLAVA_WORDS: Final = ("<pad>", "<unk>", "<image>", "<s>", "</s>", "USER:", "ASSISTANT:")
"""What every vocabulary of ``llava`` begins with."""
LLAVA_TEMPLATE: Final = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def pictures(number: int = 5, size: tuple[int, int] = (48, 40)) -> list[Image.Image]:
    """Pictures of noise around different colours."""
    made = []
    for seed in range(number):
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 256, 3) + random.normal(0, 40, (size[1], size[0], 3))
        made.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return made


def contexts(number: int, concepts: dict[str, tuple[str, ...]] | None = None) -> list[PictureContext]:
    """Contexts of pictures that these concepts guided."""
    return [PictureContext("a red knight", seed, SafetyPolicy(), concepts or {}) for seed in range(number)]


def spread(model: Any, seed: int = 0, scale: float = 0.5) -> Any:
    """The model with weights so large that pictures get different scores; transformers' own are next to nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(
                    torch.randn(weight.shape, generator=generator) * scale / weight.shape[-1] ** 0.25
                )
            elif weight.ndim and (name.endswith("bias") or "norm" not in name):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.eval()


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with one token per letter."""
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


def gemma_tokenizer(*more: str, **options: Any) -> GemmaTokenizer:
    """Gemma's tokenizer, which SigLIP 2 has too, with one token per letter, and some more."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *more, "\u2581", *letters]
    return GemmaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], **options)


def saved(model: Any, folder: Path) -> Path:
    """The folder, with the model and a preprocessor that resizes to a square."""
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def saved_clip_like(model: Any, folder: Path) -> Path:
    """The folder, with the model and CLIP's preprocessor."""
    model.save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(folder)
    return folder


def square_pixels(images: list[Image.Image]) -> torch.Tensor:
    """What ``saved``'s preprocessor should make of pictures, without transformers: [B, 3, 32, 32] in -1..1."""
    small = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(small).astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def clip_pixels(images: list[Image.Image]) -> torch.Tensor:
    """What CLIP's preprocessor should make of pictures, without transformers: [B, 3, 32, 32]."""
    ready = []
    for image in images:
        scale = SIDE / min(image.size)
        width, height = int(image.width * scale), int(image.height * scale)
        resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
        top, left = (height - SIDE) // 2, (width - SIDE) // 2
        ready.append(resized[top : top + SIDE, left : left + SIDE])
    mean = np.float32([0.48145466, 0.4578275, 0.40821073])
    std = np.float32([0.26862954, 0.26130258, 0.27577711])
    return torch.from_numpy((np.stack(ready) - mean) / std).permute(0, 3, 1, 2)


def llava(folder: Path, words: tuple[str, ...]) -> LlavaForConditionalGeneration:
    """A Llava that knows these words beside its own, and its processor, which is saved to the folder."""
    vocabulary = (*LLAVA_WORDS, *words)
    tokens = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokens.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    square = {"height": SIDE, "width": SIDE}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=VISION["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    ).save_pretrained(folder)
    text = LlamaConfig(
        **SIZE,
        vocab_size=len(vocabulary),
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=3,
        eos_token_id=4,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=text,
        image_token_index=2,
        vision_feature_layer=-1,
    )
    return spread(LlavaForConditionalGeneration(config))
