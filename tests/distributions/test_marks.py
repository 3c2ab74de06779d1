from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sld_mark_provenance
import sld_mark_watermark
from imwatermark import WatermarkDecoder
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError
from sld_mark_provenance import ProvenanceOptions
from sld_mark_provenance.mark import Provenance
from sld_mark_provenance.signing import Credentials, credentials_of
from sld_mark_provenance.trial import write_chain
from sld_mark_watermark import WatermarkOptions
from sld_mark_watermark.watermark import Watermark, agreement, embed, needed, read
from typer.testing import CliRunner

import sldcore
from sldcore import SafetyPolicy
from sldcore.errors import ConfigurationError, PluginError
from sldcore.filters.base import PictureContext
from sldcore.playground.world import Scene, picture
from sldcore.testing import CommandContract, MarkContract
from sldcore.types import Report, Verdict

PAYLOAD = b"AIGC"


def pictures() -> dict[str, Image.Image]:
    noise = np.random.default_rng(3).integers(0, 256, (256, 320, 3), dtype=np.uint8)
    down, right = np.mgrid[0:300, 0:311] / 300
    waves = np.stack([127 + 120 * np.sin(9 * down + shift * right * 5) for shift in range(3)], 2)
    scene = picture(Scene("meadow", "knight", "red")).resize((512, 512), Image.Resampling.BICUBIC)
    return {
        "noise": Image.fromarray(noise),
        "waves": Image.fromarray(waves.astype(np.uint8)),
        "scene": scene,
        "white": Image.new("RGB", (256, 256), "white"),
        "black": Image.new("RGB", (256, 256)),
        "red": Image.new("RGB", (300, 260), "red"),
        "blue": Image.new("RGB", (260, 300), "blue"),
        "yellow": Image.new("RGB", (8, 9000), "yellow"),
    }


@pytest.fixture(scope="module")
def marked() -> dict[str, Image.Image]:
    return {name: embed(each, PAYLOAD) for name, each in pictures().items()}


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    data = BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(BytesIO(data.getvalue()))


def decibels(one: Image.Image, two: Image.Image) -> float:
    error = ((np.asarray(one, float) - np.asarray(two, float)) ** 2).mean()
    return float(10 * np.log10(255**2 / error))


class TestWatermarkContract(MarkContract):
    (contribution,) = sld_mark_watermark.sld_marks()

    def pictures(self) -> list[Image.Image]:
        return list(pictures().values())


class TestWatermarkCommandContract(CommandContract):
    (contribution,) = sld_mark_watermark.sld_commands()


@pytest.mark.parametrize("name", pictures())
def test_the_payload_is_read_from_every_kind_of_picture(name: str, marked: dict[str, Image.Image]) -> None:
    assert read(marked[name], len(PAYLOAD)) == PAYLOAD


@pytest.mark.parametrize("name", pictures())
def test_pictures_without_a_mark_do_not_count_as_marked(name: str) -> None:
    assert agreement(pictures()[name], PAYLOAD) < needed(PAYLOAD)


@pytest.mark.parametrize("name", ["waves", "scene"])
@pytest.mark.parametrize("quality", [95, 85, 75])
def test_the_mark_survives_jpeg(name: str, quality: int, marked: dict[str, Image.Image]) -> None:
    assert agreement(as_jpeg(marked[name], quality), PAYLOAD) >= needed(PAYLOAD)


@pytest.mark.parametrize("name", ["noise", "waves", "scene"])
def test_the_mark_cannot_be_seen(name: str, marked: dict[str, Image.Image]) -> None:
    assert decibels(marked[name], pictures()[name]) > 42


@pytest.mark.parametrize("name", ["white", "red", "blue", "yellow"])
def test_strong_colours_stay_what_they_are(name: str, marked: dict[str, Image.Image]) -> None:
    assert decibels(marked[name], pictures()[name]) > 24


def test_the_longest_payload_fits() -> None:
    payload = b"0123456789abcdef"
    assert read(embed(pictures()["scene"], payload), len(payload)) == payload


def test_the_decoder_of_the_package_reads_the_mark(marked: dict[str, Image.Image]) -> None:
    found = WatermarkDecoder("bytes", 32).decode(np.asarray(marked["scene"])[..., ::-1].copy(), "dwtDctSvd")
    assert found == PAYLOAD


@pytest.mark.parametrize("size", [(64, 64), (255, 256), (1, 70_000)])
def test_a_picture_too_small_for_a_watermark_is_an_error(size: tuple[int, int]) -> None:
    context = PictureContext("", 0, SafetyPolicy())
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} is too small for a watermark"):
        Watermark(WatermarkOptions()).mark([Image.new("RGB", size)], [context])


def test_enough_bits_must_agree_that_it_is_no_chance() -> None:
    assert needed(b"AIGC") == 27 / 32
    assert needed(b"AI") == 1


@pytest.mark.parametrize("payload", ["", "A", "0123456789abcdefg", "ééééééééé"])
def test_a_payload_that_does_not_fit_is_refused(payload: str) -> None:
    with pytest.raises(ValidationError, match="payload"):
        WatermarkOptions(payload=payload)


def test_the_command_tells_marked_from_unmarked(tmp_path: Path, marked: dict[str, Image.Image]) -> None:
    (command,) = sld_mark_watermark.sld_commands()
    marked["scene"].save(tmp_path / "marked.png")
    pictures()["scene"].save(tmp_path / "plain.png")
    runner, app = CliRunner(), command.create()
    found = runner.invoke(app, ["check", str(tmp_path / "marked.png")])
    assert (found.exit_code, found.stdout) == (0, f"{tmp_path / 'marked.png'}: marked (100% of the bits)\n")
    found = runner.invoke(app, ["check", str(tmp_path / "marked.png"), str(tmp_path / "plain.png")])
    assert found.exit_code == 1 and "plain.png: not marked" in found.stdout


@pytest.mark.parametrize("arguments", [["nothing.png"], ["small.png"], ["small.png", "--payload", "A"]])
def test_the_command_refuses_what_it_cannot_look_at(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("small.png")
    (command,) = sld_mark_watermark.sld_commands()
    done = CliRunner().invoke(command.create(), ["check", *arguments])
    assert isinstance(done.exception, ConfigurationError)


class TestProvenanceContract(MarkContract):
    (contribution,) = sld_mark_provenance.sld_marks()

    @pytest.fixture(autouse=True)
    def _chain(self, chain: dict[str, str]) -> None:
        self.options = chain

    def test_a_mark_changes_the_picture(self) -> None:
        """It changes the file, not the pixels: see the tests below."""


REPORT = Report(
    "a secret prompt",
    7,
    "strict",
    "d" * 64,
    {"inappropriate": ("an image showing hate",)},
    verdicts=(Verdict("opennsfw", "0.1.0", False),),
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_chain(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def signer(chain: dict[str, str]) -> Provenance:
    return Provenance(ProvenanceOptions(**chain))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    data = BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def known(content: bytes) -> Credentials:
    found = credentials_of(content)
    assert found is not None
    return found


def test_a_signed_file_says_that_ai_made_it_and_under_which_policy(signer: Provenance) -> None:
    found = known(signer.mark_bytes(saved(pictures()["scene"]), REPORT))
    (action,) = found.assertion("c2pa.actions.v2")["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert action["softwareAgent"] == {"name": "sldcore", "version": sldcore.__version__}
    assert found.assertion("org.sldcore.policy") == {
        "policy": "strict",
        "policy_digest": "d" * 64,
        "concepts": ["inappropriate"],
        "filters": ["opennsfw 0.1.0"],
        "action": "none",
        "marks": [],
    }
    assert found.manifest["claim_generator_info"][0]["name"] == "sldcore"


def test_what_was_done_to_a_picture_is_said_too(signer: Provenance) -> None:
    found = known(signer.mark_bytes(saved(pictures()["scene"]), replace(REPORT, action="blur")))
    created, edited = found.assertion("c2pa.actions.v2")["actions"]
    assert (created["action"], edited["action"]) == ("c2pa.created", "c2pa.edited")
    assert edited["parameters"]["description"] == "blur"


def test_the_prompt_is_not_in_a_signed_file(signer: Provenance) -> None:
    assert b"secret" not in signer.mark_bytes(saved(pictures()["scene"]), REPORT)


def test_a_signed_file_holds_and_is_signed_by_the_certificate(signer: Provenance) -> None:
    found = known(signer.mark_bytes(saved(pictures()["scene"]), REPORT))
    assert found.whole
    assert found.problems == ("signingCredential.untrusted",)
    assert found.manifest["signature_info"]["common_name"] == "sldcore trial signer"


def test_a_change_after_signing_is_noticed(signer: Provenance) -> None:
    content = saved(pictures()["scene"])
    signed = bytearray(signer.mark_bytes(content, REPORT))
    signed[signed.rindex(b"IDAT") + 40] ^= 1
    assert not known(bytes(signed)).whole


def test_text_chunks_and_pixels_stay(signer: Provenance) -> None:
    info = PngInfo()
    info.add_text("sldcore", "the account")
    signed = signer.mark_bytes(saved(pictures()["scene"], pnginfo=info), REPORT)
    with Image.open(BytesIO(signed)) as image:
        image.load()
        assert image.info["sldcore"] == "the account"
        assert image.tobytes() == pictures()["scene"].tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_files_of_these_kinds_are_signed(kind: str, signer: Provenance) -> None:
    assert known(signer.mark_bytes(saved(pictures()["scene"], kind), REPORT)).whole


def test_a_file_is_signed_in_place(signer: Provenance, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    pictures()["scene"].save(path)
    signer.mark_file(path, REPORT)
    assert known(path.read_bytes()).whole
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"text", saved(Image.new("RGB", (8, 8)), "BMP")])
def test_what_cannot_hold_credentials_is_refused(content: bytes, signer: Provenance) -> None:
    with pytest.raises(PluginError, match="put into PNG, JPEG"):
        signer.mark_bytes(content, REPORT)


def test_a_file_without_credentials_has_none() -> None:
    assert credentials_of(saved(pictures()["scene"])) is None


def test_a_missing_certificate_is_an_error_before_anything_is_made(
    chain: dict[str, str], tmp_path: Path
) -> None:
    wrong = {**chain, "certificate": str(tmp_path / "none.pem")}
    with pytest.raises(ConfigurationError, match=r"cannot read the certificate .*none\.pem"):
        Provenance(ProvenanceOptions(**wrong))


def test_a_key_of_another_certificate_is_an_error(chain: dict[str, str], tmp_path: Path) -> None:
    wrong = {**chain, "key": write_chain(tmp_path)["key"]}
    with pytest.raises(ConfigurationError, match="nothing can be signed with certificate"):
        Provenance(ProvenanceOptions(**wrong))


def test_an_expired_certificate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing can be signed with certificate"):
        Provenance(ProvenanceOptions(**write_chain(tmp_path, days=-1)))


@pytest.mark.parametrize("algorithm", ["ps256", "ed25519"])
def test_an_algorithm_of_another_kind_of_key_is_an_error(algorithm: str, chain: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=f"algorithm {algorithm}"):
        Provenance(ProvenanceOptions(**chain, algorithm=algorithm))  # type: ignore[arg-type]


def test_a_file_that_is_no_key_is_an_error(chain: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(ConfigurationError, match="is no PEM file"):
        Provenance(ProvenanceOptions(**{**chain, "key": str(tmp_path / "key.pem")}))
