"""Existing pictures reviewed with a policy's filters, wherever they come from: the chain that reviews what the engine makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from sldcore.catalogue import using
from sldcore.concepts import resolve
from sldcore.errors import PolicyError
from sldcore.filters.base import PictureContext
from sldcore.filters.chain import Chain, Findings
from sldcore.policy import SafetyPolicy
from sldcore.resolution import catalogue_for
from sldcore.review import decide
from sldcore.types import Report


class PictureReview:
    """The filters of one policy, for any number of pictures.

    Args:
        policy: whose filters review; ``on_error`` does not matter here: what could not be reviewed has failed.
        chain: where filters are kept that others use too; one of its own by default.

    Raises:
        PolicyError: the policy has no filters.
        ConfigurationError: a filter cannot be had or made.
    """

    def __init__(self, policy: SafetyPolicy, chain: Chain | None = None) -> None:
        if not policy.filters:
            raise PolicyError(
                f"policy '{policy.name}' has no filters, so nothing would be reviewed; add some, such as "
                f"`filters: [opennsfw]` (`sld filters list` shows what there is)"
            )
        self.policy = policy
        # Prompt filters and marks have no part in this, and may have weights to load.
        self._policy = policy.replace(prompt_filters=(), marks=())
        self._catalogue = catalogue_for([policy])
        self._chain = Chain() if chain is None else chain
        with using(self._catalogue):
            self._chain.prepare([self._policy])
            used = [each.concept for each in resolve(policy.concepts)]
        concepts = {concept.id: (concept.text,) for concept in used}
        self._context = PictureContext("", None, self._policy, concepts)
        self.blank = Report("", None, policy.name, policy.digest, concepts)
        """The report of a picture of which nothing is known."""

    def findings(self, pictures: Sequence[Image.Image]) -> list[Findings]:
        """What the filters say of each picture, in order; RGB pictures of one size are reviewed together."""
        sizes: dict[tuple[int, int], list[int]] = {}
        for index, picture in enumerate(pictures):
            sizes.setdefault(picture.size, []).append(index)
        found: dict[int, Findings] = {}
        for members in sizes.values():
            pixels = np.stack([np.asarray(pictures[index], dtype=np.float32) for index in members])
            pixels /= np.float32(255)  # [B, H, W, 3]
            contexts = [self._context] * len(members)
            with using(self._catalogue):
                said = self._chain.pictures(pixels, contexts, [False] * len(members))
            found.update(zip(members, said, strict=True))
        return [found[index] for index in range(len(pictures))]


def judged_report(report: Report, findings: Findings, policy: SafetyPolicy) -> Report:
    """The report with what the filters said of something that was not made here.

    ``action`` is what the policy does when it has no further attempts; ``block`` if a filter failed, whatever ``on_error`` says.
    """
    if findings.failures:
        verdicts, errors = tuple(findings.verdicts), tuple(findings.failures)
        return replace(report, verdicts=verdicts, errors=errors, action="block")
    return decide(report, findings, policy)


def categories_of(findings: Findings) -> tuple[str, ...]:
    """The categories that were flagged, by filters that act; a filter's name where it has no categories."""
    named = (name for _, verdict in findings.flagged_by for name in verdict.above or (verdict.filter,))
    return tuple(dict.fromkeys(named))
