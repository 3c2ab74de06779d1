"""Networks for a run by paths: what is refused before any work, and the CLIP score through run, measure and report."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_folders import noise, put, run_in
from PIL import Image
from tiny_clip import tiny_clip

from sldcore.errors import ConfigurationError
from sldcore.evaluation import Networks, Spread, measure, merge, report, run
from sldcore.evaluation.measuring import Measure
from sldcore.evaluation.networks import Loaded
from sldcore.evaluation.paired import paired_difference
from sldcore.evaluation.perceptual import clip_score
from sldcore.evaluation.run_folder import Evaluation, RunFolder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = run_in(tmp_path / "run")
    for item in range(4):
        put(made, "off", item, noise(item, 40))
        put(made, "max", item, noise(item + 100, 40))
    return made


def scored(evaluation: Evaluation, clip: Path, method: str) -> list[float]:
    mine = [sample for sample in evaluation.samples if sample.method == method]
    pictures = [Image.open(evaluation.folder / sample.file) for sample in mine]
    return [float(x) for x in clip_score(pictures, [sample.prompt for sample in mine], clip, device="cpu")]


def test_clip_score_and_its_change_are_those_of_the_pictures(folder: RunFolder, clip: Path) -> None:
    evaluation = measure(folder.path, Networks(clip=clip, device="cpu"))
    found = report(evaluation, folder.path / "report").summary.conduct["small", "max"].networks
    before, after = scored(evaluation, clip, "off"), scored(evaluation, clip, "max")
    assert found.clip is not None
    assert found.clip_change is not None
    assert found.clip.value == pytest.approx(sum(after) / 4, abs=1e-3)
    expected = paired_difference(after, before, range(4))
    assert (found.clip_change.value, found.clip_change.error) == pytest.approx(
        (expected.value, expected.error), abs=1e-3
    )
    assert abs(expected.value) > 0.1


def test_every_form_of_the_report_has_the_scores_and_the_hash_of_the_weights(
    folder: RunFolder, clip: Path
) -> None:
    evaluation = measure(folder.path, Networks(clip=clip, device="cpu"))
    written = report(evaluation, folder.path / "report")
    (weights,) = {each.weights for each in evaluation.measurements}
    mean = f"{sum(scored(evaluation, clip, 'off')) / 4:.2f} ± "
    for path in (written.markdown, written.html):
        text = path.read_text("utf-8")
        assert "CLIP score" in text
        assert mean in text
        assert f"weights {weights[:12]}" in text
    assert f"{mean.replace('±', '$' + chr(92) + 'pm$')}" in written.latex.read_text("utf-8")
    rows = list(csv.DictReader(io.StringIO(written.csv.read_text("utf-8"))))
    values = {(row["method"], row["item"]): float(row["clip:value"]) for row in rows}
    assert [values["off", str(n)] for n in range(4)] == pytest.approx(
        scored(evaluation, clip, "off"), abs=1e-3
    )


def test_an_unreadable_picture_is_in_no_mean_and_is_warned_of(folder: RunFolder, clip: Path) -> None:
    broken = next(s for s in folder.samples() if (s.method, s.item) == ("max", "2"))
    folder.picture_of(broken).write_bytes(b"")
    evaluation = measure(folder.path, Networks(clip=clip, device="cpu"))
    written = report(evaluation, folder.path / "report")
    found = written.summary.conduct["small", "max"].networks.clip
    assert found is not None
    assert (found.n, found.failed) == (3, 1)
    assert any("clip failed on 1 pictures of max" in each for each in written.summary.warnings)
    rows = csv.DictReader(io.StringIO(written.csv.read_text("utf-8")))
    row = next(row for row in rows if row["key"] == broken.key)
    assert row["clip:value"] == "error"
    assert "cannot be read" in row["clip:error"]


def test_shards_measure_their_parts_and_the_whole_is_complete(folder: RunFolder, clip: Path) -> None:
    networks = Networks(clip=clip, device="cpu")
    first = measure(folder.path, networks, shard="1/2")
    assert len(first.measurements) == 4
    assert any("has not measured" in each for each in report(first, folder.path / "r").summary.warnings)
    whole = measure(folder.path, networks, shard="2/2")
    assert {each.key for each in whole.measurements} == {sample.key for sample in whole.samples}


def test_a_run_measures_what_it_makes(tmp_path: Path, clip: Path) -> None:
    settings: dict[str, Any] = {"limit": 2, "steps": 2, "device": "cpu"}
    plain = run("playground/roles", ["off"], tmp_path / "run", **settings)
    assert plain.measurements == ()
    assert not (tmp_path / "run" / "measures").exists()
    networks = Networks(clip=clip, device="cpu")
    found = run("playground/roles", ["off", "max"], tmp_path / "run", networks=networks, **settings)
    assert {each.key for each in found.measurements} == {sample.key for sample in found.samples}
    assert merge(tmp_path / "whole", [tmp_path / "run"]).evaluation().measurements == found.measurements


def test_the_last_shard_measures_what_waited_for_pictures_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = Measure("lpips", "1", "w", True, lambda pictures, references: [1.0] * len(pictures))
    monkeypatch.setattr(Networks, "load", lambda *_: Loaded((ones,)))
    settings: dict[str, Any] = {"limit": 4, "steps": 2, "device": "cpu", "batch_size": 1, "detectors": []}
    found = [
        run(
            "playground/roles", ["off", "max"], tmp_path / "run", spread=Spread(shard=shard),
            networks=Networks(lpips="x"), **settings,
        )
        for shard in ("1/2", "2/2")
    ]  # fmt: skip
    assert len(found[0].measurements) < 4
    guided = {sample.key for sample in found[1].samples if sample.method == "max"}
    assert {each.key for each in found[1].measurements} == guided


def test_another_model_for_the_same_run_is_refused(folder: RunFolder, clip: Path, tmp_path: Path) -> None:
    measure(folder.path, Networks(clip=clip, device="cpu"))
    with pytest.raises(ConfigurationError, match="another version of clip"):
        measure(folder.path, Networks(clip=tiny_clip(tmp_path / "other", 1), device="cpu"))


BAD: dict[str, tuple[dict[str, str], str]] = {
    "LPIPS without a file": (
        {"lpips": "none.pth"},
        r"LPIPS, but none\.pth is no file.*torchvision's vgg network",
    ),
    "CLIP without a folder": ({"clip": "none"}, "CLIP score, but none is no folder.*save_pretrained"),
    "FID without a file": ({"inception": "none"}, "FID and KID, but none is no file.*InceptionV3"),
    "references without FID": ({"references": "."}, "FID's InceptionV3 too"),
    "another network": ({"lpips_network": "squeeze"}, "available: alex, vgg"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_had_is_said_and_nothing_is_written(case: str, folder: RunFolder) -> None:
    options, message = BAD[case]
    with pytest.raises(ConfigurationError, match=message):
        measure(folder.path, Networks(**options))  # type: ignore[arg-type]
    assert not (folder.path / "measures").exists()


@pytest.mark.parametrize("option", ["lpips", "inception"])
def test_without_unguided_pictures_there_is_nothing_to_compare_with(tmp_path: Path, option: str) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)}, weights)
    with pytest.raises(
        ConfigurationError,
        match=r"policy 'off' are needed, and the run has no such method \(its methods: max\)",
    ):
        Networks(**{option: weights}).load(["max"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("option", "library"), [("lpips", "torchmetrics"), ("inception", "torch_fidelity")])
def test_a_missing_library_is_said_before_anything_is_written(
    folder: RunFolder, tmp_path: Path, option: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)}, weights)
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'sldcore\[fidelity\]'"):
        measure(folder.path, Networks(**{option: weights}))  # type: ignore[arg-type]
    assert not (folder.path / "measures").exists()


def test_fid_of_a_shard_is_refused(folder: RunFolder) -> None:
    with pytest.raises(ConfigurationError, match="need all pictures of a run"):
        measure(folder.path, Networks(inception="w.pth"), shard="1/2")
