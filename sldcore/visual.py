"""Pictures for people: where guidance acted, what it changed, and when.

Everything takes and returns RGB pictures. Labels use the font that Pillow ships, so a machine needs none of its own;
matplotlib is loaded by ``curves`` only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sldcore.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from sldcore.types import Trace

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SMALLEST_PANEL: Final = 256
"""Pictures whose longer side is shorter than this are enlarged in a strip, in pixels."""

LARGEST_GAIN: Final = 16
"""The most that ``difference`` amplifies."""

# Plasma (matplotlib, CC0) at sevenths: lightness rises evenly, and every level is coloured.
_PLASMA: Final = np.array(
    [[84, 2, 163], [125, 3, 168], [161, 26, 156], [190, 55, 134], [214, 86, 109], [235, 120, 83], [252, 166, 54],
     [240, 249, 33]]
)  # fmt: skip
_OPAQUE: Final = 0.85
_PAPER: Final = (255, 255, 255)
_INK: Final = (24, 24, 27)
_FAINT_INK: Final = (90, 90, 98)
_GAP: Final = 12
_TITLE_LINES: Final = 3
_PLAIN: Final = str.maketrans("×–—‘’“”", "x--''\"\"")  # noqa: RUF001

# Okabe and Ito's palette without yellow and black: told apart by colour-blind readers, and visible on white.
LINES: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5A5A5A")
DASHES: Final = ("-", "--", ":")


def heat_overlay(image: Image.Image, heat: NDArray[np.floating], scale: float | None = None) -> Image.Image:
    """The picture in grey, with colour where the safety term acted: violet is weak, yellow is strong.

    A small picture gets a smoother overlay after ``enlarged``.

    Args:
        image: The picture.
        heat: Summed safety term in latent resolution, [H, W], as in ``Trace.heat[i]``; NaN counts as zero.
        scale: The heat that is shown at full strength; give one to compare pictures. By default the map's maximum.

    Returns:
        A picture of the same size. Where heat is zero it has no colour.

    Raises:
        ConfigurationError: if ``heat`` is not [H, W] or ``scale`` is not a positive number.
    """
    if heat.ndim != 2 or heat.size == 0:
        raise ConfigurationError(f"heat must be a map [H, W], got shape {heat.shape}; pass trace.heat[i]")
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise ConfigurationError(
            f"scale must be a positive number, got {scale}; leave it out for the maximum"
        )
    clean = np.clip(np.nan_to_num(heat, nan=0.0, posinf=0.0, neginf=0.0), 0, None).astype(np.float32)
    full = scale if scale is not None else float(clean.max())
    strength = np.minimum(clean / full, 1) if full > 0 else clean
    enlarged = Image.fromarray(strength).resize(image.size, Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(enlarged), 0, 1)[..., None]  # [H, W, 1]; bicubic overshoots
    grey = 40 + 0.8 * np.asarray(image.convert("L"), dtype=np.float32)[..., None]  # lighter than weak heat
    alpha = _OPAQUE * level
    return _picture(grey * (1 - alpha) + _colours(level[..., 0]) * alpha)


def difference(a: Image.Image, b: Image.Image) -> Image.Image:
    """Absolute difference of two pictures, black where they are equal.

    Small differences are amplified by a power of two, at most ``LARGEST_GAIN``, such that 99 % of the values stay
    below white. The factor stands in ``info["amplification"]`` of the result, for the label.

    Raises:
        ConfigurationError: if the pictures differ in size.
    """
    if a.size != b.size:
        raise ConfigurationError(
            f"cannot subtract pictures of {a.size} and {b.size} pixels; resize one first"
        )
    first, second = (np.asarray(picture.convert("RGB"), dtype=np.int16) for picture in (a, b))
    delta = np.abs(first - second)
    peak = float(np.percentile(delta, 99)) or float(delta.max())
    gain = 1
    while peak > 0 and gain < LARGEST_GAIN and peak * gain * 2 <= 255:
        gain *= 2
    result = _picture(np.minimum(delta * gain, 255))
    result.info["amplification"] = gain
    return result


def comparison_strip(panels: Sequence[tuple[str, Image.Image]], title: str) -> Image.Image:
    """Labelled pictures side by side under a title.

    Small pictures are enlarged by a whole factor without smoothing, so that every pixel stays what it was.

    Raises:
        ConfigurationError: if there are no panels.
    """
    if not panels:
        raise ConfigurationError("a strip needs at least one panel; got none")
    pictures = [enlarged(picture) for _, picture in panels]
    widths = [max(picture.width, SMALLEST_PANEL) for picture in pictures]
    inner = sum(widths) + _GAP * (len(panels) - 1)
    base = max(15, min(picture.height for picture in pictures) // 17)
    heading, heading_font = _wrapped(title, base + 3, inner)
    labels = [_fitted(label, base, width) for (label, _), width in zip(panels, widths, strict=True)]
    heading_height = len(heading) * (base + 8)
    top = _GAP + heading_height + (_GAP // 2 if heading else 0)
    below = top + base + 10
    sheet = Image.new("RGB", (inner + 2 * _GAP, below + max(p.height for p in pictures) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading):
        draw.text((_GAP, _GAP + number * (base + 8)), line, fill=_INK, font=heading_font)
    left = _GAP
    for (label, font), picture, width in zip(labels, pictures, widths, strict=True):
        draw.text((left, top), label, fill=_FAINT_INK, font=font)
        sheet.paste(picture, (left + (width - picture.width) // 2, below))
        left += width + _GAP
    return sheet


def enlarged(picture: Image.Image) -> Image.Image:
    """A small picture, repeated pixel by pixel until it is at least ``SMALLEST_PANEL`` long; others as they are."""
    factor = -(-SMALLEST_PANEL // max(picture.size))
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)


def stack(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips below each other, as wide as the widest.

    Raises:
        ConfigurationError: if there are none.
    """
    if not strips:
        raise ConfigurationError("a stack needs at least one strip; got none")
    size = (max(strip.width for strip in strips), sum(strip.height for strip in strips))
    sheet = Image.new("RGB", size, _PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip.convert("RGB"), (0, top))
        top += strip.height
    return sheet


def curves(trace: Trace, sample: int) -> Image.Image:
    """Over the steps of one sample: the norm of each concept's safety term, and each concept's relevance.

    Steps at which guidance acted are shaded. Concepts that were never evaluated for the sample are left out, and among the norms
    those whose term is zero throughout, such as concepts that a gate only looked at.

    Raises:
        ConfigurationError: if the trace has no such sample.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not 0 <= sample < len(trace.evaluated):
        raise ConfigurationError(
            f"no sample {sample} in a trace of {len(trace.evaluated)}; counting starts at 0"
        )
    figure = Figure(figsize=(9.6, 5.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    norms, relevances = figure.subplots(2, 1, sharex=True)
    _dress(norms, "norm of the safety term", len(trace.timesteps))
    _dress(relevances, "relevance (cosine)", len(trace.timesteps))
    relevances.set_xlabel("step (denoiser call)")
    relevances.set_ylim(-1.05, 1.05)
    relevances.axhline(0, color="#b0b0b8", linewidth=0.8, zorder=0.5)
    for axes in (norms, relevances):
        _shade(axes, trace.applied[sample].any(axis=0))
    _draw_concepts(norms, relevances, trace, sample)
    norms.set_ylim(bottom=0)
    if trace.evaluated[sample].any():
        figure.legend(*relevances.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    canvas.draw()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]


def _draw_concepts(norms: Axes, relevances: Axes, trace: Trace, sample: int) -> None:
    """The concepts' lines, or words where there are none."""
    shown = [k for k in range(len(trace.concepts)) if trace.evaluated[sample, k].any()]
    lines = [(trace.concepts[k], trace.norm[sample, k], trace.relevance[sample, k]) for k in shown]
    strong = False
    for number, (label, norm, relevance) in enumerate(lines):
        _draw_line(relevances, number, label, relevance)
        if np.nan_to_num(norm).any():
            strong = True
            _draw_line(norms, number, label, norm)
    if lines and not strong:
        _say_instead("no safety term for this picture", norms)
    elif not lines and trace.applied[sample].any():
        _say_instead("guided where shaded, without concept rows", norms, relevances)
    elif not lines:
        _say_instead("no safety concept was evaluated for this picture", norms, relevances)


def _dress(axes: Axes, label: str, steps: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_ylabel(label)
    axes.set_xlim(-0.5, max(steps, 1) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#e6e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_line(axes: Axes, number: int, label: str, values: NDArray[np.floating]) -> None:
    """A line in the colour and the dashes of its number."""
    axes.plot(
        values,
        color=LINES[number % len(LINES)],
        linestyle=DASHES[number // len(LINES) % len(DASHES)],
        marker="o",  # a single step between two gaps has no line
        markersize=3,
        linewidth=1.6,
        label=label,
    )


def _shade(axes: Axes, applied: NDArray[np.bool_]) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], applied, [False])).astype(np.int8)))
    for number, (start, stop) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        label = "safety term applied" if number == 0 else None
        axes.axvspan(start - 0.5, stop - 0.5, color="#fbf1dc", linewidth=0, zorder=0, label=label)


def _say_instead(text: str, *panels: Axes) -> None:
    """Put ``text`` where there is nothing to draw."""
    for axes in panels:
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        axes.text(
            0.5, 0.5, text, transform=axes.transAxes,
            ha="center", va="center", color="#5a5a62", bbox={"facecolor": "white", "linewidth": 0},
        )  # fmt: skip


def _colours(level: NDArray[np.float32]) -> NDArray[np.float64]:
    """Plasma's colour for each level in [0, 1]: [H, W] to [H, W, 3], 0..255."""
    at = np.linspace(0, 1, len(_PLASMA))
    return np.stack([np.interp(level, at, _PLASMA[:, channel]) for channel in range(3)], axis=-1)


def _picture(values: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _drawable(text: str) -> str:
    """The text in characters that Pillow's font has: accents are dropped, what is left over becomes ``?``."""
    plain = unicodedata.normalize("NFKD", " ".join(text.split()).translate(_PLAIN))
    kept = "".join(char for char in plain if not unicodedata.combining(char))
    return "".join(char if char.isascii() or char == "·" else "?" for char in kept)


def _fitted(text: str, size: int, width: int) -> tuple[str, Font]:
    """One line that fits: in a smaller font first, then shortened."""
    line = _drawable(text)
    for smaller in range(size, 11, -1):
        if _font(smaller).getlength(line) <= width:
            return line, _font(smaller)
    return _shortened(line, _font(12), width), _font(12)


def _shortened(line: str, font: Font, width: int) -> str:
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip() + "..."


def _wrapped(text: str, size: int, width: int) -> tuple[list[str], Font]:
    """At most ``_TITLE_LINES`` lines of words that fit the width; the last one is shortened if there is more."""
    font = _font(size)
    lines: list[str] = []
    for word in _drawable(text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    kept = lines[:_TITLE_LINES]
    if len(lines) > _TITLE_LINES:
        kept[-1] = _shortened(kept[-1], font, width)
    return [line if font.getlength(line) <= width else _shortened(line, font, width) for line in kept], font
