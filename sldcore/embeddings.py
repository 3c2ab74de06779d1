"""Concept embeddings: tensors in place of a concept's text, from safetensors files beside the pack.

    embedding: {file: smoke.safetensors, kind: tokens, family: stable-diffusion, width: 768}

``hidden-states`` are used as they are: one tensor [L, D], or one for each text argument of the family's denoiser, by
name ([D] for pooled ones). ``tokens`` are vectors [n, D] that stand in the text encoder's input where n words would,
behind the pack's prefix. Files are checked when the pack is read, without torch, and again against the pipeline when
they are used. Pickle is never read.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from sldcore.documents import Strict
from sldcore.errors import ConceptError, listed
from sldcore.types import ConceptEmbedding

if TYPE_CHECKING:
    from torch import Tensor

SIZE_LIMIT: Final = 32 << 20
"""The largest file that is read, in bytes: 32 MiB."""

_SUFFIX: Final = ".safetensors"
_PICKLE: Final = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_EXPONENTS: Final = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF << 52),
}
"""Floating types that are read: an unsigned type of the same size, and the bits that are all set in NaN and Inf."""


class PackEmbedding(Strict):
    """A pack's reference to an embedding; ``file`` lies in the pack's folder or below."""

    file: str = Field(min_length=1)
    kind: Literal["hidden-states", "tokens"]
    family: str = Field(min_length=1)
    width: int = Field(gt=0, strict=True)

    _located: ConceptEmbedding | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        _require_safe_name(self.file)
        # Without a folder, as for a pack that is text alone, the reference is all that can be checked.
        if info.context and (folder := info.context.get("folder")) is not None:
            self._located = _inspect(Path(folder), self)
        return self

    def located(self) -> ConceptEmbedding:
        """Where the embedding is.

        Raises:
            ConceptError: the pack was not read from a file, so that nobody knows its folder.
        """
        if self._located is None:
            raise ConceptError(
                f"embedding '{self.file}': the pack's folder is not known; read the pack from its file with load_pack(path)"
            )
        return self._located


def read_embedding(embedding: ConceptEmbedding) -> dict[str, Tensor]:
    """The tensors of an embedding by name, as checked when its pack was read.

    Raises:
        ConceptError: the file cannot be read, or is not what it was when the pack was read.
    """
    from safetensors.torch import load

    content = _content(embedding.path)
    if sha256(content).hexdigest() != embedding.digest:
        raise ConceptError(f"{embedding.path} has changed since its pack was read; read the pack again")
    tensors: dict[str, Tensor] = load(content)
    return tensors


def _require_safe_name(file: str) -> None:
    suffix = PurePosixPath(file).suffix.lower()
    if suffix in _PICKLE:
        raise ValueError(
            f"'{file}' is a pickle, which can run code when it is read; convert it to {_SUFFIX} with safetensors.torch.save_file"
        )
    if suffix != _SUFFIX:
        raise ValueError(f"'{file}' must be a {_SUFFIX} file")
    windows = PureWindowsPath(file)
    if (
        file.startswith("/")
        or windows.drive
        or windows.root
        or "\\" in file
        or ".." in PurePosixPath(file).parts
    ):
        raise ValueError(
            f"'{file}' must be a path inside the pack's folder, relative, with '/' between its parts and without '..'"
        )


def _inspect(folder: Path, given: PackEmbedding) -> ConceptEmbedding:
    """Read the file and check all that can be known without a pipeline."""
    try:
        path = (folder / given.file).resolve()
        inside = path.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as problem:  # a name with a NUL, a link to itself
        raise ConceptError(f"'{given.file}' cannot be found: {problem}") from None
    if not inside:
        raise ConceptError(f"'{given.file}' is a link out of the pack's folder; put the file itself there")
    content = _content(path, shown=given.file)
    tensors = _tensors(content, given.file)
    _require_shapes(tensors, given)
    for name, tensor in tensors.items():
        _require_finite(name, tensor, given.file)
    return ConceptEmbedding(path, sha256(content).hexdigest(), given.kind, given.family, given.width)


def _content(path: Path, shown: str = "") -> bytes:
    shown = shown or str(path)
    try:
        if not path.is_file():
            raise ConceptError(f"there is no file '{shown}'; it must lie beside the pack")
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except OSError as problem:
        raise ConceptError(f"cannot read '{shown}': {problem.strerror or problem}") from None
    if len(content) > SIZE_LIMIT:
        raise ConceptError(
            f"'{shown}' is larger than the {SIZE_LIMIT:,} bytes that are read; is this the right file?"
        )
    return content


def _tensors(content: bytes, file: str) -> dict[str, dict[str, Any]]:
    """Type, shape and bytes of each tensor by name."""
    from safetensors import SafetensorError, deserialize

    try:
        return dict(deserialize(content))  # type: ignore[no-untyped-call]
    except SafetensorError as problem:
        raise ConceptError(f"'{file}' is not a safetensors file: {problem}") from None


def _require_shapes(tensors: dict[str, dict[str, Any]], given: PackEmbedding) -> None:
    shapes = [tuple(tensor["shape"]) for tensor in tensors.values()]
    ranks = [len(shape) for shape in shapes]
    if given.kind == "tokens":
        what, right = "one tensor of tokens [n, width]", ranks in ([1], [2])
    else:
        what = "hidden states [L, width], and [width] for a pooled text argument"
        right = 2 in ranks and all(rank in (1, 2) for rank in ranks)
    if not right or any(0 in shape for shape in shapes):
        found = listed(f"{name} {tensor['shape']}" for name, tensor in tensors.items())
        raise ConceptError(f"'{given.file}' must hold {what} for kind {given.kind} (found: {found})")
    checked = [shape for shape in shapes if len(shape) == 2 or given.kind == "tokens"]
    if wrong := {str(shape[-1]) for shape in checked if shape[-1] != given.width}:
        raise ConceptError(
            f"'{given.file}' holds vectors of width {listed(wrong)}, and the pack says width {given.width}"
        )


def _require_finite(name: str, tensor: dict[str, Any], file: str) -> None:
    import numpy as np

    if tensor["dtype"] not in _EXPONENTS:
        raise ConceptError(
            f"tensor '{name}' of '{file}' is {tensor['dtype']}; save it as one of {listed(_EXPONENTS)}"
        )
    kind, exponent = _EXPONENTS[tensor["dtype"]]
    bits = np.frombuffer(tensor["data"], dtype=kind)
    if ((bits & bits.dtype.type(exponent)) == exponent).any():
        raise ConceptError(f"tensor '{name}' of '{file}' holds NaN or Inf; train or export it again")
