"""Measures per picture that need a network: LPIPS to a reference, and the CLIP score to the prompt.

Networks come from paths that the caller gives; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from sldcore.errors import ConfigurationError
from sldcore.evaluation.estimates import Numbers, as_numbers, same_length
from sldcore.evaluation.network_weights import belonging, libraries, read_weights
from sldcore.evaluation.side_effects import Pictures, pixels_of, same_size

CLIP_SCALE: Final = 100.0
NETWORKS: Final = ("alex", "vgg")
"""Backbones of LPIPS: torchvision's AlexNet and VGG-16."""


def lpips(
    pictures: Pictures, references: Pictures, backbone: Path | str, network: Literal["vgg", "alex"] = "vgg"
) -> Numbers:
    """LPIPS of each picture to its reference, [N]; 0 for equal pictures, larger for pictures that look different.

    After Zhang et al. (CVPR 2018), version 0.1: features of five layers, normalised over channels, squared differences weighted by the learned
    linear layers (which torchmetrics ships), averaged over space, summed over layers. Pictures are compared in their own size.

    Args:
        pictures: [N].
        references: The pictures to compare with, [N], each of the same size.
        backbone: Weights of torchvision's ``vgg16`` or ``alexnet`` (ImageNet), safetensors or a state dict.
        network: Which of the two.

    Raises:
        ConfigurationError: torchmetrics or torchvision is missing, lengths or sizes differ, or the network is neither.
        ModelError: the weights cannot be read or do not belong to the network.
    """
    same_length(pictures=pictures, references=references)
    return Lpips(backbone, network).measure(pictures, references)


class Lpips:
    """LPIPS with its network loaded, for more than one call; see ``lpips``.

    Attributes:
        version: Of the measure, and of the library that brings its linear layers.

    Raises:
        ConfigurationError: as ``lpips``.
        ModelError: as ``lpips``.
    """

    def __init__(self, backbone: Path | str, network: str = "vgg", device: str | None = "cpu") -> None:
        if network not in NETWORKS:
            raise ConfigurationError(
                f"unknown network '{network}' for LPIPS (available: {', '.join(NETWORKS)})"
            )
        measures, _ = libraries("LPIPS", "torchmetrics.functional.image.lpips", "torchvision")
        from sldcore.loading.placing import device_of

        path, self._device = Path(backbone), device_of(device)
        weights = read_weights(path)
        # rand: the backbone is read here, and not downloaded
        model = measures._LPIPS(net=network, pnet_rand=True)
        with belonging(path, f"torchvision's {network} network"):
            model.net.load_state_dict(
                {name: weights[_torchvision_name(name)] for name in model.net.state_dict()}
            )
        self._model = model.to(self._device)
        self.version = f"0.1 {network}, torchmetrics {version('torchmetrics')}"

    def measure(self, pictures: Pictures, references: Pictures) -> Numbers:
        """Distances of pairs, [N]; see ``lpips``.

        Raises:
            ConfigurationError: two pictures of a pair differ in size, or something is no picture.
        """
        pairs = zip(pictures, references, strict=True)
        return as_numbers(
            [self._distance(*same_size(pixels_of(a), pixels_of(b))) for a, b in pairs], "distances"
        )

    def _distance(self, picture: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
        import torch

        with torch.inference_mode():
            pair = [
                torch.tensor(x, device=self._device).permute(2, 0, 1)[None].float() / 127.5 - 1
                for x in (picture, reference)
            ]
            return float(self._model(*pair))


def _torchvision_name(name: str) -> str:
    """``slice2.5.weight`` of torchmetrics is ``features.5.weight`` of torchvision."""
    return "features." + name.partition(".")[2]


def clip_score(
    pictures: Sequence[Any],
    prompts: Sequence[str],
    model: Path | str,
    device: str | None = None,
    batch_size: int = 8,
) -> Numbers:
    """CLIP score of each picture with its prompt, [N]: 100 times the cosine of the two embeddings.

    After Hessel et al. (EMNLP 2021) as torchmetrics computes it, per picture and so not cut at 0. Prompts are cut at the text encoder's
    length (77 tokens). Published scores are mostly those of openai/clip-vit-large-patch14; scores of different models cannot be compared. A picture
    that was withheld has no meaningful score: leave it out, and report how many were.

    Args:
        pictures: Pillow images, or uint8 [H, W, 3], [N].
        prompts: [N].
        model: Folder with a CLIP model, preprocessor and tokenizer, weights as safetensors.
        device: Where it runs; the best there is by default.
        batch_size: Pictures and prompts that the model sees at once.

    Raises:
        ConfigurationError: the lengths differ.
        ModelError: the folder holds no whole CLIP model.
    """
    same_length(pictures=pictures, prompts=prompts)
    if not len(pictures):
        return np.zeros(0)
    return ClipScore(model, device, batch_size).measure(pictures, prompts)


class ClipScore:
    """The CLIP score with its model loaded, for more than one call; see ``clip_score``.

    Raises:
        ModelError: the folder holds no whole CLIP model.
    """

    def __init__(self, model: Path | str, device: str | None = None, batch_size: int = 8) -> None:
        from transformers import CLIPModel

        from sldcore.filters import local_models

        options = local_models.LocalModelOptions(
            model=str(model), device=device, dtype="float32", batch_size=batch_size
        )
        folder = local_models.model_folder(str(model), "CLIP")
        self._tokenizer = local_models.load_tokenizer(folder)
        self._processor = local_models.load_image_processor(folder)
        self._clip = local_models.load_model(CLIPModel, folder, options)
        self._batch_size = batch_size
        self.version = f"transformers {version('transformers')}"

    def measure(self, pictures: Sequence[Any], prompts: Sequence[str]) -> Numbers:
        """Scores of at least one picture, each with its prompt, [N]; see ``clip_score``.

        Raises:
            ConfigurationError: something is no picture.
            ValueError: the model gives numbers that are not finite.
        """
        import torch
        from PIL import Image

        from sldcore.filters import local_models

        clip = self._clip
        seen = local_models.embedded(
            [Image.fromarray(pixels_of(picture)) for picture in pictures],
            self._processor,
            clip,
            self._batch_size,
            lambda pixels: _features(clip.get_image_features(pixel_values=pixels)),
        )
        length = clip.config.text_config.max_position_embeddings
        read = []
        with torch.inference_mode():
            for some in local_models.in_batches(list(prompts), self._batch_size):
                tokens = self._tokenizer(
                    list(some), padding=True, truncation=True, max_length=length, return_tensors="pt"
                )
                read.append(_features(clip.get_text_features(**tokens.to(clip.device))).float().cpu())
        cosines = (local_models.unit(seen) * local_models.unit(torch.cat(read))).sum(dim=-1)
        return as_numbers((CLIP_SCALE * cosines.double()).numpy(), "scores")


def _features(output: Any) -> Any:
    """Projected embeddings: transformers 4 returns them, 5 an object that holds them."""
    return getattr(output, "pooler_output", output)
