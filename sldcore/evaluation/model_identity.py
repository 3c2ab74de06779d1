"""What identifies the model of a run: its name, revision and weights, read from files without loading any of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from sldcore.errors import ModelError
from sldcore.loading import PLAYGROUND
from sldcore.playground import MODEL

_DECIDING: Final = (".safetensors", ".gguf", ".json", ".txt", ".model")
"""Endings of the files that decide what a pipeline computes: weights, configs, tokenizers."""
_BLOB: Final = re.compile(r"[0-9a-f]{64}")
_CHUNK: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """``weights`` is a sha256 over weights, configs and tokenizers, first 16 hex digits; ``revision`` the hub's, or empty.

    ``scheduler`` is the class of the model's own scheduler, empty where only loading would tell.
    """

    model: str
    revision: str
    weights: str
    scheduler: str


def identify(model: str, loading: Mapping[str, Any] | None = None) -> ModelIdentity:
    """Look at the files of a model, which must be there: hub ids are looked for in the local cache.

    Args:
        model: As for ``load_pipeline``.
        loading: Its further options, of which ``transformer`` and ``config`` name files that count too.

    Raises:
        ModelError: there are no such files.
    """
    options = loading or {}
    place, revision = _place_of(model)
    more = [Path(options[name]) for name in ("transformer", "config") if options.get(name) is not None]
    for path in more:
        if not path.exists():
            raise ModelError(f"{path}: no such file or folder")
    digest = sha256()
    for path in [place, *more]:
        for name, file in _files_of(path):
            digest.update(f"{name}\0{_hash_of(file)}\0".encode())
    return ModelIdentity(model, revision, digest.hexdigest()[:16], _scheduler_of(place))


def _place_of(model: str) -> tuple[Path, str]:
    if model == PLAYGROUND:
        return MODEL, ""
    path = Path(model)
    if path.is_file() or (path / "model_index.json").is_file():
        return path, ""
    if path.is_dir():
        raise ModelError(f"no model in '{model}': a folder in diffusers layout has a model_index.json")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        raise ModelError(
            f"no model '{model}' here; give 'playground', a folder in diffusers layout, a .safetensors checkpoint, or a hub id that "
            "has been downloaded (`sld generate` with it once does that)"
        ) from None
    return folder, folder.name


def _files_of(place: Path) -> list[tuple[str, Path]]:
    if place.is_file():
        return [("", place)]
    found = [path for path in place.rglob("*") if path.suffix in _DECIDING and path.is_file()]
    # Logs of training and the like lie beside the components and decide nothing.
    own = [path for path in found if path.parent != place or path.name == "model_index.json"]
    return sorted((path.relative_to(place).as_posix(), path) for path in own)


def _hash_of(file: Path) -> str:
    """The sha256 of a file; in the hub's cache large files are named by it, and need not be read."""
    if file.is_symlink() and _BLOB.fullmatch(Path(os.readlink(file)).name):
        return Path(os.readlink(file)).name
    digest = sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _scheduler_of(place: Path) -> str:
    try:
        config = json.loads((place / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        return str(config["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
