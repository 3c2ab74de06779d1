"""A CLIP of random weights in a folder, as save_pretrained writes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

sys.path.append(str(Path(__file__).parents[1] / "filters"))
from tiny_detectors import SIZE, VISION, clip_tokenizer, saved_clip_like, spread

TEXT_LENGTH: Final = 20


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """The folder, with the model, its tokenizer of letters and its preprocessor."""
    tokenizer = clip_tokenizer()
    text = CLIPTextConfig(
        **SIZE,
        vocab_size=len(tokenizer),
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=CLIPVisionConfig(**VISION).to_dict(), projection_dim=16
    )
    tokenizer.save_pretrained(folder)
    return saved_clip_like(spread(CLIPModel(config), seed), folder)
