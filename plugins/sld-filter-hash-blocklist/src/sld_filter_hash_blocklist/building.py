"""From a folder of pictures to a list of hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sld_filter_hash_blocklist.hashes import ALGORITHMS, SIDES, Entry, hash_of, is_plain, write_list
from sldcore.errors import ConfigurationError, listed


@dataclass(frozen=True, slots=True)
class Built:
    """What became of a folder: pictures seen, hashes written, and pictures left out because they are of one colour."""

    pictures: int
    hashes: int
    plain: tuple[Path, ...]


def build_list(
    folder: Path, out: Path, *, algorithm: str = "phash", side: int = 8, labels: bool = False
) -> Built:
    """Hash all pictures in a folder, and those in it, into the list ``out``; equal hashes once.

    Raises:
        ConfigurationError: the folder is missing, the algorithm or side is unknown, or a picture cannot be read.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigurationError(f"unknown algorithm '{algorithm}' (available: {listed(ALGORITHMS)})")
    if side not in SIDES:
        raise ConfigurationError(f"a hash has a side of 8, 16 or 32, not {side}")
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder; give one with the pictures to list")
    entries: dict[str, Entry] = {}
    plain = []
    paths = _pictures(folder)
    for path in paths:
        entry = Entry(_read_hash(path, algorithm, side), _label(path, folder) if labels else "")
        if is_plain(entry.bits):
            plain.append(path)
        else:
            entries.setdefault(entry.text, entry)
    if entries:
        write_list(str(out), algorithm, entries.values())
    return Built(len(paths), len(entries), tuple(plain))


def _pictures(folder: Path) -> list[Path]:
    suffixes = Image.registered_extensions()
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in suffixes)


def _read_hash(path: Path, algorithm: str, side: int) -> NDArray[np.bool_]:
    try:
        with Image.open(path) as picture:
            return hash_of(picture, algorithm, side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise ConfigurationError(
            f"cannot read {path}: {problem}; a list without it would not find it, so repair or remove it"
        ) from None


def _label(path: Path, folder: Path) -> str:
    return " ".join(path.relative_to(folder).as_posix().replace("#", " ").split())
