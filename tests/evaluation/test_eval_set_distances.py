"""FID and KID of a run: which pictures are compared, against what, and when they are measured anew."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_folders import noise, put, run_in
from PIL import Image

from sldcore.errors import ConfigurationError, ModelError
from sldcore.evaluation.fidelity import frechet_distance, kernel_distance
from sldcore.evaluation.records import SetDistance
from sldcore.evaluation.reporting.summary import summarise
from sldcore.evaluation.run_folder import RunFolder
from sldcore.evaluation.set_distances import measure_sets, references_in


class Means:
    """Features with a closed form: the mean of each channel."""

    version = "1"

    def __init__(self) -> None:
        self.seen = 0

    def features(self, pictures: Iterable[Any]) -> np.ndarray:
        rows = [np.asarray(picture, np.float64).mean((0, 1)) / 255 for picture in pictures]
        self.seen += len(rows)
        return np.stack(rows) if rows else np.zeros((0, 3))


def means(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return Means().features(list(arrays)).astype(np.float32).astype(np.float64)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Five pictures of each method."""
    made = run_in(tmp_path / "run")
    for item in range(5):
        put(made, "off", item, noise(item))
        put(made, "max", item, noise(item + 50, bright=200))
    return made


def only(folder: RunFolder) -> SetDistance:
    (found,) = folder.measures.distances()
    return found


def test_guided_pictures_are_compared_with_the_unguided_ones(folder: RunFolder) -> None:
    measure_sets(folder, Means(), "w")
    found = only(folder)
    a, b = means(noise(i + 50, bright=200) for i in range(5)), means(noise(i) for i in range(5))
    assert (found.method, found.references, found.pictures, found.reference_pictures) == ("max", "off", 5, 5)
    assert found.fid == pytest.approx(frechet_distance(a, b))
    assert (found.kid, found.kid_sd) == pytest.approx(kernel_distance(a, b))


def test_what_is_withheld_leaves_with_its_partner(folder: RunFolder) -> None:
    put(folder, "max", 4, noise(54, bright=200), action="black")
    measure_sets(folder, Means(), "w")
    a, b = means(noise(i + 50, bright=200) for i in range(4)), means(noise(i) for i in range(4))
    assert only(folder).fid == pytest.approx(frechet_distance(a, b))
    assert only(folder).reference_pictures == 4


def test_a_picture_that_cannot_be_read_leaves_with_its_partner_and_is_counted(folder: RunFolder) -> None:
    broken = next(s for s in folder.samples() if (s.method, s.item) == ("off", "2"))
    folder.picture_of(broken).write_bytes(b"broken")
    measure_sets(folder, Means(), "w")
    kept = (0, 1, 3, 4)
    a, b = means(noise(i + 50, bright=200) for i in kept), means(noise(i) for i in kept)
    assert only(folder).fid == pytest.approx(frechet_distance(a, b))
    assert (only(folder).pictures, only(folder).unreadable) == (4, 2)
    assert any("could not be read for FID" in each for each in summarise(folder.evaluation()).warnings)
    put(folder, "off", 2, noise(2))
    measure_sets(folder, Means(), "w")
    assert only(folder).pictures == 4
    measure_sets(folder, Means(), "w", retry_errors=True)
    assert only(folder).pictures == 5


def test_a_folder_of_references_is_for_every_method(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "coco" / "below").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(noise(number + 90, 12)).save(tmp_path / "coco" / "below" / f"{number}.png")
    (tmp_path / "coco" / "notes.txt").write_text("no picture")
    references = references_in(tmp_path / "coco")
    measure_sets(folder, Means(), "w", references)
    found = {each.method: each for each in folder.measures.distances()}
    theirs = means(noise(number + 90, 12) for number in range(3))
    assert references.label.startswith("coco (")
    assert found["off"].fid == pytest.approx(frechet_distance(means(noise(i) for i in range(5)), theirs))
    assert (found["max"].pictures, found["max"].reference_pictures) == (5, 3)


def test_other_reference_pictures_have_another_label(tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(noise(number)).save(tmp_path / f"{number}.png")
    before = references_in(tmp_path).label
    Image.fromarray(noise(9)).save(tmp_path / "1.png")
    assert references_in(tmp_path).label != before


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds 0 reference pictures"):
        references_in(tmp_path)


def test_sets_that_are_as_they_were_are_left_alone(folder: RunFolder) -> None:
    measure_sets(folder, Means(), "w")
    again = Means()
    measure_sets(folder, again, "w")
    assert again.seen == 0


def test_a_set_that_has_grown_is_told_and_measured_anew(folder: RunFolder) -> None:
    measure_sets(folder, Means(), "w")
    put(folder, "off", 5, noise(5))
    put(folder, "max", 5, noise(55))
    summary = summarise(folder.evaluation())
    assert summary.conduct["small", "max"].networks.distances == ()
    assert any("are of other pictures than there are now" in each for each in summary.warnings)
    measure_sets(folder, Means(), "w")
    summary = summarise(folder.evaluation())
    assert [each.pictures for each in summary.conduct["small", "max"].networks.distances] == [6]
    assert not any("FID" in each for each in summary.warnings)


def test_one_picture_has_no_distance(tmp_path: Path) -> None:
    folder = run_in(tmp_path / "run")
    for method in ("off", "max"):
        put(folder, method, 0, noise(0))
    measure_sets(folder, Means(), "w")
    assert (only(folder).pictures, only(folder).fid, only(folder).kid) == (1, None, None)


def test_figures_of_other_weights_do_not_mix(folder: RunFolder) -> None:
    measure_sets(folder, Means(), "w")
    with pytest.raises(ConfigurationError, match="another version of fid"):
        measure_sets(folder, Means(), "v")


def test_a_network_that_fails_is_one_message(folder: RunFolder) -> None:
    class Failing(Means):
        def features(self, pictures: Iterable[Any]) -> np.ndarray:
            raise RuntimeError("CUDA out of memory")

    with pytest.raises(ModelError, match="FID's network failed on 5 pictures"):
        measure_sets(folder, Failing(), "w")
    assert folder.measures.distances() == []
