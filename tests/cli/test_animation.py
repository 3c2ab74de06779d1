"""Videos as files: what is written is what was shown, in one piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sldcore.cli.animation import read_account, save_webp, still
from sldcore.errors import ConfigurationError


def frames(count: int = 4) -> list[Image.Image]:
    return [Image.new("RGB", (32, 24), (60 * number, 10, 200 - 40 * number)) for number in range(count)]


def test_an_animation_holds_its_frames_in_order_at_their_pace(tmp_path: Path) -> None:
    save_webp(frames(), tmp_path / "new" / "video.webp", fps=20)
    with Image.open(tmp_path / "new" / "video.webp") as video:
        assert (video.n_frames, video.size, video.info["loop"]) == (4, (32, 24), 0)
        for number, frame in enumerate(frames()):
            video.seek(number)
            video.load()
            assert video.info["duration"] == 50
            difference = np.asarray(video.convert("RGB")).astype(int) - np.asarray(frame)
            assert np.abs(difference).max() < 12
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["video.webp"]


def test_a_single_frame_is_a_picture(tmp_path: Path) -> None:
    save_webp(frames(1), tmp_path / "video.webp", fps=8)
    with Image.open(tmp_path / "video.webp") as video:
        assert video.n_frames == 1


def test_the_account_is_found_again_whatever_its_letters(tmp_path: Path) -> None:
    save_webp(frames(), tmp_path / "video.webp", fps=8, account='{"prompt": "ein Käse 🧀"}')
    assert read_account(tmp_path / "video.webp") == {"prompt": "ein Käse 🧀"}
    save_webp(frames(), tmp_path / "plain.webp", fps=8)
    assert read_account(tmp_path / "plain.webp") is None
    assert read_account(tmp_path / "none.webp") is None


def test_what_finishes_a_file_sees_all_of_it_and_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "video.webp"
    save_webp(frames(), path, fps=8, finish=lambda content: content + b"signed")
    before = path.read_bytes()
    assert before.startswith(b"RIFF") and before.endswith(b"signed")

    def fail(content: bytes) -> bytes:
        raise OSError("no key")

    with pytest.raises(OSError, match="no key"):
        save_webp(frames(), path, fps=8, finish=fail)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["video.webp"]


@pytest.mark.parametrize(("count", "fps"), [(0, 8), (3, 0)])
def test_no_frames_or_no_pace_is_refused(count: int, fps: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"{count} frames at {fps} per second"):
        save_webp(frames(count), tmp_path / "video.webp", fps=fps)


def test_the_frame_in_the_middle_stands_for_a_video() -> None:
    five = frames(5)
    assert still(five) is five[2]
    assert still(five[0]) is five[0]
    assert still(None) is None and still([]) is None
