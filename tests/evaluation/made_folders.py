"""Run folders with drawn pictures of two methods, for tests of measures."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_runs import plan, sample

from sldcore.evaluation.records import Sample
from sldcore.evaluation.run_folder import RunFolder


def run_in(path: Path) -> RunFolder:
    """A run of the methods off and max without samples."""
    folder = RunFolder(path)
    folder.claim(plan().document(), 2)
    return folder


def noise(seed: int, size: int = 8, bright: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, bright, (size, size, 3), dtype=np.uint8)


def put(folder: RunFolder, method: str, item: int, pixels: np.ndarray, **changes: Any) -> Sample:
    """A sample with this picture, recorded in the folder."""
    key = sha256(f"{method} {item}".encode()).hexdigest()
    given = {"pixels": sha256(pixels.tobytes()).hexdigest(), **changes}
    made = sample(key, str(item), method, **given)
    path = folder.picture_of(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    folder.add_samples("a", [made])
    return made
