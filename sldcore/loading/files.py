"""Weights that do not come in diffusers layout: single checkpoints, single files for the denoiser, and quantised components."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from sldcore.errors import ModelError
from sldcore.loading.index import Index, index_of_hub, read_index, refuse_pickle

GGUF: Final = ".gguf"
PACKAGES: Final[Mapping[str, tuple[str, str]]] = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "gguf": ("gguf", "'sldcore[gguf]'"),
    "modelopt": ("modelopt", "'nvidia-modelopt[hf]'"),
    "quanto": ("optimum", "optimum-quanto"),
    "torchao": ("torchao", "torchao"),
}
"""Quantisation method to the module that it needs and what installs it."""


class _Header(Mapping[str, Any]):
    """The tensors of a safetensors file, of which only names and shapes are read."""

    def __init__(self, tensors: Any) -> None:
        self._tensors, self._names = tensors, list(tensors.keys())

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return SimpleNamespace(shape=tuple(self._tensors.get_slice(name).get_shape()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_components(index: Index) -> None:
    """Whether the installed libraries have the classes of an index's components.

    Raises:
        ModelError: one of them is not there.
    """
    for component, (library, name) in index.components.items():
        if library in ("diffusers", "transformers") and not hasattr(import_module(library), name):
            raise ModelError(
                f"cannot load a pipeline from '{index.place}': its {component} is a {name}, which {library} "
                f"{version(library)} does not have; a newer {library} may"
            )


def check_quantised(folder: Path, index: Index) -> None:
    """Whether the packages are there that the quantised components of a folder need.

    Raises:
        ModelError: one is missing.
    """
    for component in index.components:
        path = folder / component / "config.json"
        if path.is_file():
            config = json.loads(path.read_text(encoding="utf-8"))
            method = (config.get("quantization_config") or {}).get("quant_method")
            require_package(str(method), f"{component} of '{index.place}'")


def require_package(method: str, what: str) -> None:
    """Whether a quantisation method can be used; methods that only diffusers knows are left to it.

    Raises:
        ModelError: its package is missing.
    """
    module, install = PACKAGES.get(method, ("", ""))
    if module and find_spec(module) is None:
        raise ModelError(
            f"{what} is quantised with {method}, and its package is not installed; pip install {install}"
        )


def index_of_checkpoint(path: Path, config: str | Path | None) -> Index:
    """The index for a checkpoint in one file: that of the ``config`` folder, or of the model that diffusers takes it for.

    The latter reads names and shapes of the tensors only, and asks the hub (or its cache) for that model's index.

    Raises:
        ModelError: it is pickled or broken, or the index cannot be had.
    """
    refuse_pickle(path)
    if config is not None:
        return read_index(Path(config))
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            repository = fetch_diffusers_config(_Header(tensors))["pretrained_model_name_or_path"]
    except (SafetensorError, OSError) as problem:
        raise ModelError(f"{path} cannot be read as safetensors: {problem}") from None
    try:
        return index_of_hub(repository)
    except (OSError, ValueError) as problem:
        raise ModelError(
            f"diffusers takes {path.name} for a model like '{repository}', and needs that model's configs and tokenizers, "
            f"which can be had neither from the hub nor from its cache. Give a folder that holds them in diffusers layout: "
            f"config=... (sld generate --config FOLDER); its weights are not needed"
        ) from problem


def pipeline_of_checkpoint(path: Path, index: Index, config: str | Path | None, dtype: Any) -> Any:
    """The pipeline in one file, by the class that ``index`` names.

    Raises:
        ModelError: diffusers cannot load that class from one file.
    """
    import diffusers

    cls = getattr(diffusers, index.class_name)
    if not hasattr(cls, "from_single_file"):
        raise ModelError(
            f"diffusers cannot load a {index.class_name} from one file; give the model as a folder, and this file as its "
            f"transformer=... (sld generate --transformer FILE) if it holds the denoiser"
        )
    given = {} if config is None else {"config": str(config)}
    return cls.from_single_file(str(path), dtype=dtype, **given)


def denoiser_of_file(path: Path, folder: Path, index: Index, dtype: Any) -> dict[str, Any]:
    """The denoiser in one file, GGUF or safetensors, with the config that ``folder`` has for it, as a component.

    Raises:
        ModelError: it is pickled, gguf is missing, or diffusers cannot load that denoiser from one file.
    """
    import diffusers

    quantised = path.suffix.lower() == GGUF
    if not path.is_file():
        raise ModelError(f"no file {path}; give the denoiser's weights as .gguf or .safetensors")
    if not quantised:
        refuse_pickle(path)
    name = index.denoiser
    cls = None if name is None else getattr(diffusers, index.components[name][1], None)
    if name is None or not hasattr(cls, "from_single_file"):
        raise ModelError(
            f"diffusers cannot load the denoiser of a {index.class_name} from one file; give the whole model as a folder"
        )
    options: dict[str, Any] = {"config": str(folder), "subfolder": name, "dtype": dtype}
    if quantised:
        require_package("gguf", str(path))
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
    return {name: cls.from_single_file(str(path), **options)}  # type: ignore[union-attr]
