"""What is shown in place of a flagged picture: nothing of what was covered can be had back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sldcore.errors import PolicyError
from sldcore.filters.actions import BLOCKS, apply, check, strictest
from sldcore.policy import Action
from sldcore.types import Box

sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))
edges = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def shown(action: Action, picture: Image.Image, boxes: tuple[Box, ...] = ()) -> Image.Image:
    result = apply(action, picture, boxes, "flagged by test")
    assert result is not None
    assert (result.size, result.mode) == (picture.size, "RGB")
    return result


@given(size=sizes, do=st.sampled_from(["blur", "pixelate"]), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_covered_pictures_depend_on_few_coarse_blocks_only(size: tuple[int, int], do: str, seed: int) -> None:
    """Two pictures with the same block means, one of them rearranged inside its blocks, cannot be told apart."""
    picture = noise(size, seed)
    result = shown(Action(do=do), picture)  # type: ignore[arg-type]
    small = picture.resize(
        tuple(max(1, int(side * min(1, BLOCKS / max(size)))) for side in size),  # type: ignore[arg-type]
        Image.Resampling.BOX,
    )
    levels = small.point(lambda value: value // 8 * 8 + 4)
    resampling = Image.Resampling.BICUBIC if do == "blur" else Image.Resampling.NEAREST
    assert result.tobytes() == levels.resize(size, resampling).tobytes()
    assert max(small.size) <= BLOCKS


@given(horizontal=edges, vertical=edges)
@settings(max_examples=60)
def test_boxes_are_covered_and_the_rest_is_left(horizontal: list[float], vertical: list[float]) -> None:
    picture = noise((60, 40))
    box = Box("x", 0.9, horizontal[0], vertical[0], horizontal[1], vertical[1])
    before = np.asarray(picture)
    after = np.asarray(shown(Action(do="pixelate", area="boxes"), picture, (box,)))
    changed = (before != after).any(2)
    inside = np.zeros_like(changed)
    inside[
        int(np.floor(box.top * 40)) : max(int(np.ceil(box.bottom * 40)), 1),
        int(np.floor(box.left * 60)) : max(int(np.ceil(box.right * 60)), 1),
    ] = True
    margin_y, margin_x = 0.1 * (box.bottom - box.top) * 40 + 1, 0.1 * (box.right - box.left) * 60 + 1
    rows, columns = np.nonzero(changed)
    assert all(row >= box.top * 40 - margin_y - 1 and row <= box.bottom * 40 + margin_y for row in rows)
    assert all(
        column >= box.left * 60 - margin_x - 1 and column <= box.right * 60 + margin_x for column in columns
    )
    assert changed[inside].mean() > 0.9 if inside.sum() > 200 else True


def test_without_boxes_the_whole_picture_is_covered() -> None:
    picture = noise((60, 40))
    assert (
        shown(Action(do="blur", area="boxes"), picture).tobytes()
        == shown(Action(do="blur"), picture).tobytes()
    )


def test_black_is_black_and_a_dropped_picture_is_none() -> None:
    picture = noise((20, 30))
    assert not np.asarray(shown(Action(do="black"), picture)).any()
    assert apply(Action(do="drop"), picture, (), "") is None


def test_flag_shows_the_picture() -> None:
    picture = noise((20, 30))
    assert shown(Action(do="flag"), picture) is picture


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (512, 300)])
def test_a_card_shows_nothing_of_the_picture(size: tuple[int, int]) -> None:
    one, other = shown(Action(do="replace"), noise(size, 1)), shown(Action(do="replace"), noise(size, 2))
    assert one.tobytes() == other.tobytes()


def test_a_given_picture_is_shown_in_the_size_that_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "instead.png"
    Image.new("RGBA", (10, 10), (10, 200, 30, 255)).save(file)
    result = shown(Action(do="replace", picture=str(file)), noise((33, 21)))
    assert np.asarray(result).reshape(-1, 3).tolist() == [[10, 200, 30]] * (33 * 21)


def test_a_picture_to_show_instead_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="on_flag: replace: cannot read the picture"):
        check(Action(do="replace", picture=str(tmp_path / "gone.png")))


def test_the_strictest_action_wins() -> None:
    actions = [Action(do=do) for do in ("flag", "blur", "black", "replace")]  # type: ignore[arg-type]
    winner = strictest(actions)
    assert winner is not None and winner.do == "black"
    assert strictest([]) is None
