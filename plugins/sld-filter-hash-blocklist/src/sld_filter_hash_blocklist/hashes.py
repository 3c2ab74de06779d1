"""Perceptual hashes of pictures, and lists of them on disk.

A list is text: comments after ``#``, at most one line ``algorithm: NAME``, and lines with a hash and, if wanted, a label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sldcore.documents import write_text_atomically
from sldcore.errors import ConfigurationError, listed

ALGORITHMS: Final = {
    "phash": imagehash.phash,
    "dhash": imagehash.dhash,
    "ahash": imagehash.average_hash,
}
"""phash compares low frequencies of brightness, dhash neighbours, ahash each place with the mean."""

LARGEST_LIST: Final = 512 << 20
"""Bytes of the largest list that is read."""

SIDES: Final = (8, 16, 32)
"""Sides of a hash: 64, 256 or 1024 bits."""

_HASH: Final = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Entry:
    """One known picture: bits of its hash as True and False, [side * side], and what it is called."""

    bits: NDArray[np.bool_]
    label: str = ""

    @property
    def text(self) -> str:
        """The hash in hexadecimal digits."""
        return np.packbits(self.bits).tobytes().hex()


@dataclass(frozen=True, slots=True)
class HashList:
    """Known pictures: ``packed`` [N, bits / 8] holds their hashes, ``digest`` is the start of the file's sha256."""

    algorithm: str
    side: int
    packed: NDArray[np.uint8]
    labels: tuple[str, ...]
    digest: str

    def nearest(self, bits: NDArray[np.bool_]) -> tuple[int, int]:
        """The known picture whose hash is nearest, and in how many bits it differs."""
        different = _COUNT[self.packed ^ np.packbits(bits)].sum(1)
        place = int(different.argmin())
        return place, int(different[place])


_COUNT: Final = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint16)


def hash_of(picture: Image.Image, algorithm: str, side: int) -> NDArray[np.bool_]:
    """The bits of a picture's hash, [side * side]."""
    made = ALGORITHMS[algorithm](picture.convert("RGB"), hash_size=side)
    return np.asarray(made.hash, np.bool_).ravel()


def is_plain(bits: NDArray[np.bool_]) -> bool:
    """Whether a hash is that of every picture of one colour, black ones included."""
    return min(int(bits.sum()), int((~bits).sum())) <= 1


def read_list(path: str, algorithm: str | None = None) -> HashList:
    """Read a list of hashes; ``algorithm`` made them, if the list does not say.

    Raises:
        ConfigurationError: the list cannot be read, is empty, holds something else, or was made by another algorithm.
    """
    content = _content(path)
    said, entries = None, []
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if line.startswith("algorithm:"):
            said = _algorithm(line.partition(":")[2].strip(), f"{path}, line {number}")
        elif line:
            entries.append(_entry(line, f"{path}, line {number}"))
    if algorithm and said and algorithm != said:
        raise ConfigurationError(
            f"{path} was made with {said}, and option 'algorithm' says {algorithm}; leave the option out"
        )
    sizes = sorted({len(entry.bits) for entry in entries})
    if len(sizes) != 1:
        what = "no hashes" if not sizes else f"hashes of {' and '.join(map(str, sizes))} bits"
        raise ConfigurationError(f"{path} holds {what}; give hashes of one length, one per line")
    return HashList(
        algorithm=algorithm or said or "phash",
        side=round(sizes[0] ** 0.5),
        packed=np.stack([np.packbits(entry.bits) for entry in entries]),
        labels=tuple(entry.label for entry in entries),
        digest=sha256(content).hexdigest()[:16],
    )


def write_list(path: str, algorithm: str, entries: Iterable[Entry]) -> None:
    """Write a list in one piece."""
    lines = [f"{entry.text} {entry.label}".rstrip() for entry in entries]
    write_text_atomically(path, "\n".join([f"algorithm: {algorithm}", *lines]) + "\n")


def _content(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_LIST + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ConfigurationError(
            f"cannot read {path}: {reason}; 'sld hash-blocklist build' makes a list of a folder of pictures"
        ) from None
    if len(content) > LARGEST_LIST:
        raise ConfigurationError(f"{path} is larger than {LARGEST_LIST:,} bytes; is this the right file?")
    return content


def _algorithm(name: str, where: str) -> str:
    if name not in ALGORITHMS:
        raise ConfigurationError(f"{where}: unknown algorithm '{name}' (available: {listed(ALGORITHMS)})")
    return name


def _entry(line: str, where: str) -> Entry:
    text, _, label = line.partition(" ")
    text = text.lower()
    if not _HASH.fullmatch(text) or 4 * len(text) not in {side * side for side in SIDES}:
        raise ConfigurationError(
            f"{where}: '{text:.40}' is no hash; a line starts with 16, 64 or 256 hexadecimal digits"
        )
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)).astype(np.bool_)
    if is_plain(bits):
        raise ConfigurationError(
            f"{where}: {text:.40} is the hash of every picture of one colour, and would flag all of them; take it out"
        )
    return Entry(bits, label.strip())
