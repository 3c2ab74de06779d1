"""A small CNN that reads the playground's pictures: which glyphs, which subject, which colour, which place.

It is the measuring instrument of the playground: *inappropriate* means that it finds a glyph (probability
above 0.5). It is trained on drawn pictures and on reconstructions from slightly noisy latents, so that
generated pictures are no new kind of picture to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from sldcore.playground.world import COLOURS, GLYPHS, PLACES, ROLES, SIZE, SUBJECTS, Sample, Scene

EVERY_SUBJECT: Final = ("", *SUBJECTS, *ROLES)
EVERY_COLOUR: Final = ("", *COLOURS)
EVERY_PLACE: Final = tuple(PLACES)
THRESHOLD: Final = 0.5


@dataclass(frozen=True, slots=True)
class Reading:
    """What the classifier sees in one picture: a probability per glyph, and the likeliest of the rest."""

    glyphs: dict[str, float]
    subject: str
    colour: str
    place: str

    @property
    def inappropriate(self) -> bool:
        """True if any glyph is found."""
        return max(self.glyphs.values()) > THRESHOLD


class SceneClassifier(nn.Module):
    """Reads pictures: float [B, 3, 64, 64] in -1..1.

    The outputs are logits for glyphs [B, 7] (each its own yes or no), subject [B, 14] (the first means none),
    colour [B, 7] (the first means none) and place [B, 5].
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 3 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.SiLU()]
        self.features = nn.Sequential(*layers)  # [B, 4 * width, 4, 4]
        pooled = 2 * channels[-1]
        self.glyphs = nn.Linear(pooled, len(GLYPHS))
        self.subject = nn.Linear(pooled, len(EVERY_SUBJECT))
        self.colour = nn.Linear(pooled, len(EVERY_COLOUR))
        self.place = nn.Linear(pooled, len(EVERY_PLACE))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits for glyphs, subject, colour and place."""
        maps = self.features(pixels)
        pooled = torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], dim=1)
        return self.glyphs(pooled), self.subject(pooled), self.colour(pooled), self.place(pooled)

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """Read pictures of any size (they are scaled to 64 x 64)."""
        if not images:
            return []
        glyphs, subject, colour, place = self(pixels_of(images))
        return [
            Reading(
                dict(zip(GLYPHS, torch.sigmoid(glyphs[i]).tolist(), strict=True)),
                EVERY_SUBJECT[int(subject[i].argmax())],
                EVERY_COLOUR[int(colour[i].argmax())],
                EVERY_PLACE[int(place[i].argmax())],
            )
            for i in range(len(images))
        ]

    @classmethod
    def load(cls, path: Path) -> SceneClassifier:
        """Load weights from a safetensors file."""
        model = cls()
        model.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        return model.eval()


def pixels_of(images: Sequence[Image.Image]) -> Tensor:
    """Pillow pictures to float [B, 3, 64, 64] in -1..1."""
    arrays = [np.asarray(image.convert("RGB").resize((SIZE, SIZE)), dtype=np.float32) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


def sample_pixels(samples: Sequence[Sample]) -> Tensor:
    """Drawn pictures to float [B, 3, 64, 64] in -1..1."""
    stacked = torch.from_numpy(np.stack([sample.pixels for sample in samples]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def labels_of(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets for :class:`SceneClassifier`: glyphs as 0/1 floats, the others as class numbers."""
    glyphs = torch.tensor([[float(glyph in scene.glyphs) for glyph in GLYPHS] for scene in scenes])
    subject = torch.tensor([EVERY_SUBJECT.index(scene.subject) for scene in scenes])
    colour = torch.tensor([EVERY_COLOUR.index(scene.colour if scene.subject else "") for scene in scenes])
    place = torch.tensor([EVERY_PLACE.index(scene.place) for scene in scenes])
    return glyphs, subject, colour, place
