"""What a run is made of: methods by name, and the identity of a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sldcore.errors import ConfigurationError, ModelError, PolicyError
from sldcore.evaluation.methods import methods_named
from sldcore.evaluation.model_identity import identify
from sldcore.playground.world import DEFAULT_TEXT
from sldcore.policy import SafetyPolicy


def test_methods_are_presets_files_policies_and_a_negative_prompt(tmp_path: Path) -> None:
    SafetyPolicy.preset("max").replace(name="mine").dump(tmp_path / "mine.yaml")
    made = methods_named(
        ["off, weak", str(tmp_path / "mine.yaml"), SafetyPolicy.preset("strong"), "negative"]
    )
    assert [method.name for method in made] == ["off", "weak", "mine", "strong", "negative"]
    assert made[2].policy.digest == SafetyPolicy.preset("max").digest


def test_negative_is_the_default_concept_without_guidance() -> None:
    (method,) = methods_named(["negative"])
    assert method.arguments == {"negative_prompt": DEFAULT_TEXT}
    assert not method.policy.guides
    assert methods_named(["negative"], "blood")[0].arguments == {"negative_prompt": "blood"}


def test_a_method_says_what_its_names_stand_for() -> None:
    (method,) = methods_named(["max"])
    assert [concept["text"] for concept in method.resolved["concepts"]] == [DEFAULT_TEXT]
    assert json.loads(json.dumps(method.document())) == method.document()


def test_no_method_at_all_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no policy is given"):
        methods_named([" , "])


@pytest.mark.parametrize("name", ["medum", "nothing.yaml", "negatve"])
def test_an_unknown_method_is_refused(name: str) -> None:
    with pytest.raises(PolicyError):
        methods_named([name])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name, text in {
        "model_index.json": "{}", "unet/weights.safetensors": "w", "unet/config.json": "c", "README.md": "r",
        "scheduler/scheduler_config.json": '{"_class_name": "PNDMScheduler"}', "training.json": "log",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", ["unet/weights.safetensors", "unet/config.json", "model_index.json"])
def test_the_identity_of_a_model_depends_on_weights_and_configs(model: Path, name: str) -> None:
    before = identify(str(model))
    (model / name).write_text("changed")
    assert identify(str(model)).weights != before.weights


@pytest.mark.parametrize("name", ["README.md", "training.json"])
def test_it_does_not_depend_on_what_lies_beside(model: Path, name: str) -> None:
    before = identify(str(model))
    (model / name).write_text("changed")
    assert identify(str(model)) == before


def test_it_depends_on_another_denoiser_and_names_the_scheduler(model: Path) -> None:
    other = model.parent / "other.gguf"
    other.write_text("x")
    assert identify(str(model), {"transformer": other}).weights != identify(str(model)).weights
    assert identify(str(model)).scheduler == "PNDMScheduler"


def test_the_name_of_a_blob_in_the_hubs_cache_stands_for_its_content(model: Path) -> None:
    blob = model.parent / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_text("w")
    weights = model / "unet" / "weights.safetensors"
    weights.unlink()
    weights.symlink_to(blob)
    before = identify(str(model)).weights
    blob.write_text("not read")
    assert identify(str(model)).weights == before


@pytest.mark.parametrize("model", ["no/such", "what is this?", ""])
def test_a_model_that_is_not_there_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match="no model"):
        identify(model)


def test_looking_at_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys; from sldcore.evaluation import Benchmark, RunFolder, load_benchmark; import sldcore.cli; "
        "from sldcore.evaluation.methods import methods_named; methods_named(['max']); "
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib', 'ray'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_without_anything_to_measure_is_refused(tmp_path: Path) -> None:
    from sldcore.evaluation import run

    with pytest.raises(ConfigurationError, match="at least 1"):
        run("playground/roles", ["off"], tmp_path / "run", images=0)
    assert not (tmp_path / "run").exists()


def test_library_use_with_a_benchmark_of_ones_own(tmp_path: Path) -> None:
    from sldcore.evaluation import Benchmark, Item, report, run

    mine = Benchmark(
        "mine", "1", "0" * 16, (Item("a", "a red knight on a meadow", 1, ("violence",)),), ("violence",)
    )
    found = run(mine, ["off"], tmp_path / "run", detectors=["playground"], steps=2, device="cpu")
    assert [(each.item, each.categories) for each in found.samples] == [("a", ("violence",))]
    assert report(found, tmp_path / "report").markdown.exists()
