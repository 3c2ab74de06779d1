from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sldcore.modular.layout import Layout, packed_shape


def ids(frames: int, height: int, width: int, first: int = 0) -> Tensor:
    """Positions of tokens, row by row, as Flux 2 has them: frame, row, column, and one more."""
    places = torch.cartesian_prod(torch.arange(frames) + first, torch.arange(height), torch.arange(width))
    return torch.cat([places, torch.zeros(len(places), 1, dtype=places.dtype)], dim=1)


SHAPES = {
    "sizes of pictures": ({"img_shapes": [[(1, 3, 5)], [(1, 3, 5)]]}, (1, 3, 5)),
    "one size": ({"img_shapes": [(1, 3, 5)]}, (1, 3, 5)),
    "height and width": ({"height": 3, "width": 5}, (1, 3, 5)),
    "a video": ({"num_frames": 2, "height": 3, "width": 5}, (2, 3, 5)),
    "positions": ({"img_ids": ids(1, 3, 5)}, (1, 3, 5)),
    "positions for each picture": ({"img_ids": ids(1, 3, 5).expand(2, -1, -1)}, (1, 3, 5)),
    "positions with those of a picture to follow": (
        {"img_ids": torch.cat([ids(1, 3, 5), ids(1, 4, 4, first=10)])},
        (1, 3, 5),
    ),
    "nothing": ({}, (1, 1, 31)),
    "sizes of something else": ({"height": 32, "width": 32}, (1, 1, 31)),
}


@pytest.mark.parametrize(("arguments", "shape"), SHAPES.values(), ids=SHAPES)
def test_the_shape_of_packed_latents_is_read_from_the_denoisers_arguments(
    arguments: dict[str, object], shape: object
) -> None:
    assert packed_shape(arguments, 31) == shape


class Denoiser(nn.Module):
    def forward(self, hidden_states: Tensor, img_shapes: object = None) -> Tensor:
        return hidden_states


def test_a_map_shows_tokens_where_they_are() -> None:
    layout, denoiser = Layout(), Denoiser()
    handle = layout.watch(denoiser)
    denoiser(torch.zeros(1, 15, 4), img_shapes=[[(1, 3, 5)]])
    handle.remove()
    strength = torch.zeros(2, 20, 4)  # five tokens belong to a picture that the prompt refers to
    strength[1, 7] = torch.tensor([1.0, 2.0, 3.0, 6.0])
    expected = torch.zeros(2, 3, 5)
    expected[1, 1, 2] = 3.0
    assert torch.equal(layout.spatial_map(strength), expected)


@pytest.mark.parametrize("frames", [(), (2,)], ids=["pictures", "videos"])
def test_a_map_of_latents_that_are_not_packed_is_their_mean(frames: tuple[int, ...]) -> None:
    strength = torch.rand(2, 4, *frames, 3, 5)
    expected = strength.mean((1, 2)) if frames else strength.mean(1)
    torch.testing.assert_close(Layout().spatial_map(strength), expected)


def test_the_latents_are_those_of_the_watched_call_until_they_are_forgotten() -> None:
    layout, denoiser = Layout(), Denoiser()
    latents = torch.rand(1, 15, 4)
    handle = layout.watch(denoiser)
    denoiser(hidden_states=latents)
    handle.remove()
    denoiser(torch.zeros(1))
    assert layout.latents is latents
    layout.forget()
    assert layout.latents is None
