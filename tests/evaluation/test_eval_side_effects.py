"""How far pictures move: bit-identity and root mean squared difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sldcore.errors import ConfigurationError
from sldcore.evaluation.metrics import share
from sldcore.evaluation.side_effects import bit_identical, rmse


def noise(seed: int, size: tuple[int, int] = (6, 4)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def test_one_different_bit_is_not_bit_identical() -> None:
    changed = noise(0)
    changed[1, 2, 0] ^= 1
    assert bit_identical([noise(0), changed], [noise(0), noise(0)]).tolist() == [True, False]


def test_hashes_stand_for_pictures() -> None:
    same = bit_identical(["aa", "bb", "cc"], ["aa", "b", "cc"])
    assert share(same, "xyz").value == pytest.approx(2 / 3)


def test_a_hash_never_equals_a_picture() -> None:
    assert not bit_identical(["aa"], [noise(0)])[0]


def test_pictures_of_other_sizes_are_not_identical() -> None:
    assert not bit_identical([np.zeros((4, 6, 3), np.uint8)], [np.zeros((6, 4, 3), np.uint8)])[0]


def test_rmse_by_hand() -> None:
    black, changed = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    changed[0, 0] = (255, 0, 51)
    assert rmse([changed], [black])[0] == pytest.approx(math.sqrt((1 + 0.2**2) / 12))


def test_black_and_white_are_one_apart_and_equal_pictures_nothing() -> None:
    black, white = np.zeros((3, 3, 3), np.uint8), np.full((3, 3, 3), 255, np.uint8)
    assert rmse([white, black, noise(1)], [black, white, noise(1)]).tolist() == [1.0, 1.0, 0.0]


@given(st.integers(0, 99), st.integers(0, 99))
def test_rmse_is_symmetric(a: int, b: int) -> None:
    assert rmse([noise(a)], [noise(b)])[0] == rmse([noise(b)], [noise(a)])[0]


def test_pillow_images_and_one_array_of_all_are_taken_too() -> None:
    arrays = np.stack([noise(0), noise(1)])
    images = [Image.fromarray(one) for one in arrays]
    assert rmse(images, arrays[::-1]).tolist() == rmse(arrays, arrays[::-1]).tolist()


def test_no_pictures_give_no_distances() -> None:
    assert rmse([], []).shape == (0,)


def test_pictures_that_differ_in_size_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="6 x 4 and 5 x 4"):
        rmse([noise(0)], [noise(0, (5, 4))])


def test_unequal_numbers_of_pictures_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="1 pictures, 2 references"):
        rmse([noise(0)], [noise(0), noise(1)])


@pytest.mark.parametrize(
    "odd", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)]
)
def test_what_is_no_rgb_picture_is_refused(odd: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match="uint8"):
        rmse([odd], [odd])
