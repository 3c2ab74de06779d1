"""Loading pipelines: the embedded playground, a folder, a single file, or a hub id; safetensors only.

The pipeline's index is read first: a class that no family serves, code of the model's own and pickled weights are refused
before any weights are read. Importing this package loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sldcore.errors import ModelError, SLDError
from sldcore.loading.index import (
    CONVERT,
    index_of_hub,
    read_index,
    refuse_pickle,
    refuse_pickled_components,
    variant_of,
)
from sldcore.playground import MODEL

if TYPE_CHECKING:
    import torch

PLAYGROUND: Final = "playground"


def load_pipeline(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    offload: str = "none",
    vae_slicing: bool = False,
    vae_tiling: bool = False,
    transformer: str | Path | None = None,
    config: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a diffusers pipeline of a supported class.

    Args:
        model: ``"playground"``, a folder in diffusers layout, a ``.safetensors`` checkpoint in one file, or a hub id.
        device: where to put it; CUDA, an XPU, Apple's MPS, then the CPU by default.
        dtype: float32, float16 or bfloat16, by name or as torch's; by default float32 on CPU and MPS, elsewhere float16 for
            UNets and bfloat16 for most transformers.
        offload: ``model``, ``sequential`` or ``group`` as diffusers' ``enable_model_cpu_offload``,
            ``enable_sequential_cpu_offload`` and ``enable_group_offload``; ``none``: everything stays on the device.
        vae_slicing: decode the pictures of a batch one by one.
        vae_tiling: decode large pictures in tiles.
        transformer: the denoiser's weights in one file, GGUF or safetensors, in place of those of ``model``.
        config: for a checkpoint in one file, a folder in diffusers layout that has its configs and tokenizers; without it
            diffusers asks the hub.
        trust_remote_code: run code that the model brings.

    Raises:
        ModelError: nothing usable there, pickled weights only, code of its own, an unknown dtype, a device that is not there,
            or a package that quantised weights need is missing.
        UnsupportedPipelineError: no family serves the pipeline's class.
    """
    from sldcore.loading.placing import check_offload, device_of, named_dtype, place

    where, wanted = device_of(device), named_dtype(dtype)
    check_offload(offload, where)
    path = Path(model)
    with _one_error(model):
        if path.is_file():
            if transformer is not None:
                raise ModelError(
                    f"{path} is a checkpoint in one file; transformer goes with a folder or a hub id"
                )
            pipe = _from_file(path, config, where, wanted)
        else:
            if config is not None:
                raise ModelError(
                    f"'{model}' has configs of its own; config goes with a checkpoint in one file"
                )
            pipe = _from_folder(str(model), where, wanted, transformer, trust_remote_code)
        pipe.register_to_config(_name_or_path=str(model))
        return place(pipe, where, offload, vae_slicing=vae_slicing, vae_tiling=vae_tiling)


@contextmanager
def safetensors_only(model: Any, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Options for a ``from_pretrained`` call that will not touch pickled weights, and one clear error if it fails.

    Raises:
        ModelError: nothing usable at ``model``, or the caller asked for pickled weights.
    """
    if options.get("use_safetensors") is False:
        raise ModelError(
            f"{model}: use_safetensors=False asks for pickled weights, which can run code; {CONVERT}"
        )
    folder = Path(str(model))
    if folder.is_dir():
        refuse_pickled_components(folder)
    elif folder.is_file():
        refuse_pickle(folder)
    with _one_error(model):
        yield {**options, "use_safetensors": True}


@contextmanager
def _one_error(model: Any) -> Iterator[None]:
    """Whatever the libraries say of a model that they cannot load, as one error that says what can be given."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, SLDError):
            raise
        reason = " ".join(str(error).split())[:300]
        if type(error).__name__ == "OutOfMemoryError":
            raise ModelError(
                f"'{model}' does not fit into the device's memory: {reason}. Offloading helps: offload='model', 'group' or "
                f"'sequential' (sld generate --offload)"
            ) from error
        raise ModelError(
            f"cannot load a pipeline from '{model}': {reason}. Give 'playground', a folder in diffusers layout, a "
            f".safetensors checkpoint, or the id of a model on the hub that is reachable or cached"
        ) from error


def _from_file(path: Path, config: str | Path | None, device: Any, dtype: Any) -> Any:
    from sldcore.loading.files import index_of_checkpoint, pipeline_of_checkpoint
    from sldcore.loading.placing import fitting_dtype

    index = index_of_checkpoint(path, config)
    index.check()
    return pipeline_of_checkpoint(path, index, config, dtype or fitting_dtype(device, index))


def _from_folder(model: str, device: Any, dtype: Any, transformer: Any, trust_remote_code: bool) -> Any:
    """The pipeline of a folder, or of a hub id after its download."""
    from diffusers import DiffusionPipeline

    from sldcore.loading.files import check_components, check_quantised, denoiser_of_file
    from sldcore.loading.placing import dtypes_of, fitting_dtype

    folder = _folder_of(model, trust_remote_code)
    index = read_index(folder)
    index.check(trust_remote_code=trust_remote_code)
    refuse_pickled_components(folder)
    check_components(index)
    check_quantised(folder, index)
    chosen = dtype or fitting_dtype(device, index)
    options: dict[str, Any] = {"dtype": dtypes_of(chosen, index, chosen=dtype is not None)}
    if trust_remote_code:
        options["trust_remote_code"] = True
    if variant := variant_of(folder, index):
        options["variant"] = variant
    if transformer is not None:
        options |= denoiser_of_file(Path(transformer), folder, index, chosen)
    if model == PLAYGROUND:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    return DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True, **options)


def _folder_of(model: str, trust_remote_code: bool) -> Path:
    """Where a model's files are; those of a hub id are downloaded once its index has been looked at."""
    from diffusers import DiffusionPipeline

    if model == PLAYGROUND:
        return MODEL
    if Path(model).is_dir():
        return Path(model)
    index_of_hub(model).check(trust_remote_code=trust_remote_code)
    options = {"trust_remote_code": True} if trust_remote_code else {}
    return Path(DiffusionPipeline.download(model, use_safetensors=True, **options))
