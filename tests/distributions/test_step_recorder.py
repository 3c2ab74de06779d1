from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sld_step_recorder
import torch
from PIL import Image
from sld_step_recorder import RecorderOptions
from sld_step_recorder.measuring import measured, preview, quantities
from sld_step_recorder.recorder import StepRecorder
from sld_step_recorder.sheet import contact_sheet
from torch import Tensor

from sldcore import SafetyEngine, SafetyPolicy
from sldcore.errors import PluginError
from sldcore.policy import Use
from sldcore.testing import predictions, schedule
from sldcore.types import Predictions

STEPS = 6
SAMPLES = ["knight", "cat"]


def half(given: Predictions) -> Tensor:
    return given.cond - 0.5 * given.uncond


def record(
    folder: Path, steps: int = STEPS, guided: Callable[[Predictions], Tensor] = half, **options: Any
) -> None:
    hook, plan = StepRecorder(RecorderOptions(folder=str(folder), **options)), schedule(steps)
    for step in map(plan.step, range(steps)):
        given = predictions(step, (), SAMPLES)
        hook.before_guidance(step, given)
        hook.after_guidance(step, given, guided(given))


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    record(tmp_path)
    loaded: dict[str, Any] = json.loads((tmp_path / "run-0001" / "record.json").read_text("utf-8"))
    return loaded


def test_a_record_has_data_and_a_sheet_for_each_sample(tmp_path: Path) -> None:
    record(tmp_path)
    names = sorted(path.name for path in (tmp_path / "run-0001").iterdir())
    assert names == ["record.json", "sample-0.png", "sample-1.png", "statistics.csv"]


def test_nothing_but_finished_records_is_in_the_folder(tmp_path: Path) -> None:
    record(tmp_path)
    record(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0001", "run-0002"]


def test_a_run_that_is_cut_short_leaves_no_record(tmp_path: Path) -> None:
    hook, plan = StepRecorder(RecorderOptions(folder=str(tmp_path))), schedule(STEPS)
    for step in map(plan.step, range(STEPS - 1)):
        given = predictions(step, (), SAMPLES)
        hook.before_guidance(step, given)
        hook.after_guidance(step, given, given.cond)
    assert list(tmp_path.iterdir()) == []


def test_statistics_are_those_of_the_predictions(content: dict[str, Any]) -> None:
    given = predictions(schedule(STEPS).step(2), (), SAMPLES)
    tensors = {
        "uncond": given.uncond,
        "cond": given.cond,
        "guided": half(given),
        "safety": 0.5 * given.uncond,
    }
    for name, tensor in tensors.items():
        found = {measure: values[2][1] for measure, values in content["statistics"][name].items()}
        sample = tensor[1].numpy()
        expected = {"norm": np.linalg.norm(sample), "mean": sample.mean(), "std": sample.std()}
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_table_says_the_same_as_the_json(tmp_path: Path) -> None:
    record(tmp_path)
    folder = tmp_path / "run-0001"
    content = json.loads((folder / "record.json").read_text("utf-8"))
    rows = list(csv.DictReader(io.StringIO((folder / "statistics.csv").read_text("utf-8"))))
    assert len(rows) == STEPS * len(SAMPLES) * 5
    for row in rows:
        values = content["statistics"][row["quantity"]]
        for measure in ("norm", "mean", "std"):
            assert float(row[measure]) == values[measure][int(row["step"])][int(row["sample"])]


def test_steps_are_recorded_with_their_noise(content: dict[str, Any]) -> None:
    plan = schedule(STEPS)
    assert [step["noise_level"] for step in content["steps"]] == list(plan.noise_levels)
    assert [step["timestep"] for step in content["steps"]] == list(plan.timesteps)


def test_every_says_which_steps_are_pictured_and_the_last_always_is(tmp_path: Path) -> None:
    record(tmp_path, every=4)
    content = json.loads((tmp_path / "run-0001" / "record.json").read_text("utf-8"))
    assert content["previews"] == {"steps": [0, 4, 5], "quantities": ["latents", "guided", "safety"]}


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    record(tmp_path, guided=lambda given: given.cond * float("nan"))
    content = json.loads((tmp_path / "run-0001" / "record.json").read_text("utf-8"))
    assert content["statistics"]["guided"]["norm"][0] == [None, None]


def test_latents_are_recorded_where_the_run_shows_them() -> None:
    class WithLatents:
        uncond = cond = latents = torch.ones(1, 4, 2, 2)

    seen = quantities(WithLatents(), torch.ones(1, 4, 2, 2))  # type: ignore[arg-type]
    assert list(seen) == ["latents", "uncond", "cond", "guided", "safety"]


def test_measures_are_taken_in_float32() -> None:
    quantity = torch.full((1, 4, 64, 64), 100.0)
    assert measured(quantity)[0].item() == pytest.approx(
        100 * 128, rel=1e-6
    )  # its square does not fit into float16


def test_each_channel_has_a_hue_and_its_negative_the_opposite_one() -> None:
    one = torch.zeros(1, 3, 1, 1)
    one[0, 0] = 1.0
    red = preview(one, 8)[0, :, 0, 0]
    torch.testing.assert_close(red, torch.tensor([1.0, -0.5, -0.5]))
    torch.testing.assert_close(preview(-one, 8)[0, :, 0, 0], -red)


def test_large_latents_are_averaged_down() -> None:
    quantity = torch.zeros(1, 1, 8, 16)
    quantity[..., ::2] = 1.0
    small = preview(quantity, 8)
    assert small.shape == (1, 3, 8, 8)
    torch.testing.assert_close(small[0, 0], torch.full((8, 8), 0.5))


def test_a_sheet_has_a_column_for_each_step_and_shows_where_something_is() -> None:
    previews = np.zeros((30, 1, 3, 2, 2), dtype=np.float32)
    previews[7, 0, 0, 1, 0] = 1.0  # red, lower left, at the eighth step
    sheet = np.asarray(contact_sheet(previews, ["safety"], list(range(30))))
    red = (sheet == (255, 128, 128)).all(axis=2).nonzero()
    tile = 66  # 64 pixels and a gap of two
    assert sheet.shape == (2 * (14 + tile), 60 + 25 * tile, 3)
    assert (red[0].min(), red[0].max()) == (14 + 32, 14 + 63)
    assert (red[1].min(), red[1].max()) == (60 + 7 * tile, 60 + 7 * tile + 31)


@pytest.mark.parametrize("wrong", [{"folder": ""}, {"every": 0}, {"size": 1}, {"every": 1.5}])
def test_options_that_make_no_record_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RecorderOptions"):
        RecorderOptions(**wrong)


def test_a_folder_that_cannot_be_written_is_an_error_at_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    hook, step = (
        StepRecorder(RecorderOptions(folder=str(tmp_path / "file" / "records"))),
        schedule(STEPS).step(0),
    )
    with pytest.raises(PluginError, match=r"cannot write to .*option 'folder'"):
        hook.before_guidance(step, predictions(step, (), SAMPLES))


def recording(folder: Path) -> SafetyPolicy:
    use = Use.model_validate({"use": "step-recorder", "options": {"folder": str(folder)}})
    return SafetyPolicy.preset("max").replace(step_hooks=(use,))


def test_recording_changes_no_picture(
    pipe: Any, plugin_catalogue: Callable[..., None], tmp_path: Path
) -> None:
    plugin_catalogue(*sld_step_recorder.sld_step_hooks())
    arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0}
    plain = SafetyEngine(pipe, "max").generate("a cat", **arguments)
    recorded = SafetyEngine(pipe, recording(tmp_path)).generate("a cat", **arguments)
    np.testing.assert_array_equal(np.asarray(recorded.images[0]), np.asarray(plain.images[0]))
    with Image.open(tmp_path / "run-0001" / "sample-0.png") as sheet:
        assert sheet.size == (60 + 4 * 66, 14 + 3 * 66)  # latents, guided, safety


def test_a_record_that_cannot_be_written_withholds_the_pictures(
    pipe: Any, plugin_catalogue: Callable[..., None], tmp_path: Path
) -> None:
    plugin_catalogue(*sld_step_recorder.sld_step_hooks())
    (tmp_path / "file").write_text("")
    policy = recording(tmp_path / "file" / "records")
    result = SafetyEngine(pipe, policy).generate("a cat", num_inference_steps=3, guidance_scale=4.0)
    (report,) = result.reports
    assert report.withheld
    assert [(error.source, error.step) for error in report.errors] == [("step-recorder", 0)]
