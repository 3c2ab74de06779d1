"""``sld filters``: listing, and reviewing files with the chain that reviews what is generated."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict
from typer.testing import CliRunner, Result

from sldcore.cli import app
from sldcore.contributions import MarkKind, PostFilterKind, PromptFilterKind
from sldcore.documents import Strict
from sldcore.filters.base import PictureContext
from sldcore.policy import SafetyPolicy
from sldcore.types import Verdict

Contribute = Callable[..., Any]
RED = (190, 24, 34)
WHITE, GREY, BLACK = "white", (100, 100, 100), "black"


class Glare:
    """Flags bright pictures; fails over dark ones; says something on stdout, as some detectors do."""

    name, version = "glare", "2.0"

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.contexts: list[PictureContext] = []

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        print("loading the detector")
        self.batches.append([picture.size for picture in pictures])
        self.contexts += contexts
        means = [float(np.asarray(picture).mean()) / 255 for picture in pictures]
        if min(means) == 0:
            raise RuntimeError("too dark to tell")
        return [Verdict("glare", "2.0", m >= 0.6, {"glare": m, "dusk": 0.0}, {"glare": 0.6}) for m in means]


class GlareOptions(Strict):
    """One with a default, one without."""

    limit: float = 0.5
    area: str


class OddOptions(BaseModel):
    """A type that JSON schemas have no word for."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    odd: Callable[[], None] | None = None


class Mark:
    """A mark that cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("weights are missing")


@pytest.fixture
def glare(plugin_catalogue: Contribute) -> Glare:
    made = Glare()
    plugin_catalogue(PostFilterKind(name="glare", create=lambda options: made))
    return made


@pytest.fixture
def review(tmp_path: Path) -> Callable[..., Result]:
    def run(*arguments: object, policy: str = "filters: [glare]") -> Result:
        (tmp_path / "policy.yaml").write_text(policy)
        own = ["--policy", tmp_path / "policy.yaml", "--out", tmp_path / "review"]
        return CliRunner().invoke(app, ["filters", "run", *map(str, [*arguments, *own])])

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    return path


def picture(folder: Path, name: str, colour: Any, size: tuple[int, int] = (8, 8)) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def document(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "review" / "review.json").read_text(encoding="utf-8"))
    return content


def outcomes(tmp_path: Path) -> dict[str, str]:
    return {
        " ".join([Path(row["file"]).name, row["view"]]).strip(): row["outcome"]
        for row in document(tmp_path)["pictures"]
    }


def red(tmp_path: Path) -> int:
    """Pixels of frames on the contact sheet."""
    with Image.open(tmp_path / "review" / "contact-sheet.png") as sheet:
        return int((np.asarray(sheet) == RED).all(axis=-1).sum())


def test_pictures_without_findings_give_exit_code_0(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    picture(folder, "a.png", GREY)
    picture(folder, "sub/b.jpg", GREY)
    result = review(folder)
    assert result.exit_code == 0, result.output
    assert outcomes(tmp_path) == {"a.png": "clean", "b.jpg": "clean"}
    assert red(tmp_path) == 0


def test_a_flagged_picture_gives_exit_code_3_and_is_blurred_and_framed(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    bright = np.random.default_rng(0).integers(150, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(bright).save(folder / "bright.png")
    picture(folder, "plain.png", GREY)
    result = review(folder)
    assert result.exit_code == 3
    assert outcomes(tmp_path) == {"bright.png": "flagged", "plain.png": "clean"}
    assert red(tmp_path) > 10_000
    with Image.open(tmp_path / "review" / "contact-sheet.png") as sheet:
        shown = np.asarray(sheet)[100:200, 40:200].astype(int)
    assert np.abs(np.diff(shown, axis=1)).max() < 20  # the noise is gone
    assert "glare: glare 0.79 >= 0.6" in result.stdout


def test_a_file_that_cannot_be_read_is_an_error_and_the_others_are_reviewed(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    (folder / "a.png").write_text("no picture")
    picture(folder, "b.png", WHITE)
    result = review(folder)
    assert result.exit_code == 1
    assert outcomes(tmp_path) == {"a.png": "failed", "b.png": "flagged"}
    (error,) = document(tmp_path)["pictures"][0]["errors"]
    assert "UnidentifiedImageError" in error["error"]
    assert document(tmp_path)["counts"] == {"clean": 0, "flagged": 1, "failed": 1}


@pytest.mark.parametrize("on_error", ["block", "raise", "allow"])
def test_a_filter_that_fails_is_an_error_whatever_the_policy_says(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path, on_error: str
) -> None:
    picture(folder, "a.png", BLACK)
    picture(folder, "b.png", GREY, (9, 9))
    result = review(folder, policy=f"filters: [{{use: glare, on_error: {on_error}}}]")
    assert result.exit_code == 1
    assert outcomes(tmp_path) == {"a.png": "failed", "b.png": "clean"}
    row = document(tmp_path)["pictures"][0]
    assert (row["action"], row["errors"][0]["source"]) == ("block", "glare")
    assert red(tmp_path) > 10_000


def test_a_decompression_bomb_is_never_clean(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    picture(folder, "bomb.png", GREY, (300, 200))
    picture(folder, "plain.png", GREY)
    result = review(folder)
    assert result.exit_code == 1
    assert outcomes(tmp_path) == {"bomb.png": "failed", "plain.png": "clean"}


def test_other_pictures_of_a_flagged_file_are_not_shown_either(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    letter = np.full((8, 8, 4), 100, np.uint8)
    letter[1:, :, 3] = 0
    Image.fromarray(letter).save(folder / "letter.png")  # bright on white, dark on black
    assert review(folder).exit_code == 3
    assert outcomes(tmp_path) == {"letter.png on white": "flagged", "letter.png on black": "clean"}
    assert red(tmp_path) > 25_000  # both are framed


def test_the_action_is_what_the_policy_does_at_last(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    review(
        picture(folder, "a.png", WHITE),
        policy="filters: [{use: glare, on_flag: {do: regenerate, then: pixelate}}]",
    )
    (row,) = document(tmp_path)["pictures"]
    assert (row["action"], row["categories"]) == ("pixelate", ["glare"])


def test_thresholds_are_the_policy_s(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    grey = picture(folder, "a.png", GREY)
    assert review(grey, policy="filters: [{use: glare, thresholds: {glare: 0.3}}]").exit_code == 3
    assert review(grey, policy="filters: [{use: glare, thresholds: {glare: 0.5}}]").exit_code == 0


def test_a_filter_in_the_shadow_flags_nothing(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    result = review(picture(folder, "a.png", WHITE), policy="filters: [{use: glare, shadow: true}]")
    assert result.exit_code == 0
    assert "only watching" in result.stdout
    assert document(tmp_path)["pictures"][0]["verdicts"][0]["shadow"] is True


def test_pictures_of_one_size_are_reviewed_together_and_reported_in_order(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    sizes = [(8, 8), (4, 4), (8, 8), (4, 4), (8, 8)]
    for number, size in enumerate(sizes):
        picture(folder, f"{number}.png", WHITE if number == 2 else GREY, size)
    review(folder, "--batch-size", 4)
    assert glare.batches == [[(8, 8), (8, 8)], [(4, 4), (4, 4)], [(8, 8)]]
    assert [row["outcome"] for row in document(tmp_path)["pictures"]] == [
        "clean", "clean", "flagged", "clean", "clean",
    ]  # fmt: skip


def test_filters_get_the_policy_s_concepts_and_no_prompt(
    glare: Glare, review: Callable[..., Result], folder: Path
) -> None:
    review(
        picture(folder, "a.png", GREY),
        policy="guidance: {method: sld}\nconcepts: [{text: blood}]\nfilters: [glare]",
    )
    (context,) = glare.contexts
    assert (context.prompt, context.seed, list(context.concepts.values())) == ("", None, [("blood",)])


def test_marks_and_prompt_filters_of_the_policy_are_not_made(
    glare: Glare, plugin_catalogue: Contribute, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    plugin_catalogue(
        MarkKind(name="bad", create=lambda options: Mark()),  # type: ignore[arg-type,return-value]
        PromptFilterKind(name="bad", create=lambda options: Mark()),  # type: ignore[arg-type,return-value]
    )
    text = "filters: [glare]\nmarks: [bad]\nprompt_filters: [bad]"
    assert review(picture(folder, "a.png", GREY), policy=text).exit_code == 0
    assert document(tmp_path)["policy_digest"] == SafetyPolicy.parse(text).digest


def test_json_is_all_that_goes_to_stdout(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    result = review(picture(folder, "a.png", WHITE), "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == document(tmp_path)
    verdict = document(tmp_path)["pictures"][0]["verdicts"][0]
    assert (verdict["filter"], verdict["version"], verdict["scores"]["glare"]) == ("glare", "2.0", 1.0)


def test_files_in_folders_that_are_no_pictures_are_counted(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    picture(folder, "a.png", GREY)
    (folder / "notes.txt").write_text("hello")
    result = review(folder)
    assert "1 other files are no pictures" in result.stdout
    assert document(tmp_path)["no_pictures"] == [str(folder / "notes.txt")]


def test_a_second_review_does_not_review_the_first_one_s_sheet(
    glare: Glare, review: Callable[..., Result], tmp_path: Path
) -> None:
    picture(tmp_path, "a.png", GREY)
    review(tmp_path)
    review(tmp_path)
    assert outcomes(tmp_path) == {"a.png": "clean"}


def test_the_reviewed_files_are_not_changed(
    glare: Glare, review: Callable[..., Result], folder: Path
) -> None:
    file = picture(folder, "a.png", WHITE)
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    review(folder)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("name: empty", "has no filters, so nothing would be reviewed"),
        ("filters: [glair]", "did you mean 'glare'"),
        ("filters: [{use: glare, treshold: 1}]", "did you mean 'threshold'"),
    ],
)
def test_a_policy_that_reviews_nothing_is_bad_input(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path, policy: str, message: str
) -> None:
    result = review(picture(folder, "a.png", GREY), policy=policy)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "review").exists()


def test_a_missing_file_is_bad_input(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    result = review(picture(folder, "a.png", WHITE), folder / "gone.png")
    assert result.exit_code == 2
    assert "gone.png is neither a file nor a folder" in result.stderr
    assert not (tmp_path / "review").exists()


def test_a_file_where_the_folder_should_be_is_bad_input(
    glare: Glare, review: Callable[..., Result], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "review").write_text("mine")
    result = review(picture(folder, "a.png", GREY))
    assert (result.exit_code, (tmp_path / "review").read_text()) == (2, "mine")


def test_the_list_names_kinds_options_and_providers(plugin_catalogue: Contribute) -> None:
    plugin_catalogue(
        PostFilterKind(
            name="glare", description="too bright", options=GlareOptions, create=lambda options: Glare()
        ),
        MarkKind(name="corner", create=lambda options: Mark()),  # type: ignore[arg-type,return-value]
    )
    result = CliRunner().invoke(app, ["filters", "list"])
    assert result.exit_code == 0
    for word in (
        "glare",
        "too bright",
        "limit = 0.5",
        "area (required)",
        "corner",
        "playground-glyphs",
        "sldcore",
    ):
        assert word in result.stdout


def test_the_list_in_json_has_the_schema_of_the_options(plugin_catalogue: Contribute) -> None:
    plugin_catalogue(
        PostFilterKind(
            name="glare", options=GlareOptions, create=lambda options: Glare(), after=("opennsfw",)
        ),
        PostFilterKind(name="odd", options=OddOptions, create=lambda options: Glare()),
    )
    result = CliRunner().invoke(app, ["filters", "list", "--json"])
    listed = {(each["kind"], each["name"]): each for each in json.loads(result.stdout)}
    glare = listed["filter", "glare"]
    assert (glare["options"]["properties"]["limit"]["default"], glare["options"]["required"]) == (
        0.5,
        ["area"],
    )
    assert (glare["after"], glare["before"]) == (["opennsfw"], [])
    assert listed["filter", "odd"]["options"]["properties"] == {"odd": {}}
    assert listed["filter", "playground-glyphs"]["provider"].startswith("sldcore ")


def test_listing_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom sldcore.cli import app\n"
        "assert CliRunner().invoke(app, ['filters', 'list', '--json']).exit_code == 0\n"
        "print(*{'torch', 'diffusers', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
