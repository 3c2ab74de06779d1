"""What families of video pipelines share."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, ClassVar

from sldcore.families.base import DiffusersFamily


class VideoFamily(DiffusersFamily):
    """T5 as the text encoder, whose length the call says; latents [B, C, F, H, W] or [B, F, C, H, W]."""

    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": "max_sequence_length"}
    option_names: ClassVar[tuple[str, ...]] = ("max_sequence_length",)

    def picture_size(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """What the call says, else its default, else what the denoiser was made for."""
        parameters = signature(type(pipe).__call__).parameters
        defaults = {name: parameters[name].default for name in ("height", "width") if name in parameters}
        asked = {**defaults, **{name: each for name, each in arguments.items() if each is not None}}
        config: Any = self.denoisers(pipe)[0].config
        factor = getattr(pipe, "vae_scale_factor_spatial", None) or getattr(pipe, "vae_scale_factor", 8)
        for name in ("height", "width"):
            if not isinstance(asked.get(name), int):
                own = config.get(f"sample_{name}") or config.get("sample_size")
                asked[name] = own * factor if own else getattr(pipe, f"default_{name}")
        return int(asked["height"]), int(asked["width"])
