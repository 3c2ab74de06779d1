"""EasyAnimate: Qwen2-VL with its chat template, and a transformer that predicts rectified flow over [B, C, F, H, W]."""

from __future__ import annotations

from typing import Any, ClassVar

from sldcore.families.video import VideoFamily


class EasyAnimate(VideoFamily):
    """Text goes in as ``encoder_hidden_states`` [2B, L, D]; the template's tokens are among the L."""

    name = "easyanimate"
    needs_negative_prompt = True
    option_names: ClassVar[tuple[str, ...]] = ()  # the length is always the default one

    def tokens_of(self, pipe: Any, tokenizer: str, text: str) -> int:
        """With those of the template."""
        content = [{"type": "text", "text": text}]
        whole = pipe.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return super().tokens_of(pipe, tokenizer, whole)
