"""The detector itself; importing this loads ONNX Runtime, and never NudeNet's own code, which wants OpenCV."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from sld_filter_nudenet import NudeNetOptions, __version__
from sld_filter_nudenet.conventions import CONVENTIONS
from sld_filter_nudenet.detections import Detection, detections, network_input
from sldcore.errors import ModelError
from sldcore.filters.base import PictureContext
from sldcore.types import Box, Verdict


class NudeNet:
    """Scores the body parts of a convention: the best detection of each, 0 without one. One picture at a time.

    Raises:
        ModelError: the weights are missing, cannot be read, or do not know the convention's parts.
    """

    name, version = "nudenet", __version__

    def __init__(self, options: NudeNetOptions) -> None:
        self._convention, self._swapped = options.convention, options.channels == "bgr"
        convention = CONVENTIONS[options.convention]
        limit = convention.threshold if options.threshold is None else options.threshold
        self._thresholds = dict.fromkeys(convention.parts, limit)
        data = _weights_file().read_bytes()
        self._weights = sha256(data).hexdigest()[:16]
        self._session = _session(data, options.threads)
        self._labels = _labels(self._session.get_modelmeta().custom_metadata_map, convention.parts)

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        """One verdict per picture, with boxes of the convention's parts."""
        return [self._verdict(picture) for picture in pictures]

    def _verdict(self, picture: Image.Image) -> Verdict:
        pixels = np.asarray(picture.convert("RGB"))
        height, width = pixels.shape[:2]
        (output,) = self._session.run(None, {"images": network_input(pixels, self._swapped)})
        found = [
            each
            for each in detections(output[0], width, height)
            if self._labels[each.label] in self._thresholds
        ]
        scores = dict.fromkeys(self._thresholds, 0.0)
        for each in found:
            part = self._labels[each.label]
            scores[part] = max(scores[part], each.score)
        seen = [part for part, score in scores.items() if score >= self._thresholds[part]]
        return Verdict(
            filter=self.name,
            version=self.version,
            flagged=bool(seen),
            scores=scores,
            thresholds=self._thresholds,
            reason=f"NudeNet ({self._convention}): {', '.join(seen)}" if seen else "",
            boxes=tuple(self._box(each, width, height) for each in found if _has_area(each)),
            weights=self._weights,
        )

    def _box(self, each: Detection, width: int, height: int) -> Box:
        return Box(
            category=self._labels[each.label],
            score=each.score,
            left=each.left / width,
            top=each.top / height,
            right=each.right / width,
            bottom=each.bottom / height,
        )


def _has_area(each: Detection) -> bool:
    """False for what was found in the black beside the picture: covering that would cover nothing."""
    return each.right > each.left and each.bottom > each.top


def _weights_file() -> Path:
    spec = find_spec("nudenet")
    places = [Path(place) / "320n.onnx" for place in (spec and spec.submodule_search_locations) or ()]
    for place in places:
        if place.is_file():
            return place
    missing = f"has no {places[0].name}" if places else "is not installed"
    raise ModelError(
        f"the filter 'nudenet' needs NudeNet's weights, and nudenet {missing}; install nudenet 3.4"
    )


def _session(data: bytes, threads: int) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ModelError(f"NudeNet's weights cannot be read: {error}; install nudenet 3.4 anew") from error


def _labels(metadata: Mapping[str, str], parts: Sequence[str]) -> dict[int, str]:
    """Categories by class number, as the weights themselves name them."""
    names: dict[int, str] = ast.literal_eval(metadata.get("names", "{}"))
    labels = {number: name.lower().replace("_", "-") for number, name in names.items()}
    unknown = sorted(set(parts) - set(labels.values()))
    if unknown:
        raise ModelError(f"NudeNet's weights do not know {', '.join(unknown)}; install nudenet 3.4")
    return labels
