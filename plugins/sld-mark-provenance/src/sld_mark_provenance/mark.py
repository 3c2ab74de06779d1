"""The mark: what is said of a picture, and when it is signed."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, Final

from PIL import Image

from sld_mark_provenance import ProvenanceOptions, __version__
from sld_mark_provenance.signing import Signer, credentials_of
from sldcore import __version__ as core_version
from sldcore.documents import write_bytes_atomically
from sldcore.errors import ConfigurationError, PluginError
from sldcore.filters.base import PictureContext
from sldcore.types import Report

MADE_BY_AI: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's digital source type for what a trained model made."""

ACTIONS: Final = "c2pa.actions.v2"
POLICY: Final = "org.sldcore.policy"
"""Label of the assertion with policy, digest, filters and action."""


class Provenance:
    """Signs files. :meth:`mark` leaves pictures as they are; :meth:`mark_bytes` and :meth:`mark_file` put the mark on.

    Raises:
        ConfigurationError: certificate and key cannot be read, or nothing can be signed with them.
    """

    name = "provenance"
    version = __version__

    def __init__(self, options: ProvenanceOptions) -> None:
        self._signer = Signer(options.certificate, options.key, options.algorithm, options.timestamp_url)
        self._try_out(options)

    def mark(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Image.Image]:
        """Copies: a signature covers a file, and there is none yet."""
        return [picture.copy() for picture in pictures]

    def mark_bytes(self, content: bytes, report: Report) -> bytes:
        """The content of a picture file with signed credentials; text chunks and pixels stay as they are.

        Raises:
            PluginError: it cannot be signed, or what was signed does not hold.
        """
        signed = self._signer.signed(content, manifest_of(report))
        found = credentials_of(signed)
        if found is None or not found.whole:
            problems = ", ".join(found.problems) if found else "none were written"
            raise PluginError(
                f"the content credentials do not hold ({problems}); is the certificate still valid?"
            )
        return signed

    def mark_file(self, path: str | PathLike[str], report: Report) -> None:
        """Sign a picture file in place; readers see the old file or the signed one.

        Raises:
            PluginError: as :meth:`mark_bytes`.
        """
        write_bytes_atomically(path, self.mark_bytes(Path(path).read_bytes(), report))

    def _try_out(self, options: ProvenanceOptions) -> None:
        data = BytesIO()
        Image.new("RGB", (8, 8)).save(data, "PNG")
        try:
            self.mark_bytes(data.getvalue(), Report("", None, "", "", {}))
        except PluginError as problem:
            raise ConfigurationError(
                f"nothing can be signed with certificate {options.certificate}, key {options.key} and algorithm "
                f"{options.algorithm}: {problem}"
            ) from None


def manifest_of(report: Report) -> dict[str, Any]:
    """What is said of a picture. The prompt is not: it may be about people."""
    made_by = {"name": "sldcore", "version": core_version}
    actions: list[dict[str, Any]] = [
        {"action": "c2pa.created", "digitalSourceType": MADE_BY_AI, "softwareAgent": made_by}
    ]
    if report.action in ("blur", "pixelate", "black", "replace"):
        actions.append(
            {"action": "c2pa.edited", "softwareAgent": made_by, "parameters": {"description": report.action}}
        )
    policy = {
        "policy": report.policy,
        "policy_digest": report.policy_digest,
        "concepts": sorted(report.concepts),
        "filters": [f"{verdict.filter} {verdict.version}" for verdict in report.verdicts],
        "action": report.action,
        "marks": list(report.marks),
    }
    return {
        "claim_generator_info": [made_by],
        "title": "picture made by AI",
        "assertions": [{"label": ACTIONS, "data": {"actions": actions}}, {"label": POLICY, "data": policy}],
    }
