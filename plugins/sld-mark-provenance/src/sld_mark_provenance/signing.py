"""Putting content credentials into files, and reading them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import c2pa
from PIL import Image

from sldcore.errors import ConfigurationError, PluginError

UNTRUSTED: Final = "signingCredential.untrusted"
"""The one thing that may be said against a signature made here: whom to trust is for those to decide who read it."""

_SETTINGS: Final = {"builder": {"thumbnail": {"enabled": False}}}
_FORMATS: Final = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "TIFF": "image/tiff"}


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a file says of itself. ``problems`` are codes of C2PA, none if file and signature are whole and trusted."""

    manifest: Mapping[str, Any]
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether the file is as it was signed."""
        return not set(self.problems) - {UNTRUSTED}

    def assertion(self, label: str) -> Any:
        """The data of one assertion, None if there is none with this label."""
        found = [each["data"] for each in self.manifest.get("assertions", ()) if each["label"] == label]
        return found[0] if found else None


class Signer:
    """Signs with one key.

    Args:
        certificate: PEM file, the signer's certificate first.
        key: PEM file.
        algorithm: The kind of key, as C2PA calls it.
        timestamp_url: A time-stamp authority, or None.

    Raises:
        ConfigurationError: a file cannot be read.
    """

    def __init__(self, certificate: str, key: str, algorithm: str, timestamp_url: str | None) -> None:
        url = timestamp_url.encode() if timestamp_url else None
        self._chain, self._key = _pem(certificate, "certificate"), _pem(key, "key")
        self._algorithm, self._url = algorithm.encode(), url

    def signed(self, content: bytes, manifest: Mapping[str, Any]) -> bytes:
        """The file with credentials.

        Raises:
            PluginError: the file is no picture that can hold credentials, or it cannot be signed.
        """
        kind = format_of(content)
        done = BytesIO()
        try:
            info = c2pa.C2paSignerInfo(self._algorithm, self._chain, self._key, self._url)
            with (
                c2pa.Signer.from_info(info) as signer,
                c2pa.Context.from_dict(_SETTINGS) as context,
                c2pa.Builder(json.dumps({**manifest, "format": kind}), context) as builder,
            ):
                builder.sign(signer, kind, BytesIO(content), done)
        except c2pa.C2paError as problem:
            raise PluginError(f"content credentials cannot be signed: {problem}") from None
        return done.getvalue()


def credentials_of(content: bytes) -> Credentials | None:
    """The credentials in a file, None if it has none.

    Raises:
        PluginError: the file is no picture that can hold credentials, or holds some that cannot be read.
    """
    try:
        with c2pa.Reader(format_of(content), BytesIO(content)) as reader:
            said = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as problem:
        raise PluginError(f"content credentials cannot be read: {problem}") from None
    problems = tuple(status["code"] for status in said.get("validation_status", ()))
    return Credentials(said["manifests"][said["active_manifest"]], problems)


def format_of(content: bytes) -> str:
    """The media type of a picture file.

    Raises:
        PluginError: it is none that can hold credentials.
    """
    try:
        with Image.open(BytesIO(content)) as picture:
            kind = picture.format or ""
    except (OSError, SyntaxError, ValueError):
        kind = ""
    if kind not in _FORMATS:
        raise PluginError(
            f"content credentials are put into {', '.join(_FORMATS)} files, and this is {kind or 'no picture'}"
        )
    return _FORMATS[kind]


def _pem(path: str, what: str) -> bytes:
    try:
        content = Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ConfigurationError(
            f"cannot read the {what} {path}: {reason}; give a PEM file as option '{what}'"
        ) from None
    if b"-----BEGIN" not in content:
        raise ConfigurationError(f"{path} is no PEM file; give one as option '{what}'")
    return content
