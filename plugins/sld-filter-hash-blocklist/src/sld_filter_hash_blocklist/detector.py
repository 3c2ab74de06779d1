"""The filter: how near a picture's hash is to that of a known one."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageOps

from sld_filter_hash_blocklist import BlocklistOptions, __version__
from sld_filter_hash_blocklist.hashes import hash_of, read_list
from sldcore.errors import ConfigurationError
from sldcore.filters.base import PictureContext
from sldcore.types import Verdict

CATEGORY = "known"


class HashBlocklist:
    """Scores a picture with the share of bits that its hash has in common with the nearest known one."""

    name = "hash-blocklist"
    version = __version__

    def __init__(self, options: BlocklistOptions) -> None:
        self._known = read_list(options.file, options.algorithm)
        self._mirrored = options.mirrored
        self._bits = self._known.side**2
        if options.radius >= self._bits // 4:
            raise ConfigurationError(
                f"a radius of {options.radius} bits of {self._bits} would flag pictures that are not alike; "
                f"give option 'radius' less than {self._bits // 4}"
            )
        self._threshold = (self._bits - options.radius) / self._bits

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        """One verdict per picture.

        Raises:
            TypeError: one is not a picture.
        """
        return [self._verdict(picture) for picture in pictures]

    def _verdict(self, picture: Image.Image) -> Verdict:
        if not isinstance(picture, Image.Image):
            raise TypeError(f"a picture must be a PIL picture, got {picture!r:.80}")
        views = [picture, ImageOps.mirror(picture)] if self._mirrored else [picture]
        found = [
            self._known.nearest(hash_of(view, self._known.algorithm, self._known.side)) for view in views
        ]
        place, different = min(found, key=lambda each: each[1])
        score = (self._bits - different) / self._bits
        flagged = score >= self._threshold
        label = self._known.labels[place] or f"number {place + 1}"
        return Verdict(
            filter=self.name,
            version=self.version,
            flagged=flagged,
            scores={CATEGORY: score},
            thresholds={CATEGORY: self._threshold},
            reason=f"differs in {different} of {self._bits} bits from known picture {label}"
            if flagged
            else "",
            weights=self._known.digest,
        )
