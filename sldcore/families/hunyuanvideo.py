"""HunyuanVideo: Llama with a template, CLIP's pooled text, and a transformer that is called for cond, then for uncond.

It predicts rectified flow over latents [B, C, F, H, W], and is distilled: ``guidance_scale`` goes into it as an input. Its
classifier-free guidance is ``true_cfg_scale``, which needs a negative prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, ClassVar

from torch import Tensor

from sldcore.errors import ConceptError
from sldcore.families.base import COND, NO_OPTIONS, UNCOND, TextOptions
from sldcore.families.video import VideoFamily


class HunyuanVideo(VideoFamily):
    """Text goes in as ``encoder_hidden_states`` [B, L, D], a mask [B, L] and ``pooled_projections`` [B, D']."""

    name = "hunyuanvideo"
    text_arguments = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
    apart = True
    guidance_argument = "true_cfg_scale"
    needs_negative_prompt = True
    order: ClassVar[tuple[str, ...]] = (COND, UNCOND)
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {
        "tokenizer": "max_sequence_length",
        "tokenizer_2": 77,
    }
    option_names: ClassVar[tuple[str, ...]] = ("max_sequence_length", "prompt_template")

    def text_options(self, pipe: Any, encoded: Mapping[str, Any]) -> TextOptions:
        """The template's entries as pairs."""
        given = {**encoded}
        template = given.pop("prompt_template", None)
        options = super().text_options(pipe, given).arguments()
        if template is not None and template != _default_template(pipe):
            options["prompt_template"] = tuple(sorted(template.items()))
        return TextOptions.of(options)

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """States, mask and pooled text."""
        template = self._template(pipe, options)
        states, pooled, mask = self.encoded(pipe, text, options, prompt_template=template)
        return {
            "encoder_hidden_states": states,
            "encoder_attention_mask": mask,
            "pooled_projections": pooled,
        }

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """With what the template puts behind a text; what it puts in front is cut off after encoding.

        Raises:
            ConceptError: the template does not say how much that is.
        """
        windows = self._windows(pipe, options)
        narrowest = min(windows.values())
        template = self._template(pipe, options)
        whole = self.tokens_of(pipe, "tokenizer", template["template"].format(text))
        counts = {
            "tokenizer": whole - _cut_off(template),
            "tokenizer_2": self.tokens_of(pipe, "tokenizer_2", text),
        }
        return max(0, *(count - (windows[name] - narrowest) for name, count in counts.items()))

    def _template(self, pipe: Any, options: TextOptions) -> dict[str, Any]:
        given = options.arguments().get("prompt_template")
        return dict(given) if given else dict(_default_template(pipe))


def _cut_off(template: Mapping[str, Any]) -> int:
    """Tokens in front of a text.

    Raises:
        ConceptError: the template does not say; the pipeline counts padding then, and may cut texts off.
    """
    start = template.get("crop_start")
    if start is None:
        raise ConceptError(
            "prompt_template has no 'crop_start', so it cannot be told whether a concept's text is cut off; give the number "
            "of tokens in front of the text"
        )
    return int(start)


def _default_template(pipe: Any) -> Any:
    return signature(type(pipe).encode_prompt).parameters["prompt_template"].default
