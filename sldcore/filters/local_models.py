"""Detectors of transformers in a local folder: found, checked, hashed and loaded in one way, and fed pictures in one way.

A detector that is loaded by halves judges at random and looks as if it worked. So a folder must hold safetensors, every
weight of the model must be in them, and nothing is fetched, unpickled, or run from the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image
from pydantic import Field

from sldcore.documents import Strict
from sldcore.errors import ModelError

PICKLED: Final = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".p")
WEIGHTS: Final = "model.safetensors"
THINNEST: Final = 64
"""The longest side that is judged, as a multiple of the shortest; a model would see a sliver of more, or need gigabytes."""

_ONLY_LOCAL: Final[dict[str, Any]] = {"local_files_only": True, "trust_remote_code": False}


class LocalModelOptions(Strict):
    """What the options of every detector in a folder have in common."""

    model: str = Field(
        min_length=1,
        examples=["models/detector"],
        description="folder that save_pretrained wrote: config, preprocessor and safetensors",
    )
    device: str | None = Field(
        None, description="where it runs; CUDA, then Apple's MPS, then the CPU by default"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="of the weights; scores are computed in float32"
    )
    batch_size: int = Field(8, ge=1, le=1024, description="pictures that the model sees at once")


def model_folder(model: str, what: str) -> Path:
    """The folder that ``model`` names, if it holds weights that are safe to load; ``what`` should be in it.

    Raises:
        ModelError: there is no such folder, its weights are pickled or missing, or they are an adapter to other weights.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"{model} is not a folder; give one with {what}, as save_pretrained or 'hf download' writes it "
            f"(nothing is downloaded while pictures are reviewed)"
        )
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{model} holds an adapter to weights that are elsewhere; merge them and save {what} whole"
        )
    weight_files(folder)
    return folder


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that a folder's model is loaded from: one, or the parts that its index names, sorted.

    Raises:
        ModelError: there are none, or the index cannot be read or names files that are not in the folder.
    """
    whole, index = folder / WEIGHTS, folder / f"{WEIGHTS}.index.json"
    if whole.is_file():
        return (whole,)
    if not index.is_file():
        pickled = any(path.suffix.lower() in PICKLED for path in folder.iterdir())
        problem = (
            "its weights are pickled, and loading them could run code; convert them to safetensors first"
            if pickled
            else "save_pretrained writes it"
        )
        raise ModelError(f"{folder} holds no {WEIGHTS}: {problem}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        parts = tuple(folder / name for name in names)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as problem:
        raise ModelError(f"{index} cannot be read ({problem!r:.80}); copy the folder again") from None
    for name, part in zip(names, parts, strict=True):
        if Path(name).name != name or part.suffix != ".safetensors" or not part.is_file():
            raise ModelError(
                f"{index} names '{name}', which is no safetensors file in {folder}; copy the folder again"
            )
    return parts


def weights_hash(files: Sequence[Path]) -> str:
    """First 16 hex digits of the sha256 of the files' contents, one after the other."""
    digest = sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def load_model(loader: Any, folder: Path, options: LocalModelOptions) -> Any:
    """The model of a folder on the device of the options, ready to judge.

    Args:
        loader: A class of transformers or diffusers with ``from_pretrained``.
        folder: What ``model_folder`` returned.
        options: Device and dtype.

    Raises:
        ModelError: it cannot be loaded, lacks weights, or the device cannot be used.
    """
    import torch

    where = _device(options.device)
    with explained(folder, loader.__name__):
        model, found = loader.from_pretrained(
            str(folder),
            use_safetensors=True,
            dtype=getattr(torch, options.dtype),
            output_loading_info=True,
            **_ONLY_LOCAL,
        )
    lacking = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if lacking:
        raise ModelError(
            f"{folder} lacks {len(lacking)} weights of {type(model).__name__} ('{lacking[0]}' first), which would be made up "
            f"at random; give a folder in which that model was saved whole"
        )
    return model.eval().requires_grad_(False).to(where)


def config_of(folder: Path) -> Any:
    """The configuration of a folder's model.

    Raises:
        ModelError: the folder has none that transformers knows.
    """
    from transformers import AutoConfig

    with explained(folder, "AutoConfig"):
        return AutoConfig.from_pretrained(str(folder), **_ONLY_LOCAL)


def load_image_processor(folder: Path) -> Any:
    """The picture preprocessor of a folder, on Pillow whatever else is installed, so that scores are the same everywhere.

    Raises:
        ModelError: the folder has none that can be loaded.
    """
    from transformers import AutoImageProcessor

    with explained(folder, "AutoImageProcessor"):
        return AutoImageProcessor.from_pretrained(str(folder), backend="pil", **_ONLY_LOCAL)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        ModelError: the folder has none that can be loaded.
    """
    from transformers import AutoTokenizer

    with explained(folder, "AutoTokenizer"):
        return AutoTokenizer.from_pretrained(str(folder), **_ONLY_LOCAL)


def load_processor(folder: Path) -> Any:
    """The processor of a folder, for pictures and text together; pictures through Pillow.

    Raises:
        ModelError: the folder has none that can be loaded.
    """
    from transformers import AutoProcessor

    with explained(folder, "AutoProcessor"):
        return AutoProcessor.from_pretrained(str(folder), backend="pil", **_ONLY_LOCAL)


def rgb(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures as RGB copies that a model can be shown.

    Raises:
        TypeError: one is not a picture.
        ValueError: one is too thin, closed, or broken off.
    """
    ready = []
    for number, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            raise TypeError(f"picture {number} is not a picture: {picture!r:.80}")
        if max(picture.size) > THINNEST * min(picture.size):
            raise ValueError(
                f"picture {number} is {picture.width} x {picture.height}; sides of more than {THINNEST} : 1 are not judged"
            )
        ready.append(picture.convert("RGB"))
    return ready


def embedded(
    pictures: Sequence[Image.Image],
    processor: Any,
    model: Any,
    batch_size: int,
    forward: Callable[[Any], Any],
) -> Any:
    """What ``forward`` makes of the pictures' pixels, [len(pictures), ...], float32 on the host.

    ``forward`` gets [b, 3, H, W] on the model's device and in its dtype, ``batch_size`` pictures at a time.

    Raises:
        ValueError: a number that the model gives is not finite.
    """
    import torch

    parts = []
    with torch.inference_mode():
        for some in in_batches(rgb(pictures), batch_size):
            # Told, since a picture one pixel or three high could be read with its channels first.
            pixels = processor(images=list(some), return_tensors="pt", input_data_format="channels_last")
            parts.append(forward(pixels["pixel_values"].to(model.device, model.dtype)).float().cpu())
    return finite(torch.cat(parts))


def finite(values: Any) -> Any:
    """The tensor itself.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    if not values.isfinite().all():
        raise ValueError("the model gives numbers that are not finite; try dtype float32")
    return values


def unit(vectors: Any) -> Any:
    """The vectors, [..., D], each made one long; a zero vector stays."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def in_batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items in runs of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def explained(folder: Path, wanted: str) -> Iterator[None]:
    """One clear error for whatever a library says about a folder that it cannot read.

    Raises:
        ModelError: something inside the ``with`` block failed.
    """
    try:
        yield
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ModelError(
            f"cannot load {wanted} from {folder} ({problem}); give a folder that its save_pretrained wrote"
        ) from error


def _device(device: str | None) -> Any:
    import torch

    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        reason = str(problem).splitlines()[0]
        raise ModelError(
            f"device '{device}' cannot be used here: {reason}; leave it out for the best there is, or give cpu"
        ) from None
    return where
