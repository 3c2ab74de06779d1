"""Detectors on the real playground classifier, the real Q16 class with random weights, NudeNet, and filters that misbehave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sldcore.builtin import entries
from sldcore.catalogue import Catalogue, Entry, Provider, using
from sldcore.contributions import PostFilterKind
from sldcore.documents import Strict
from sldcore.errors import ConfigurationError, ModelError
from sldcore.evaluation.detectors import CONVENTIONS, Detector, detector_named, detector_names
from sldcore.filters.base import PictureContext
from sldcore.playground.world import Scene, picture
from sldcore.types import Verdict

CLEAN, KNIGHT = (
    picture(Scene("meadow", "knight", "red")),
    picture(Scene("meadow", "knight", "red", ("sword",))),
)
RED, GREEN, BLUE = (Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue"))


class Options(Strict):
    limit: float = 0.5
    model: str = "here"


class Redness:
    """Flags red pictures; on blue ones it does what its name says."""

    def __init__(self, name: str, on_blue: str, options: Options) -> None:
        self.name, self.version, self._on_blue, self._limit = name, "3", on_blue, options.limit

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        return [self._verdict(each) for each in pictures]

    def _verdict(self, each: Image.Image) -> Verdict:
        red, _, blue = np.asarray(each)[0, 0] / 255
        if blue == 1:
            if self._on_blue == "raise":
                raise RuntimeError("no blue today")
            red = {"nan": float("nan"), "two": 2.0}.get(self._on_blue, red)
        return Verdict(
            self.name, "3", bool(red >= self._limit), {"red": float(red)}, {"red": self._limit}, weights="w0"
        )


def kind(name: str, on_blue: str = "fine") -> PostFilterKind:
    return PostFilterKind(name=name, options=Options, create=lambda options: Redness(name, on_blue, options))


@pytest.fixture(autouse=True)
def catalogue() -> Iterator[None]:
    kinds = [kind("redness"), *(kind(f"blue-{what}", what) for what in ("raise", "nan", "two"))]
    extra = [Entry(each, Provider("test", "test", "1")) for each in kinds]
    with using(Catalogue([*entries(), *extra])):
        yield


def flags(detector: Detector, *pictures: Image.Image) -> list[bool | None]:
    return [reading.flagged for reading in detector.score(pictures)]


class TestConventions:
    def test_the_named_ones_are_there_and_filters_can_be_named_too(self) -> None:
        names = detector_names()
        assert names[:6] == (
            "q16", "nudenet/i2p", "nudenet/unlearndiff", "nudenet/mace", "q16-or-nudenet", "playground",
        )  # fmt: skip
        assert "redness" in names and len(set(names)) == len(names)

    def test_the_playground_sees_a_glyph_and_says_with_which_weights(self) -> None:
        detector = detector_named("playground")
        clean, knight = detector.score([CLEAN, KNIGHT])
        assert (clean.flagged, knight.flagged) == (False, True)
        assert max(knight.scores, key=knight.scores.__getitem__) == "violence"
        assert len(detector.weights) == 16 and knight.weights == detector.weights
        assert detector.conventions == ("playground-glyphs(threshold=0.5)",)

    def test_what_a_convention_fixes_cannot_be_changed_under_its_name(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"fixes 'threshold' to 0.5.*playground-glyphs:threshold=0.9"
        ):
            detector_named("playground:threshold=0.9")

    def test_what_a_convention_needs_is_asked_for_by_name(self) -> None:
        with pytest.raises(ConfigurationError, match=r"write 'q16:model=\.\.\.:prompts=\.\.\.'"):
            detector_named("q16")

    def test_an_unknown_name_suggests_the_nearest(self) -> None:
        with pytest.raises(ConfigurationError, match="did you mean 'playground'"):
            detector_named("playgroun")

    def test_a_missing_plugin_is_named(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"detector 'nudenet/i2p' cannot be had: no filter is called 'nudenet'"
        ):
            detector_named("nudenet/i2p")


@pytest.fixture(scope="module")
def q16(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A CLIP vision model in miniature with random weights, and random prompts."""
    from safetensors.numpy import save_file
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("q16")
    small: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8, "projection_dim": 16,
    }  # fmt: skip
    CLIPVisionModelWithProjection(CLIPVisionConfig(**small)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    prompts = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    save_file({"prompts": prompts}, folder / "q16.safetensors")
    return {"model": str(folder), "prompts": str(folder / "q16.safetensors"), "device": "cpu"}


class TestQ16AndNudeNet:
    @pytest.fixture
    def nudenet(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        pytest.importorskip("nudenet")
        plugins = Path(__file__).parent.parent.parent / "plugins"
        monkeypatch.syspath_prepend(str(plugins / "sld-filter-nudenet" / "src"))
        import sld_filter_nudenet

        extra = [
            Entry(each, Provider("nudenet", "sld-filter-nudenet", "1"))
            for each in sld_filter_nudenet.sld_post_filters()
        ]
        with using(Catalogue([*entries(), *extra])):
            yield

    def test_q16_is_named_without_the_paths_of_its_parts(self, q16: dict[str, str]) -> None:
        said = "".join(f":{key}={value}" for key, value in q16.items())
        detector = detector_named(f"q16{said}")
        assert detector.name == "q16"
        assert detector.conventions == ("q16(dtype=float32, threshold=0.5)",)
        assert set(detector.score([RED])[0].scores) == {"inappropriate"}

    @pytest.mark.parametrize(
        ("name", "parts", "threshold"),
        [("nudenet/i2p", 5, 0.6), ("nudenet/unlearndiff", 9, 0.75), ("nudenet/mace", 8, 0.6)],
    )
    def test_nudenet_looks_for_the_parts_of_the_convention(
        self, name: str, parts: int, threshold: float, nudenet: None
    ) -> None:
        detector = detector_named(name)
        (reading,) = detector.score([CLEAN])
        assert len(reading.scores) == parts and reading.flagged is False
        assert f"threshold={threshold}" in detector.conventions[0]

    def test_thresholds_are_those_that_the_plugin_has_for_its_conventions(self, nudenet: None) -> None:
        from sld_filter_nudenet.conventions import CONVENTIONS as OF_PLUGIN

        for name, convention in CONVENTIONS.items():
            options = convention.parts.get("nudenet")
            if options is not None:
                assert OF_PLUGIN[options["convention"]].threshold == options["threshold"], name

    def test_the_papers_detector_joins_both(self, q16: dict[str, str], nudenet: None) -> None:
        options = {f"q16.{key}": value for key, value in q16.items()}
        detector = detector_named("q16-or-nudenet", options)
        alone = detector_named("q16", q16)
        pictures = [RED, GREEN, CLEAN]
        assert detector.name == "q16-or-nudenet"
        assert detector.version.startswith("q16 1 + nudenet ")
        assert detector.weights.startswith(f"{alone.weights} + ")
        assert flags(detector, *pictures) == flags(alone, *pictures)  # nothing for NudeNet in these
        assert {name.partition("/")[0] for name in detector.score([RED])[0].scores} == {"q16", "nudenet"}

    def test_an_option_of_a_joint_detector_says_whose_it_is(self, nudenet: None) -> None:
        with pytest.raises(ConfigurationError, match=r"such as q16\.model or nudenet\.model"):
            detector_named("q16-or-nudenet:model=/x")


class TestFilters:
    def test_options_that_decide_are_part_of_the_name_and_places_are_not(self) -> None:
        assert detector_named("redness:limit=0.9:model=C:/there").name == "redness:limit=0.9"
        assert detector_named("redness", {"model": "there"}).name == "redness"
        assert detector_named("redness", {"limit": 0.9}).conventions == ("redness(limit=0.9)",)

    def test_options_decide(self) -> None:
        dark = Image.new("RGB", (8, 6), (180, 0, 0))
        assert flags(detector_named("redness"), dark) == [True]
        assert flags(detector_named("redness:limit=0.9"), dark) == [False]

    @pytest.mark.parametrize("said", ["redness:limit", "redness:limit=1:limit=0", "redness:=1", "redness:"])
    def test_options_that_are_none_are_refused(self, said: str) -> None:
        with pytest.raises(ConfigurationError, match="is not an option"):
            detector_named(said)

    @pytest.mark.parametrize("said", ["redness:limt=1", "redness:limit=much"])
    def test_options_that_the_filter_does_not_take_are_refused(self, said: str) -> None:
        with pytest.raises(ConfigurationError, match="options of filter 'redness'"):
            detector_named(said)

    def test_pictures_of_any_size_and_mode_keep_their_order(self) -> None:
        grey = Image.new("L", (9, 9), 255)
        assert flags(detector_named("redness"), GREEN, grey, RED, Image.new("RGBA", (3, 3), "red")) == [
            False, True, True, True,
        ]  # fmt: skip

    def test_a_filter_sees_the_very_pixels(self) -> None:
        seen = []

        class Looking(Redness):
            def _verdict(self, each: Image.Image) -> Verdict:
                seen.append(np.asarray(each))
                return super()._verdict(each)

        looking = PostFilterKind(name="looking", create=lambda options: Looking("looking", "fine", Options()))
        levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
        with using(Catalogue([Entry(looking, Provider("test", "test", "1")), *entries()])):
            detector_named("looking").score([Image.fromarray(levels)])
        assert np.array_equal(seen[-1], levels)

    def test_no_pictures_no_readings(self) -> None:
        assert detector_named("redness").score([]) == []

    def test_a_reading_becomes_the_score_of_a_sample(self) -> None:
        (reading,) = detector_named("redness").score([RED])
        assert asdict(reading.of("k")) == {
            "key": "k", "detector": "redness", "flagged": True, "scores": {"red": 1.0}, "version": "3",
            "weights": "w0", "error": "",
        }  # fmt: skip


class TestErrors:
    @pytest.mark.parametrize("name", ["blue-raise", "blue-nan", "blue-two"])
    def test_a_failure_is_the_error_of_its_picture_alone_and_never_safe(self, name: str) -> None:
        red, blue, green = detector_named(name).score([RED, BLUE, GREEN])
        assert (red.flagged, blue.flagged, green.flagged) == (True, None, False)
        assert blue.error and not blue.scores and blue.version == "3" and blue.weights == "w0"
        assert not red.error and not green.error

    def test_a_picture_that_cannot_be_decoded_is_an_error(self, tmp_path: Path) -> None:
        path = tmp_path / "cut.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with Image.open(path) as cut:
            broken, red = detector_named("redness").score([cut, RED])
        assert broken.flagged is None and "cannot be decoded" in broken.error
        assert red.flagged is True

    def test_a_part_that_fails_makes_the_whole_an_error_even_if_another_flags(self) -> None:
        parts: Mapping[str, Mapping[str, Any]] = {"redness": {"limit": 0.0}, "blue-raise": {}}
        blue, red = Detector("joint", "", parts).score([BLUE, RED])
        assert blue.flagged is None and "no blue today" in blue.error
        assert red.flagged is True and set(red.scores) == {"redness/red", "blue-raise/red"}

    def test_a_detector_that_never_works_is_refused_before_anything_is_scored(self) -> None:
        class Broken:
            name, version = "broken", "1"

            def review(self, pictures: Any, contexts: Any) -> Any:
                raise RuntimeError("weights of another model")

        broken = PostFilterKind(name="broken", create=lambda options: Broken())
        with (
            using(Catalogue([Entry(broken, Provider("test", "test", "1")), *entries()])),
            pytest.raises(
                ModelError, match="fails on a grey picture: RuntimeError: weights of another model"
            ),
        ):
            detector_named("broken")
