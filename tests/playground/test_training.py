"""Training: resumable without a trace, deterministic, and complete or not at all."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sldcore.errors import ConfigurationError
from sldcore.playground.optimise import Stage, optimise
from sldcore.playground.stages import Settings
from sldcore.playground.training import read_log, train

TINY = Settings(
    pictures=24,
    held_out=8,
    vae_steps=5,
    vae_batch=2,
    classifier_steps=5,
    classifier_batch=4,
    unet_steps=5,
    unet_batch=2,
    bfloat16=False,  # which many processors only imitate, and slowly
)
EVERY = 2  # steps between checkpoints


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder / "model", folder / "work", TINY, quiet, EVERY)
    return folder / "model"


def quiet(stage: str, step: int, steps: int, loss: float) -> None:
    pass


def stop_at(*where: tuple[str, int]) -> Callable[[str, int, int, float], None]:
    """A report that presses Ctrl-C once at each of these steps."""
    left = list(where)

    def report(stage: str, step: int, steps: int, loss: float) -> None:
        if (stage, step) in left:
            left.remove((stage, step))
            raise KeyboardInterrupt

    return report


def weights(model: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(model)}: {name}": tensor
        for path in sorted(model.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_run_resumes_to_the_weights_of_an_undisturbed_one(
    tmp_path: Path, undisturbed: Path
) -> None:
    report = stop_at(("vae", 3), ("latents", 24), ("classifier", 4), ("unet", 1), ("unet", 5))
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "model", tmp_path / "work", TINY, report, EVERY)

    train(tmp_path / "model", tmp_path / "work", TINY, report, EVERY)

    assert same_weights(tmp_path / "model", undisturbed)


def test_the_vae_is_resumed_without_a_trace_in_mixed_precision_too(tmp_path: Path) -> None:
    mixed = replace(TINY, bfloat16=True, vae_steps=3, vae_batch=1)
    for work, stops in {"whole": (), "in two parts": (("vae", 3),)}.items():
        report = stop_at(*stops, ("classifier", 1))
        for _ in (*stops, "the classifier"):
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path / "model", tmp_path / work, mixed, report, EVERY)

    whole, parted = (load_file(tmp_path / work / "vae.safetensors") for work in ("whole", "in two parts"))
    assert whole.keys() == parted.keys()
    assert all(torch.equal(whole[name], parted[name]) for name in whole)


def test_a_resumed_run_reports_the_losses_of_an_undisturbed_one(tmp_path: Path, undisturbed: Path) -> None:
    report = stop_at(("classifier", 3))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "model", tmp_path / "work", TINY, report, EVERY)

    log = train(tmp_path / "model", tmp_path / "work", TINY, report, EVERY)

    expected = read_log(undisturbed)
    timeless = [name for name in expected if not name.endswith("seconds")]
    assert {name: log[name] for name in timeless} == {name: expected[name] for name in timeless}


def test_a_resumed_run_repeats_no_step_before_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "model", tmp_path / "work", TINY, stop_at(("unet", 5)), EVERY)
    seen: list[tuple[str, int]] = []

    train(
        tmp_path / "model", tmp_path / "work", TINY, lambda stage, step, *_: seen.append((stage, step)), EVERY
    )

    drawn = ("pictures", "world")
    assert [entry for entry in seen if entry[0] not in drawn] == [("unet", 5)]


def test_one_seed_gives_equal_weights_twice(tmp_path: Path, undisturbed: Path) -> None:
    train(tmp_path / "model", tmp_path / "work", TINY, quiet, EVERY)
    assert same_weights(tmp_path / "model", undisturbed)


def test_an_interrupted_run_leaves_no_model(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "model", tmp_path / "work", TINY, stop_at(("vae", 3)), EVERY)

    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["settings.json", "vae.checkpoint"]


def test_a_model_that_cannot_be_saved_whole_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("sldcore.playground.training.save_file", full)
    with pytest.raises(OSError, match="no space"):
        train(tmp_path / "model", tmp_path / "work", TINY, quiet, EVERY)

    assert not (tmp_path / "model").exists()


def test_a_work_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "model", tmp_path / "work", TINY, stop_at(("vae", 1)), EVERY)

    with pytest.raises(ConfigurationError, match="other settings"):
        train(tmp_path / "model", tmp_path / "work", Settings.quick(seed=1), quiet, EVERY)


def test_an_existing_output_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    with pytest.raises(ConfigurationError, match="exists already"):
        train(tmp_path / "model", tmp_path / "work", TINY, quiet, EVERY)

    assert not (tmp_path / "work").exists()


def test_all_but_the_text_encoder_is_in_half_precision_and_everyone_may_read_it(undisturbed: Path) -> None:
    dtypes = {
        path.relative_to(undisturbed).parts[0]: {
            tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()
        }
        for path in undisturbed.rglob("*.safetensors")
    }
    modes = {stat.S_IMODE(path.stat().st_mode) for path in undisturbed.rglob("*") if path.is_file()}
    assert dtypes.pop("text_encoder") == {torch.float32}
    assert set(dtypes) == {"vae", "unet", "classifier.safetensors"}
    assert all(found == {torch.float16} for found in dtypes.values())
    assert modes == {0o644}


def test_the_model_tells_how_it_was_trained(undisturbed: Path) -> None:
    log = json.loads((undisturbed / "training.json").read_text())
    assert log["settings"]["unet_steps"] == TINY.unet_steps
    assert {"vae_loss", "classifier_loss", "unet_loss", "vae_psnr_db", "seconds"} <= set(log)


def test_training_leaves_the_random_numbers_of_its_caller_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "model", tmp_path / "work", TINY, stop_at(("vae", 1)), EVERY)

    assert torch.equal(torch.rand(3), expected)


def test_an_optimisation_ends_with_the_moving_average_of_its_weights(tmp_path: Path) -> None:
    line = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(line.weight)
    after_step: list[float] = []

    optimise(
        Stage("line", steps=4, seed=0, learning_rate=0.1, ema_decay=0.25),
        line,
        lambda _: (line.weight - 1).square().sum(),
        tmp_path,
        lambda *_: after_step.append(line.weight.item()),
    )

    average = 0.0
    for weight, keep in zip(after_step, (1 / 10, 2 / 11, 3 / 12, 0.25), strict=True):
        average = keep * average + (1 - keep) * weight
    assert line.weight.item() == pytest.approx(average, abs=1e-6)
    assert line.weight.item() != pytest.approx(after_step[-1], abs=1e-3)
