"""Copies of models in miniature by pickle: ``copy.deepcopy`` goes through their thousands of small objects in Python."""

from __future__ import annotations

import pickle
from copy import deepcopy
from io import BytesIO
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn


def copied(original: Any) -> Any:
    """As ``copy.deepcopy``, of a part that nobody changes: what a module is made of is looked at the first time only."""
    if not isinstance(original, nn.Module):
        return deepcopy(original)
    if original not in _KEPT:
        _KEPT[original] = _taken_apart(original)
    apart = _KEPT[original]
    return deepcopy(original) if apart is None else _Unpickler(*apart).load()


_KEPT: WeakKeyDictionary[nn.Module, tuple[bytes, list[Tensor]] | None] = WeakKeyDictionary()


def _taken_apart(module: nn.Module) -> tuple[bytes, list[Tensor]] | None:
    """All but the tensors as bytes, and the tensors, each once; None of a module with functions that no pickle can name."""
    pickler = _Pickler(file := BytesIO())
    try:
        pickler.dump(module)
    except (AttributeError, pickle.PicklingError):
        return None
    return file.getvalue(), pickler.tensors


class _Pickler(pickle.Pickler):
    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        """The place of a tensor in the list."""
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._places[id(obj)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, tensors: list[Tensor]) -> None:
        super().__init__(BytesIO(content))
        self._tensors = [_own(each) for each in tensors]

    def persistent_load(self, pid: int) -> Tensor:
        """A tensor of the copy's own; what was one in the original is one here."""
        return self._tensors[pid]


def _own(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
