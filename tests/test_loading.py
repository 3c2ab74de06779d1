"""Loading pipelines: what is accepted, what is refused before any weights are read, and what the messages say."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from sldcore import load_pipeline
from sldcore.errors import ModelError, UnsupportedPipelineError
from sldcore.families import family_of
from sldcore.loading.files import require_package
from sldcore.loading.index import Index
from sldcore.loading.placing import check_offload, dtypes_of, fitting_dtype, place
from sldcore.playground import MODEL

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


class _Exploit:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.target), "w"))


@pytest.fixture
def folder(pipe: Any, tmp_path: Path) -> Path:
    """A saved pipeline in miniature."""
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("weights were read")

    for cls in (DiffusionPipeline, StableDiffusionPipeline):
        monkeypatch.setattr(cls, "from_pretrained", refuse)


def on_the_hub(monkeypatch: pytest.MonkeyPatch, index: dict[str, Any], tmp_path: Path) -> list[str]:
    """Give every model of the hub this index; returns the ids that were asked for."""
    asked = []
    path = tmp_path / "index-on-the-hub.json"
    path.write_text(json.dumps(index))

    def hf_hub_download(model: str, name: str) -> str:
        assert name == "model_index.json"
        asked.append(model)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    return asked


# --- what is accepted ------------------------------------------------------------------------------------------


def test_the_playground_is_a_stable_diffusion_pipeline_in_float32_on_the_cpu() -> None:
    pipe = load_pipeline("playground", device="cpu")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert pipe.unet.dtype == torch.float32
    assert pipe.name_or_path == "playground"


def test_a_folder_in_diffusers_layout_is_loaded_with_its_own_class(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "copy")
    pipe = load_pipeline(tmp_path / "copy", device="cpu", dtype="bfloat16")
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe.name_or_path == str(tmp_path / "copy")


def test_weights_in_the_variant_fp16_only_are_found(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model", variant="fp16")
    loaded = load_pipeline(tmp_path / "model", device="cpu")
    torch.testing.assert_close(loaded.unet.conv_in.weight, pipe.unet.conv_in.weight)


def test_a_model_of_the_hub_is_downloaded_without_pickles_and_keeps_its_id(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(cls: Any, name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(folder)

    on_the_hub(monkeypatch, json.loads((folder / "model_index.json").read_text()), tmp_path)
    monkeypatch.setattr(DiffusionPipeline, "download", classmethod(download))
    pipe = load_pipeline("team/model", device="cpu")
    assert asked == [("team/model", {"use_safetensors": True})]
    assert pipe.name_or_path == "team/model"


def test_importing_the_loader_loads_no_torch() -> None:
    code = "import sys, sldcore.loading, sldcore.loading.index; assert not {'torch', 'diffusers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what is refused -------------------------------------------------------------------------------------------


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


SHARDS = {
    "pickled": ("unet.bin", "is pickled"),
    "outside of the folder": ("../../elsewhere.safetensors", "lies outside of its folder"),
}


@pytest.mark.parametrize(("shard", "message"), SHARDS.values(), ids=SHARDS)
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_shards_that_are_pickled_or_elsewhere_are_refused(
    folder: Path, component: str, shard: str, message: str
) -> None:
    (weights,) = (folder / component).glob("*.safetensors")
    first = weights.with_name(f"{weights.stem}-00001-of-00002.safetensors")
    names = list(load_file(weights))
    weights.rename(first)
    (folder / component / "unet.bin").write_bytes(pickle.dumps(_Exploit(folder / "executed")))
    shards = {"weight_map": dict.fromkeys(names, first.name) | {names[0]: shard}, "metadata": {}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(shards))
    with pytest.raises(ModelError, match=message):
        load_pipeline(folder, device="cpu")
    assert not (folder / "executed").exists()


def test_sharded_safetensors_are_loaded(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert list((tmp_path / "model" / "unet").glob("*.index.json"))
    loaded = load_pipeline(tmp_path / "model", device="cpu")
    torch.testing.assert_close(loaded.unet.state_dict(), pipe.unet.state_dict())


INDEXES: dict[str, tuple[Callable[[dict[str, Any]], Any], type, str]] = {
    "a class that does not exist": (
        lambda index: index.update(_class_name="StableDifusionPipeline"),
        UnsupportedPipelineError,
        "did you mean 'StableDiffusionPipeline'.*Supported classes:.*StableDiffusionPipeline",
    ),
    "a class that no family serves": (
        lambda index: index.update(_class_name="StableAudioPipeline"),
        UnsupportedPipelineError,
        "is a StableAudioPipeline, which no family serves",
    ),
    "no class": (lambda index: index.pop("_class_name"), ModelError, "names no class of a pipeline"),
    "a component that is not in diffusers": (
        lambda index: index.update(unet=["diffusers", "UNet99"]),
        ModelError,
        r"its unet is a UNet99, which diffusers [\d.]+ does not have",
    ),
    "a pipeline class of its own": (
        lambda index: index.update(_class_name=["mine", "Mine"]),
        ModelError,
        r"code that is not diffusers' \(mine\.py\).*--trust-remote-code",
    ),
    "a component class of its own": (
        lambda index: index.update(unet=["mine", "Mine"]),
        ModelError,
        r"code that is not diffusers' \(unet/mine\.py\)",
    ),
    "a component from another package": (
        lambda index: index.update(unet=["os.path", "join"]),
        ModelError,
        "cannot load a pipeline.*code that is not",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), INDEXES.values(), ids=INDEXES)
def test_what_an_index_must_not_say_is_found_before_weights_are_read(
    folder: Path, change: Any, error: type, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(folder / "model_index.json", change)
    no_weights(monkeypatch)
    with pytest.raises(error, match=message):
        load_pipeline(folder, device="cpu")


def test_a_class_of_the_hub_is_looked_at_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_hub(monkeypatch, {"_class_name": "StableAudioPipeline"}, tmp_path)
    monkeypatch.setattr(
        DiffusionPipeline, "download", classmethod(lambda cls, *_, **__: pytest.fail("it was downloaded"))
    )
    with pytest.raises(UnsupportedPipelineError, match="StableAudioPipeline"):
        load_pipeline("team/audio")


@pytest.mark.parametrize("content", ["{", "[]", '{"_class_name": 5}'])
def test_an_index_that_cannot_be_read_is_one_error(folder: Path, content: str) -> None:
    (folder / "model_index.json").write_text(content)
    with pytest.raises(ModelError, match=r"cannot read .*model_index|names no class"):
        load_pipeline(folder)


def test_code_of_the_model_runs_only_if_the_caller_says_so(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from diffusers import StableDiffusionPipeline\nclass Mine(StableDiffusionPipeline):\n    mark = 7\n"
    )
    rewrite(folder / "model_index.json", lambda index: index.update(_class_name=["mine", "Mine"]))
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        load_pipeline(folder, device="cpu")
    pipe = load_pipeline(folder, device="cpu", trust_remote_code=True)
    assert pipe.mark == 7
    assert family_of(pipe).name == "stable-diffusion"


def test_a_modular_pipeline_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "modular_model_index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"modular pipeline.*sldcore\.guard"):
        load_pipeline(tmp_path)


def test_a_place_with_nothing_there_says_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_pipeline(tmp_path)
    with pytest.raises(ModelError, match="Give 'playground', a folder"):
        load_pipeline(str(tmp_path / "nowhere"))


def test_broken_weights_are_one_error(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ModelError, match="cannot load a pipeline"):
        load_pipeline(folder, device="cpu")


# --- number formats, devices, offloading -----------------------------------------------------------------------


def test_an_unknown_dtype_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match="bfloat16, float16, float32"):
        load_pipeline("playground", dtype="int8")


def index_with(denoiser: str, cls: str, vae: str = "AutoencoderKL") -> Index:
    return Index("here", "AnyPipeline", {denoiser: ("diffusers", cls), "vae": ("diffusers", vae)})


FORMATS = {
    "UNet": (index_with("unet", "UNet2DConditionModel"), torch.float16, torch.float16),
    "SD3": (index_with("transformer", "SD3Transformer2DModel"), torch.bfloat16, torch.float16),
    "PixArt": (index_with("transformer", "PixArtTransformer2DModel"), torch.float16, torch.float16),
}


@pytest.mark.parametrize(("index", "new_card", "old_card"), FORMATS.values(), ids=FORMATS)
def test_the_number_format_fits_device_and_model(
    index: Index, new_card: torch.dtype, old_card: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fitting_dtype(CPU, index) == fitting_dtype(MPS, index) == torch.float32
    monkeypatch.setattr("sldcore.loading.placing._computes_in_bfloat16", lambda device: True)
    assert fitting_dtype(CUDA, index) == new_card
    monkeypatch.setattr("sldcore.loading.placing._computes_in_bfloat16", lambda device: False)
    assert fitting_dtype(CUDA, index) == old_card


def test_a_vae_that_needs_float32_keeps_it_unless_the_caller_chooses() -> None:
    wan = index_with("transformer", "WanTransformer3DModel", "AutoencoderKLWan")
    expected = {"default": torch.bfloat16, "vae": torch.float32}
    assert dtypes_of(torch.bfloat16, wan, chosen=False) == expected
    assert dtypes_of(torch.bfloat16, wan, chosen=True) == torch.bfloat16
    assert dtypes_of(torch.bfloat16, FORMATS["SD3"][0], chosen=False) == torch.bfloat16


def test_offloading_needs_an_accelerator_and_a_known_name() -> None:
    with pytest.raises(ModelError, match="the device is the CPU"):
        load_pipeline("playground", device="cpu", offload="model")
    with pytest.raises(ModelError, match=r"did you mean 'model'.*group, model, none, sequential"):
        check_offload("modl", CUDA)


class Placed:
    """Notes which of diffusers' methods it was placed by."""

    unet = vae = None

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def note(*args: Any, **options: Any) -> Any:
            self.calls.append((name, {**options, "args": args} if args else options))
            return self

        return note


PLACES = {
    "none": ("to", {"args": (CUDA,)}),
    "model": ("enable_model_cpu_offload", {"device": CUDA}),
    "sequential": ("enable_sequential_cpu_offload", {"device": CUDA}),
    "group": (
        "enable_group_offload",
        {"onload_device": CUDA, "offload_type": "leaf_level", "use_stream": True},
    ),
}


@pytest.mark.parametrize("offload", PLACES)
def test_offloading_is_diffusers_own(offload: str) -> None:
    pipe = Placed()
    place(pipe, CUDA, offload, vae_slicing=False, vae_tiling=False)
    assert pipe.calls == [PLACES[offload]]


def test_offloading_calls_methods_that_diffusers_has_with_arguments_that_it_takes() -> None:
    from inspect import signature

    for name, options in list(PLACES.values())[1:]:
        assert options.keys() <= signature(getattr(DiffusionPipeline, name)).parameters.keys()


@pytest.mark.parametrize(("memory", "sliced"), [(32, True), (96, False)])
def test_attention_is_sliced_on_a_mac_with_little_memory(
    memory: float, sliced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sldcore.loading.placing._memory_gib", lambda: memory)
    pipe = Placed()
    pipe.unet = object()
    place(pipe, MPS, "none", vae_slicing=False, vae_tiling=False)
    assert ("enable_attention_slicing" in [name for name, _ in pipe.calls]) is sliced


def test_the_vae_is_told_to_slice_and_tile(folder: Path) -> None:
    vae = load_pipeline(folder, device="cpu", vae_slicing=True, vae_tiling=True).vae
    assert vae.use_slicing and vae.use_tiling
    plain = load_pipeline(folder, device="cpu").vae
    assert not plain.use_slicing and not plain.use_tiling


def test_a_vae_without_tiles_is_named() -> None:
    with pytest.raises(ModelError, match=r"VAE of this pipeline \(NoneType\) has no tiling"):
        place(Placed(), CPU, "none", vae_slicing=False, vae_tiling=True)


# --- quantised weights and single files ------------------------------------------------------------------------


def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sldcore.loading.files.find_spec", lambda name: None)


QUANTISED = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "quanto": "optimum-quanto",
    "gguf": r"'sldcore\[gguf\]'",
}


@pytest.mark.parametrize(("method", "install"), QUANTISED.items())
def test_quantised_weights_whose_package_is_missing_say_what_to_install(
    folder: Path, method: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing(monkeypatch)
    no_weights(monkeypatch)
    rewrite(
        folder / "unet" / "config.json",
        lambda config: config.update(quantization_config={"quant_method": method}),
    )
    with pytest.raises(ModelError, match=rf"unet of .* is quantised with {method}.*pip install {install}"):
        load_pipeline(folder, device="cpu")


def test_methods_that_only_diffusers_knows_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch)
    require_package("sdnq", "unet")


def test_what_diffusers_says_of_quantised_weights_is_one_error(folder: Path) -> None:
    rewrite(
        folder / "unet" / "config.json",
        lambda config: config.update(quantization_config={"quant_method": "no-such-method"}),
    )
    with pytest.raises(ModelError, match=r"cannot load a pipeline.*no-such-method"):
        load_pipeline(folder, device="cpu")


@pytest.fixture
def singly(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """Calls of ``from_single_file``, which are answered with the playground."""
    calls: list[tuple[str, str, dict[str, Any]]] = []
    loaded = load_pipeline("playground", device="cpu")
    for name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):

        def from_single_file(cls: Any, path: str, **options: Any) -> Any:
            calls.append((cls.__name__, path, options))
            return loaded

        monkeypatch.setattr(getattr(diffusers, name), "from_single_file", classmethod(from_single_file))
    return calls


def config_folder(place: Path, class_name: str) -> Path:
    place.mkdir()
    (place / "model_index.json").write_text(
        json.dumps({"_class_name": class_name, "unet": ["diffusers", "UNet2DConditionModel"]})
    )
    return place


def test_a_checkpoint_in_one_file_has_the_class_and_configs_of_the_folder_given_with_it(
    singly: list[Any], tmp_path: Path
) -> None:
    save_file({"any": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = config_folder(tmp_path / "config", "StableDiffusionXLPipeline")
    pipe = load_pipeline(tmp_path / "model.safetensors", device="cpu", config=config)
    options = {"dtype": torch.float32, "config": str(config)}
    assert singly == [("StableDiffusionXLPipeline", str(tmp_path / "model.safetensors"), options)]
    assert pipe.name_or_path == str(tmp_path / "model.safetensors")


XL = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"


def test_without_a_folder_the_class_is_that_of_the_model_which_diffusers_recognises(
    singly: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = on_the_hub(monkeypatch, {"_class_name": "StableDiffusionXLPipeline"}, tmp_path)
    save_file({XL: torch.zeros(1)}, tmp_path / "model.safetensors")
    load_pipeline(tmp_path / "model.safetensors", device="cpu")
    assert asked == ["stabilityai/stable-diffusion-xl-base-1.0"]
    assert singly[0][0] == "StableDiffusionXLPipeline"


def test_without_a_folder_and_without_the_hub_the_error_says_which_folder_helps(tmp_path: Path) -> None:
    save_file({XL: torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"stabilityai/stable-diffusion-xl-base-1\.0.*--config FOLDER"):
        load_pipeline(tmp_path / "model.safetensors", device="cpu")


def test_a_config_of_a_class_that_no_family_serves_is_refused(singly: list[Any], tmp_path: Path) -> None:
    save_file({"any": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = config_folder(tmp_path / "config", "StableAudioPipeline")
    with pytest.raises(UnsupportedPipelineError):
        load_pipeline(tmp_path / "model.safetensors", config=config)
    assert not singly


def test_a_config_beside_a_folder_and_a_transformer_beside_a_file_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="has configs of its own"):
        load_pipeline(folder, device="cpu", config=folder)
    save_file({"any": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="transformer goes with a folder"):
        load_pipeline(tmp_path / "model.safetensors", transformer=tmp_path / "model.safetensors")


def test_the_denoiser_of_a_folder_is_replaced_by_one_in_a_file(
    pipe: Any, folder: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        pipe.unet.conv_in.weight.add_(1.0)
    save_file(pipe.unet.state_dict(), tmp_path / "unet.safetensors")
    loaded = load_pipeline(folder, device="cpu", transformer=tmp_path / "unet.safetensors")
    torch.testing.assert_close(loaded.unet.state_dict(), pipe.unet.state_dict())


BAD_DENOISERS = {
    "pickled": ("unet.bin", "could run code"),
    "not there": ("no.gguf", "no file"),
    "GGUF without its package": ("unet.gguf", r"quantised with gguf.*'sldcore\[gguf\]'"),
}


@pytest.mark.parametrize(("name", "message"), BAD_DENOISERS.values(), ids=BAD_DENOISERS)
def test_a_file_that_is_no_denoiser_is_refused(
    folder: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing(monkeypatch)
    if "there" not in message and name != "no.gguf":
        (folder.parent / name).write_bytes(b"anything")
    with pytest.raises(ModelError, match=message):
        load_pipeline(folder, device="cpu", transformer=folder.parent / name)


def test_a_gguf_file_is_loaded_as_quantised_weights_of_the_denoiser(
    folder: Path, tmp_path: Path, pipe: Any
) -> None:
    gguf = pytest.importorskip("gguf")
    eight_bits = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(tmp_path / "unet.gguf", "sd1")
    for name, weight in pipe.unet.state_dict().items():
        value = weight.numpy()
        if "attn2.to_k" in name or "attn2.to_v" in name:  # 32 columns, which is a block
            writer.add_tensor(name, gguf.quants.quantize(value, eight_bits), raw_dtype=eight_bits)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = load_pipeline(folder, device="cpu", transformer=tmp_path / "unet.gguf")
    assert loaded.unet.is_quantized
    noise = {"latents": torch.randn(1, 4, 16, 16), "num_inference_steps": 2, "output_type": "np"}
    made, exact = (each("a red knight", **noise).images for each in (loaded, pipe))
    difference = abs(made - exact).max()
    assert 0 < difference < 0.02


def test_the_embedded_weights_are_safetensors_only() -> None:
    suffixes = {path.suffix for path in MODEL.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}
    assert load_file(MODEL / "unet" / "diffusion_pytorch_model.safetensors")
