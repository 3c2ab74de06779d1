"""Converts the original Q16 prompts, a pickled NumPy array, to safetensors, without executing the pickle.

    python -c "from sldcore.filters.q16_convert import convert; convert('prompts.p', 'q16.safetensors')"

A pickle is a program that names any functions and calls them. Here the program may use only the instructions that an array
needs, and the three names that it needs stand for inert records of this module: no class or function of the file's choice is
ever looked up. What the records hold is checked, and read as plain numbers.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sldcore.documents import write_bytes_atomically
from sldcore.errors import ModelError
from sldcore.filters.q16 import TENSOR

SIZE_LIMIT: Final = 1 << 20
"""The largest file that is read, in bytes; the original has three thousand."""

_INSTRUCTIONS: Final = frozenset(
    [
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "GLOBAL",
        "STACK_GLOBAL",
        "REDUCE",
        "BUILD",
        "NEWTRUE",
        "NEWFALSE",
        "NONE",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BYTEARRAY8",
        "PUT",
        "BINPUT",
        "MEMOIZE",
        "GET",
        "BINGET",
    ]
)
_TYPES: Final = {f"{order}{size}" for order in ("<f", ">f", "f") for size in (2, 4, 8)}


def convert(pickled: str | os.PathLike[str], target: str | os.PathLike[str]) -> tuple[int, int]:
    """Write the prompts of the original ``prompts.p`` as the safetensors file that the filter ``q16`` reads.

    Args:
        pickled: The original file.
        target: The file to write, ``.safetensors``.

    Returns:
        The shape of what was written: two prompts, and the width of the model's embeddings.

    Raises:
        ModelError: the file cannot be read, is not a pickled array of two prompts, or asks for anything else.
    """
    from safetensors.numpy import save

    if Path(target).suffix.lower() != ".safetensors":
        raise ModelError(f"{os.fspath(target)} must end in .safetensors, which is what is written")
    prompts = read_array(pickled)
    if prompts.ndim != 2 or len(prompts) != 2 or not prompts.shape[1]:
        raise ModelError(
            f"{os.fspath(pickled)} holds an array of {list(prompts.shape)}; Q16 has two prompts, [2, D]"
        )
    if not np.isfinite(prompts).all():
        raise ModelError(f"{os.fspath(pickled)} holds numbers that are not finite")
    write_bytes_atomically(target, save({TENSOR: prompts}))
    return prompts.shape[0], prompts.shape[1]


def read_array(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """The one NumPy array of floats in a pickle, as float32.

    Raises:
        ModelError: the file cannot be read, is too large, or holds anything but such an array.
    """
    content = _content(path)
    try:
        for instruction, argument, _ in pickletools.genops(content):
            if instruction.name not in _INSTRUCTIONS:
                raise pickle.UnpicklingError(f"it uses {instruction.name}, which no array needs")
            if instruction.name == "PUT" and int(argument or 0) > len(content):
                raise pickle.UnpicklingError("it asks for more memory than an array needs")
        return _numbers(_Inert(io.BytesIO(content), encoding="latin1").load())
    except Exception as problem:
        raise ModelError(
            f"{os.fspath(path)} is not a pickled array of floats: {problem}. Nothing in it was executed"
        ) from None


class _Type:
    """In place of ``numpy.dtype``."""

    def __init__(self, name: str, align: object = False, copy: object = True) -> None:
        self.name = name
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """In place of a NumPy array, and of what makes an empty one."""

    state: tuple[Any, ...] = ()

    def __init__(self, kind: object, shape: object, typecode: object) -> None:
        if kind is not _Kind:
            raise pickle.UnpicklingError("it makes something that is no array")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


def _from_buffer(raw: object, kind: object, shape: object, order: object) -> _Array:
    """In place of what makes an array in protocol 5."""
    array = _Array(_Kind, (0,), b"b")
    array.state = (1, shape, kind, order == "F", raw)
    return array


class _Kind:
    """In place of ``numpy.ndarray``, which pickles only name."""

    def __init__(self) -> None:
        raise pickle.UnpicklingError("it makes an array in an unusual way")


def _encoded(text: str, codec: str) -> bytes:
    """In place of ``_codecs.encode``, by which pickles before protocol 3 spell bytes."""
    if codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes bytes as {codec}")
    return text.encode("latin1")


_NAMES: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): _Kind,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encoded,
}


class _Inert(pickle.Unpickler):
    """Builds records of this module only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return _NAMES[module, name]


def _numbers(found: object) -> NDArray[np.float32]:
    if not isinstance(found, _Array) or len(found.state) != 5:
        raise pickle.UnpicklingError(f"it holds {type(found).__name__.strip('_').lower()}, not one array")
    _, shape, kind, columns_first, raw = found.state
    if not isinstance(kind, _Type) or f"{kind.order}{kind.name}" not in _TYPES:
        raise pickle.UnpicklingError(f"its numbers are of type {getattr(kind, 'name', kind)!r}, not floats")
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    order: Any = "F" if columns_first else "C"
    numbers = np.frombuffer(raw, np.dtype(f"{kind.order}{kind.name}")).reshape(shape, order=order)
    return np.ascontiguousarray(numbers, dtype=np.float32)


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except OSError as problem:
        raise ModelError(f"cannot read {os.fspath(path)}: {problem.strerror}") from None
    if len(content) > SIZE_LIMIT:
        raise ModelError(
            f"{os.fspath(path)} has more than {SIZE_LIMIT:,} bytes; the prompts of Q16 have three thousand"
        )
    return content
