"""Loading pipelines: what is accepted, what is refused, and what the messages say."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sldcore import load_pipeline
from sldcore.errors import ModelError
from sldcore.playground import MODEL


class _Exploit:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.target), "w"))


def test_the_playground_is_a_stable_diffusion_pipeline_in_float32_on_the_cpu() -> None:
    pipe = load_pipeline("playground", device="cpu")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert pipe.unet.dtype == torch.float32
    assert pipe.name_or_path == "playground"


def test_a_folder_in_diffusers_layout_is_loaded_with_its_own_class(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "copy")
    pipe = load_pipeline(tmp_path / "copy", device="cpu", dtype="bfloat16")
    assert pipe.unet.dtype == torch.bfloat16


def test_pickled_weights_are_refused_without_being_opened(tmp_path: Path) -> None:
    folder, mark = tmp_path / "copy", tmp_path / "executed"
    shutil.copytree(MODEL, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Exploit(mark)))
    with pytest.raises(ModelError, match=r"unet holds pickled weights only.*safetensors"):
        load_pipeline(folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_a_pickled_checkpoint_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(ModelError, match="could run code"):
        load_pipeline(tmp_path / name)


def test_a_place_with_nothing_there_says_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_pipeline(tmp_path)
    with pytest.raises(ModelError, match="Give 'playground', a folder"):
        load_pipeline(str(tmp_path / "nowhere"))


def test_an_unknown_dtype_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="bfloat16, float16, float32"):
        load_pipeline("playground", dtype="int8")


def test_the_embedded_weights_are_safetensors_only() -> None:
    suffixes = {path.suffix for path in MODEL.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}
    assert load_file(MODEL / "unet" / "diffusion_pytorch_model.safetensors")
