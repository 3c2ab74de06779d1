from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sld_filter_hash_blocklist
from PIL import Image
from sld_filter_hash_blocklist import BlocklistOptions
from sld_filter_hash_blocklist.building import build_list
from sld_filter_hash_blocklist.detector import HashBlocklist
from sld_filter_hash_blocklist.hashes import hash_of, read_list
from typer.testing import CliRunner

from sldcore.errors import ConfigurationError
from sldcore.playground.world import Scene, picture
from sldcore.testing import CommandContract, PostFilterContract
from sldcore.types import Verdict

PLACES = ("meadow", "beach", "night", "snow", "room")


def known(size: int = 96, turn: float = 0.3) -> Image.Image:
    down, right = np.mgrid[0:size, 0:size] / size
    pixels = 127 + 120 * np.sin(9 * (down * np.cos(turn) + right * np.sin(turn)) + 3 * down * right)
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures" / "inner"
    pictures.mkdir(parents=True)
    known().save(pictures / "waves.png")
    (pictures / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> str:
    build_list(folder, tmp_path / "known.txt", labels=True)
    return str(tmp_path / "known.txt")


def verdict_on(image: Image.Image, file: str, **options: Any) -> Verdict:
    (verdict,) = HashBlocklist(BlocklistOptions(file=file, **options)).review([image], [])
    return verdict


class TestContract(PostFilterContract):
    (contribution,) = sld_filter_hash_blocklist.sld_post_filters()
    clean = (known(turn=1.7), picture(Scene("meadow", "knight", "red")))
    flagged = (known(),)

    @pytest.fixture(autouse=True)
    def _list(self, file: str) -> None:
        self.options = {"file": file}


class TestCommandContract(CommandContract):
    (contribution,) = sld_filter_hash_blocklist.sld_commands()


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(BytesIO(data.getvalue()))


@pytest.mark.parametrize(
    "changed",
    [
        known(),
        known().resize((64, 64)),
        known(512),
        jpeg(known(), 30),
        known().convert("L").convert("RGB"),
        known().point([min(255, value + 20) for value in range(256)] * 3),
        known().transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ],
    ids=["same", "smaller", "larger", "jpeg", "grey", "brighter", "mirrored"],
)
@pytest.mark.parametrize("algorithm", ["phash", "dhash", "ahash"])
def test_a_known_picture_is_found_again(
    changed: Image.Image, algorithm: str, folder: Path, tmp_path: Path
) -> None:
    build_list(folder, tmp_path / "list.txt", algorithm=algorithm)
    assert verdict_on(changed, str(tmp_path / "list.txt")).flagged


def test_mirrored_pictures_are_found_only_if_asked_for(file: str) -> None:
    assert not verdict_on(known().transpose(Image.Transpose.FLIP_LEFT_RIGHT), file, mirrored=False).flagged


def test_other_pictures_are_not_known(file: str) -> None:
    others = [known(turn=1.2), *(picture(Scene(place, "cat", "red")) for place in PLACES)]
    assert [verdict_on(other, file).flagged for other in others] == [False] * len(others)


def test_the_radius_is_how_many_bits_may_differ(tmp_path: Path) -> None:
    bits = hash_of(known(), "phash", 8)
    bits[[3, 20, 41]] ^= True
    (tmp_path / "near.txt").write_text(np.packbits(bits).tobytes().hex())
    within, beyond = (verdict_on(known(), str(tmp_path / "near.txt"), radius=radius) for radius in (3, 2))
    assert within.flagged and not beyond.flagged
    assert within.scores == beyond.scores == {"known": 61 / 64}
    assert within.thresholds == {"known": 61 / 64}
    assert within.reason == "differs in 3 of 64 bits from known picture number 1"


def test_a_list_holds_labels_only_if_asked_for(folder: Path, tmp_path: Path) -> None:
    build_list(folder, tmp_path / "bare.txt")
    assert "waves" not in (tmp_path / "bare.txt").read_text()
    build_list(folder, tmp_path / "labelled.txt", labels=True)
    assert read_list(str(tmp_path / "labelled.txt")).labels == ("inner/waves.png",)


def test_a_list_is_read_back_as_it_was_made(folder: Path, tmp_path: Path) -> None:
    built = build_list(folder, tmp_path / "list.txt", algorithm="dhash", side=16)
    made = read_list(str(tmp_path / "list.txt"))
    assert (made.algorithm, made.side, len(made.labels)) == ("dhash", 16, built.hashes)
    assert made.nearest(hash_of(known(), "dhash", 16)) == (0, 0)


def test_pictures_of_one_colour_are_left_out_of_a_list(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    built = build_list(folder, tmp_path / "list.txt")
    assert (built.pictures, built.hashes, built.plain) == (2, 1, (folder / "black.png",))


def test_a_picture_that_cannot_be_read_makes_no_list(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "inner" / "waves.png").read_bytes()[:200])
    with pytest.raises(ConfigurationError, match=r"cannot read .*broken\.png"):
        build_list(folder, tmp_path / "list.txt")
    assert not (tmp_path / "list.txt").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no hashes"),
        ("# nothing\n", "holds no hashes"),
        ("abc\n", "line 1: 'abc' is no hash"),
        ("algorithm: md5\n", "unknown algorithm 'md5'"),
        ("d79a493b48662ec9\n" + "d79a493b48662ec9" * 4, "hashes of 64 and 256 bits"),
        ("8000000000000000", "hash of every picture of one colour"),
        ("algorithm: dhash\nd79a493b48662ec9", "was made with dhash"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        HashBlocklist(BlocklistOptions(file=str(tmp_path / "list.txt"), algorithm="phash"))


def test_a_missing_list_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .* 'sld hash-blocklist build'"):
        HashBlocklist(BlocklistOptions(file=str(tmp_path / "none.txt")))


def test_a_radius_that_flags_anything_is_refused(file: str) -> None:
    with pytest.raises(ConfigurationError, match="less than 16"):
        HashBlocklist(BlocklistOptions(file=file, radius=16))


def test_the_command_makes_a_list(folder: Path, tmp_path: Path) -> None:
    (command,) = sld_filter_hash_blocklist.sld_commands()
    out = tmp_path / "list.txt"
    done = CliRunner().invoke(command.create(), ["build", str(folder), "--out", str(out)])
    assert (done.exit_code, done.stdout) == (0, f"1 hashes of 1 pictures in {out}\n")
    assert read_list(str(out)).algorithm == "phash"


def test_the_command_refuses_a_folder_without_pictures(tmp_path: Path) -> None:
    (command,) = sld_filter_hash_blocklist.sld_commands()
    done = CliRunner().invoke(command.create(), ["build", str(tmp_path), "--out", str(tmp_path / "list.txt")])
    assert isinstance(done.exception, ConfigurationError)
    assert not (tmp_path / "list.txt").exists()
