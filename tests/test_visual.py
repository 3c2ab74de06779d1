from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from sldcore.errors import ConfigurationError
from sldcore.types import Trace
from sldcore.visual import comparison_strip, curves, difference, enlarged, heat_overlay, stack

PALETTE = [
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
    (90, 90, 90),
]
SHADE = (251, 241, 220)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> NDArray[np.int16]:
    return np.asarray(image).astype(np.int16)


def chroma(image: Image.Image) -> NDArray[np.int16]:
    """Largest minus smallest channel, [H, W]: 0 where a pixel is grey."""
    return np.asarray(np.ptp(pixels(image), axis=2))


def trace(concepts: int, steps: int = 20, warmup: int = 8) -> Trace:
    shape = (2, concepts, steps)
    evaluated = np.zeros(shape, dtype=bool)
    evaluated[:, :, warmup:] = True
    values = np.where(evaluated, 1.0 + np.arange(concepts)[:, None], np.nan).astype(np.float32)
    names = tuple(f"pack/concept-{k}" for k in range(concepts))
    heat = np.ones((2, 8, 8), dtype=np.float32)
    return Trace(
        concepts=names,
        timesteps=tuple(float(steps - step) for step in range(steps)),
        evaluated=evaluated,
        applied=evaluated.copy(),
        active=(values / 10).astype(np.float32),
        norm=values,
        relevance=(values / 10).astype(np.float32),
        heat=heat,
        plain_rows=2 * 2 * steps,
    )


def columns_with(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 0) -> NDArray[np.intp]:
    close = (np.abs(pixels(image) - np.array(colour)) <= tolerance).all(axis=2)
    return np.flatnonzero(close.any(axis=0))


def test_zero_heat_leaves_the_picture_without_colour() -> None:
    assert chroma(heat_overlay(noise(64, 64), np.zeros((8, 8), dtype=np.float32))).max() == 0


def test_heat_colours_the_place_where_it_acted_and_only_that() -> None:
    heat = np.zeros((4, 8), dtype=np.float32)
    heat[3, 6] = 2.0
    colour = chroma(heat_overlay(Image.new("RGB", (160, 80), "gray"), heat))
    y, x = np.unravel_index(int(colour.argmax()), colour.shape)
    assert 60 <= y < 80
    assert 120 <= x < 140
    assert colour[:30].max() == 0  # bicubic reaches two cells of 20 pixels
    assert colour[:, :80].max() == 0


def test_overlay_has_the_size_of_the_picture() -> None:
    assert heat_overlay(noise(72, 40), np.ones((5, 9), dtype=np.float32)).size == (72, 40)


def test_a_scale_makes_the_same_heat_look_the_same_beside_any_other() -> None:
    image = Image.new("RGB", (64, 64), "gray")
    alone = np.zeros((8, 8), dtype=np.float32)
    alone[1, 1] = 1.0
    beside = alone.copy()
    beside[6, 6] = 5.0
    corners = [pixels(heat_overlay(image, heat, scale=5.0))[:24, :24] for heat in (alone, beside)]
    assert (corners[0] == corners[1]).all()
    assert chroma(heat_overlay(image, alone, scale=5.0)).max() < chroma(heat_overlay(image, alone)).max()


def test_heat_that_is_not_a_number_counts_as_zero() -> None:
    heat = np.full((8, 8), np.nan, dtype=np.float32)
    assert chroma(heat_overlay(noise(64, 64), heat)).max() == 0


@pytest.mark.parametrize("shape", [(2, 8, 8), (64,), (0, 8)])
def test_heat_that_is_no_map_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"trace\.heat\[i\]"):
        heat_overlay(noise(64, 64), np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(ConfigurationError, match="scale"):
        heat_overlay(noise(8, 8), np.ones((1, 1), dtype=np.float32), scale=scale)


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.uint8, (6, 5, 3), elements=st.integers(0, 255)),
    arrays(np.uint8, (6, 5, 3), elements=st.integers(0, 255)),
)
def test_difference_is_the_absolute_difference_times_the_stated_factor(
    first: NDArray[np.uint8], second: NDArray[np.uint8]
) -> None:
    result = difference(Image.fromarray(first), Image.fromarray(second))
    delta = np.abs(first.astype(int) - second.astype(int))
    assert (pixels(result) == np.minimum(delta * result.info["amplification"], 255)).all()


@pytest.mark.parametrize(("step", "gain"), [(0, 1), (1, 16), (7, 16), (20, 8), (60, 4), (100, 2), (200, 1)])
def test_small_differences_are_amplified_as_far_as_they_fit(step: int, gain: int) -> None:
    a, b = Image.new("RGB", (8, 8), (0, 0, 0)), Image.new("RGB", (8, 8), (step, step, step))
    assert difference(a, b).info["amplification"] == gain


def test_pictures_of_two_sizes_have_no_difference() -> None:
    with pytest.raises(ConfigurationError, match="resize"):
        difference(noise(8, 8), noise(16, 16))


@pytest.mark.parametrize(("side", "factor"), [(64, 4), (100, 3), (256, 1), (300, 1)])
def test_small_pictures_are_enlarged_by_a_whole_factor(side: int, factor: int) -> None:
    image = noise(side, side)
    repeated = pixels(image).repeat(factor, axis=0).repeat(factor, axis=1)
    assert np.array_equal(pixels(enlarged(image)), repeated)


def test_a_strip_shows_every_panel_pixel_by_pixel_from_left_to_right() -> None:
    images = [noise(64, 64, seed) for seed in range(4)]
    strip = comparison_strip([(f"panel {n}", image) for n, image in enumerate(images)], "title")
    assert strip.width == 4 * 256 + 5 * 12
    for number, image in enumerate(images):
        left = 12 + number * (256 + 12)
        panel = strip.crop((left, strip.height - 12 - 256, left + 256, strip.height - 12))
        assert np.array_equal(pixels(panel), pixels(enlarged(image)))


def test_a_strip_labels_every_panel_and_has_a_title() -> None:
    blank = Image.new("RGB", (256, 256), "white")
    labelled = comparison_strip([("first", blank), ("second", blank)], "title")
    dark = pixels(labelled).min(axis=2) < 128
    label_band, title_band = dark[-12 - 256 - 26 : -12 - 256], dark[: -12 - 256 - 26]
    assert label_band[:, 12:268].any()
    assert label_band[:, 280:536].any()
    assert title_band.any()


def test_text_too_long_for_a_strip_stays_inside_it() -> None:
    blank = Image.new("RGB", (256, 256), "white")
    strip = comparison_strip([("label " * 40, blank), ("x" * 200, blank)], "word " * 200 + "y" * 400)
    dark = pixels(strip).min(axis=2) < 200
    assert not dark[:, -12:].any()
    assert not dark[:, 268:280][dark.shape[0] - 300 :].any()  # between the panels, label band included


def test_characters_outside_the_font_become_question_marks() -> None:
    blank = Image.new("RGB", (64, 64))
    exotic = comparison_strip([("a × b – \u00e9", blank)], "\u72ac \U0001f600")  # noqa: RUF001
    assert np.array_equal(pixels(exotic), pixels(comparison_strip([("a x b - e", blank)], "? ?")))


def test_a_strip_without_panels_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="panel"):
        comparison_strip([], "title")


def test_a_stack_holds_its_strips_in_order_and_full_width() -> None:
    first, second = noise(30, 10, 1), noise(20, 15, 2)
    sheet = stack([first, second])
    assert sheet.size == (30, 25)
    assert np.array_equal(pixels(sheet)[:10], pixels(first))
    assert np.array_equal(pixels(sheet)[10:, :20], pixels(second))


def test_a_stack_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="strip"):
        stack([])


@pytest.mark.parametrize("concepts", [1, 2, 7])
def test_curves_draw_one_line_per_concept(concepts: int) -> None:
    drawn = [len(columns_with(curves(trace(concepts), 0), colour)) > 100 for colour in PALETTE]
    assert drawn == [number < concepts for number in range(7)]


def test_curves_shade_the_steps_at_which_the_term_was_applied() -> None:
    steps, warmup = 20, 8
    picture = curves(trace(1, steps, warmup), 0)
    shaded = columns_with(picture.crop((0, 60, 760, picture.height)), SHADE)
    axis = columns_with(picture, (0, 0, 0), 40)
    plot = picture.width - axis.min()
    assert shaded.min() == pytest.approx(axis.min() + plot * 0.8 * warmup / steps, abs=60)
    assert (np.diff(shaded) == 1).all()


def test_curves_leave_gaps_where_nothing_was_evaluated() -> None:
    whole, gap = trace(1), trace(1)
    for values in (gap.norm, gap.relevance):
        values[:, :, 12:15] = np.nan
    ink = [len(columns_with(curves(each, 0), PALETTE[0])) for each in (whole, gap)]
    assert ink[1] < ink[0] - 50


def test_curves_show_a_single_evaluated_step() -> None:
    single = trace(1, warmup=20)
    single.evaluated[0, 0, 5] = True
    single.norm[0, 0, 5] = single.relevance[0, 0, 5] = 0.5
    picture = curves(single, 0)
    assert len(columns_with(picture.crop((0, 0, 740, picture.height)), PALETTE[0], 60)) >= 3


@pytest.mark.parametrize("steps", [0, 20])
def test_curves_without_concepts_say_so(steps: int) -> None:
    picture = curves(trace(0, steps), 0)
    middle = pixels(picture)[90:150, 300:700].min(axis=2)
    assert (middle < 140).sum() > 200
    assert not any(len(columns_with(picture, colour)) for colour in PALETTE[:6])


def words(picture: Image.Image, panel: int) -> bool:
    """Whether text stands in the middle of the upper (0) or the lower (1) panel."""
    top = 90 + 240 * panel
    return bool((pixels(picture)[top : top + 90, 250:500].min(axis=2) < 140).sum() > 150)


def test_curves_of_a_picture_that_was_only_probed_show_relevance_and_say_that_there_is_no_term() -> None:
    probed = trace(3, warmup=20)
    probed.applied[:] = False
    probed.evaluated[0, :, 7] = True
    probed.norm[0, :, 7] = 0
    probed.relevance[0, :, 7] = (-0.5, 0.1, 0.5)
    picture = curves(probed, 0)
    upper = picture.crop((0, 0, 740, 240))
    lower = picture.crop((0, 240, 740, picture.height))
    assert words(picture, 0)
    assert not any(len(columns_with(upper, colour, 10)) for colour in PALETTE[:3])
    assert all(len(columns_with(lower, colour, 60)) >= 3 for colour in PALETTE[:3])
    assert len(columns_with(picture, SHADE)) == 0


def test_curves_of_a_method_without_concept_rows_shade_where_it_acted_and_say_so() -> None:
    swapped = trace(1, warmup=20)
    swapped.applied[0, 0, :10] = True
    picture = curves(swapped, 0)
    shaded = columns_with(picture, SHADE)
    assert 0.4 * picture.width < len(shaded) < 0.6 * picture.width
    assert words(picture, 0)
    assert words(picture, 1)


def test_curves_without_a_relevance_draw_the_norm_alone() -> None:
    odd = trace(1)
    odd.relevance[:] = np.nan
    picture = curves(odd, 0)
    assert len(columns_with(picture.crop((0, 0, 740, 240)), PALETTE[0])) > 100
    assert len(columns_with(picture.crop((0, 260, 740, picture.height)), PALETTE[0])) == 0


def test_curves_draw_no_norm_for_a_concept_whose_term_is_always_zero() -> None:
    looked_at = trace(2)
    looked_at.norm[:, 1] = 0
    picture = curves(looked_at, 0)
    assert len(columns_with(picture.crop((0, 0, 740, 240)), PALETTE[0])) > 100
    assert len(columns_with(picture.crop((0, 0, 740, 240)), PALETTE[1])) == 0
    assert len(columns_with(picture.crop((0, 260, 740, picture.height)), PALETTE[1])) > 100


def test_curves_leave_out_concepts_of_other_samples() -> None:
    mixed = trace(2)
    mixed.evaluated[0, 1] = False
    assert len(columns_with(curves(mixed, 0), PALETTE[1])) == 0
    assert len(columns_with(curves(mixed, 1), PALETTE[1])) > 100


def test_curves_of_a_sample_that_does_not_exist_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no sample 2"):
        curves(trace(1), 2)


def test_matplotlib_is_loaded_by_curves_only_and_pyplot_never() -> None:
    code = (
        "import sys, sldcore.visual as visual, numpy as np; from sldcore.types import Trace;"
        "assert 'matplotlib' not in sys.modules; none = np.zeros((1, 0, 1));"
        "visual.curves(Trace((), (1.0,), none > 0, none > 0, none, none, none, np.zeros((1, 1, 1)), 2), 0);"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
