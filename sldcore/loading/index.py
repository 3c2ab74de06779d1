"""What a pipeline's own index says, read before any weights are: its class, its components, and whether it wants to run code.

Nothing here loads torch, so that a command can refuse a model at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from sldcore.errors import ModelError, UnsupportedPipelineError, listed, nearest
from sldcore.families import supported_classes

INDEX: Final = "model_index.json"
MODULAR_INDEX: Final = "modular_model_index.json"
PICKLED: Final = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
DENOISERS: Final = ("transformer", "unet")
LIBRARIES: Final = ("diffusers", "transformers", "onnxruntime")
"""Where classes of components come from; beside them, diffusers' own pipeline modules."""
CONVERT: Final = (
    "convert the weights to safetensors first (save_pretrained with safe_serialization=True does)"
)


@dataclass(frozen=True, slots=True)
class Index:
    """An index: where it is, the pipeline's class, library and class of each component, and files with code of its own."""

    place: str
    class_name: str
    components: Mapping[str, tuple[str, str]]
    code: tuple[str, ...] = ()

    @classmethod
    def of(cls, document: Any, place: str | Path) -> Index:
        """The index in a JSON document.

        Raises:
            ModelError: it is no index.
        """
        name = document.get("_class_name") if isinstance(document, dict) else None
        code = []
        if isinstance(name, list | tuple) and len(name) == 2:
            code.append(f"{name[0]}.py")
            name = name[1]
        if not isinstance(name, str) or not name:
            raise ModelError(
                f"cannot load a pipeline from '{place}': its {INDEX} names no class of a pipeline (_class_name)"
            )
        components = {
            part: (str(value[0]), str(value[1]))
            for part, value in document.items()
            if isinstance(value, list | tuple)
            and not part.startswith("_")
            and len(value) == 2
            and value[0] is not None
            and isinstance(value[1], str)
        }
        code += [f"{part}/{module}.py" for part, (module, _) in components.items() if not _is_known(module)]
        return cls(str(place), name, components, tuple(code))

    @property
    def denoiser(self) -> str | None:
        """The component that predicts noise; None if it has none of the usual names."""
        return next((name for name in DENOISERS if name in self.components), None)

    def check(self, *, trust_remote_code: bool = False) -> None:
        """Refuse what cannot or must not be loaded.

        Raises:
            ModelError: it asks for code of its own, and nobody said that this may run.
            UnsupportedPipelineError: no family serves the class.
        """
        if self.code and not trust_remote_code:
            raise ModelError(
                f"cannot load a pipeline from '{self.place}': its index asks for code that is not diffusers' "
                f"({listed(self.code)}), and that would be run. If you have read it and trust it, pass "
                f"trust_remote_code=True (sld generate --trust-remote-code)"
            )
        if not self.code and not _is_served(self.class_name):
            known = supported_classes()
            raise UnsupportedPipelineError(
                f"'{self.place}' is a {self.class_name}, which no family serves{nearest(self.class_name, known)}, so nothing "
                f"could guide it. Supported classes: {listed(known)}"
            )


def read_index(folder: Path) -> Index:
    """The index of a folder in diffusers layout.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    path = folder / INDEX
    if not path.is_file():
        if (folder / MODULAR_INDEX).is_file():
            raise ModelError(
                f"{folder} holds {MODULAR_INDEX} and no {INDEX}: it is a modular pipeline. Load it with diffusers' "
                f"ModularPipeline and call it inside sldcore.guard, or give the classic form of the model"
            )
        raise ModelError(f"{folder} holds no {INDEX}, so it is not a pipeline in diffusers layout")
    return Index.of(_read_json(path), folder)


def index_of_hub(model: str) -> Index:
    """The index of a model on the hub, or in its cache.

    Raises:
        ModelError: it cannot be read.
        OSError: it cannot be had.
        ValueError: ``model`` is no hub id.
    """
    from huggingface_hub import hf_hub_download

    return Index.of(_read_json(Path(hf_hub_download(model, INDEX))), model)


def refuse_pickle(path: Path) -> None:
    """Refuse a file of weights that is pickled, or no safetensors.

    Raises:
        ModelError: it is.
    """
    if path.suffix.lower() in PICKLED:
        raise ModelError(f"{path} is pickled, and loading it could run code; {CONVERT}")
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"{path} is not a .safetensors checkpoint; give one, or a folder in diffusers layout"
        )


def refuse_pickled_components(folder: Path) -> None:
    """Find components that have pickled weights and no safetensors, or whose shards are, before any library opens them.

    Raises:
        ModelError: there is one, or the folder is no pipeline.
    """
    if not (folder / INDEX).is_file():
        read_index(folder)
    for component in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = [path.suffix.lower() for path in component.iterdir()]
        if any(suffix in PICKLED for suffix in files) and ".safetensors" not in files:
            raise ModelError(
                f"{component} holds pickled weights only, and loading them could run code; {CONVERT}"
            )
        for shards in sorted(component.glob("*.safetensors.index*.json")):
            _check_shards(shards)


def variant_of(folder: Path, index: Index) -> str | None:
    """``fp16`` where a component has its weights in that variant only; None if the plain ones are all there."""
    for name in index.components:
        weights = [path.name for path in (folder / name).glob("*.safetensors")]
        if weights and all(".fp16" in each for each in weights):
            return "fp16"
    return None


def _check_shards(path: Path) -> None:
    document = _read_json(path)
    named = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(named, dict):
        raise ModelError(f"{path} is no index of shards: it has no weight_map")
    for shard in sorted({str(each) for each in named.values()}):
        if Path(shard).name != shard:
            raise ModelError(f"{path} names the shard '{shard}', which lies outside of its folder")
        if Path(shard).suffix.lower() != ".safetensors":
            raise ModelError(
                f"{path} names the shard '{shard}', which is pickled, and loading it could run code; {CONVERT}"
            )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelError(f"cannot read {path}: {problem}") from None


def _is_known(module: str) -> bool:
    """Whether a component's class comes from a library that is there anyway, and not from the model's folder."""
    if module in LIBRARIES:
        return True
    spec = find_spec("diffusers")
    if spec is None or not module.isidentifier():
        return False
    pipelines = [Path(place) / "pipelines" for place in spec.submodule_search_locations or ()]
    return any(
        (place / module).is_dir() for each in pipelines for place in (each, each / "deprecated", each.parent)
    )


def _is_served(class_name: str) -> bool:
    known = supported_classes()
    if class_name in known:
        return True
    import diffusers

    found = getattr(diffusers, class_name, None)
    return isinstance(found, type) and any(base.__name__ in known for base in found.__mro__)
