from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sldcore.provenance import (
    json_text,
    library_versions,
    png_metadata,
    read_metadata,
    result_document,
    save_png,
    trace_summary,
    write_json,
)
from sldcore.types import Failure, Report, Result, Trace, Verdict

PROVENANCE = {
    "model": "playground",
    "model_class": "StableDiffusionPipeline",
    "arguments": {"num_inference_steps": 4, "guidance_scale": 4.0},
    "versions": {"sldcore": "0.1.0", "torch": "2.13.0"},
    "device": "cpu",
    "dtype": "float32",
    "policies": {"d1": "name: medium\n"},
}


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "prompt": "a red knight",
        "seed": 7,
        "policy": "medium",
        "policy_digest": "d1",
        "concepts": {"pack/one": ("an image showing hate", "an image showing harm"), "pack/two": ("blood",)},
        "rows": 11,
    }
    return Report(**{**values, **changes})


def trace() -> Trace:
    """One sample, three concepts, four steps; the third concept belongs to nobody."""
    nan = np.nan
    evaluated = np.array([[[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]], dtype=bool)
    applied = np.array([[[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]], dtype=bool)
    active = np.array([[[nan, 0.0, 0.5, 0.25], [nan, nan, 0.5, nan], [nan] * 4]], dtype=np.float32)
    norm = np.array([[[nan, 0.0, 3.0, 2.0], [nan, nan, 1.0, nan], [nan] * 4]], dtype=np.float32)
    relevance = np.array([[[nan, 0.5, nan, 0.25], [nan, nan, -1.0, nan], [nan] * 4]], dtype=np.float32)
    heat = np.ones((1, 2, 2), dtype=np.float32)
    names = ("pack/one", "pack/two", "pack/three")
    return Trace(names, (4.0, 3.0, 2.0, 1.0), evaluated, applied, active, norm, relevance, heat, 8)


def strict(text: str) -> Any:
    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def saved(tmp_path: Path, about: Report) -> Path:
    path = tmp_path / "picture.png"
    save_png(Image.new("RGB", (4, 4), "red"), path, png_metadata(about, PROVENANCE))
    return path


def test_a_png_tells_people_how_it_was_made(tmp_path: Path) -> None:
    with Image.open(saved(tmp_path, report(action="block"))) as image:
        chunks = dict(image.info)
    del chunks["sldcore"]
    assert chunks == {
        "prompt": "a red knight",
        "seed": "7",
        "model": "playground",
        "versions": "sldcore 0.1.0, torch 2.13.0",
        "policy": "medium",
        "policy_digest": "d1",
        "concepts": "pack/one: an image showing hate | an image showing harm; pack/two: blood",
        "action": "block",
    }


@pytest.mark.parametrize(
    "prompt", ["ein Bär", "\u4e00\u53ea\u72d7 \U0001f600", "two\nlines", 'a "quote" \\', "nul\0 inside"]
)
def test_a_png_carries_the_whole_account_back(tmp_path: Path, prompt: str) -> None:
    account = read_metadata(saved(tmp_path, report(prompt=prompt)))
    assert account is not None
    assert account["picture"]["prompt"] == prompt
    assert account["picture"]["concepts"]["pack/one"] == ["an image showing hate", "an image showing harm"]
    assert account["provenance"] == PROVENANCE


def test_files_that_are_no_pictures_of_ours_have_no_metadata(tmp_path: Path) -> None:
    whole = saved(tmp_path, report()).read_bytes()
    foreign = tmp_path / "foreign.png"
    Image.new("RGB", (4, 4)).save(foreign)
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 30])
    (tmp_path / "text.png").write_text("no picture")
    names = ["foreign.png", "cut.png", "text.png", "missing.png"]
    assert [read_metadata(tmp_path / name) for name in names] == [None] * 4


def test_a_failed_save_leaves_the_old_picture_and_nothing_else(tmp_path: Path) -> None:
    path = saved(tmp_path, report())
    before = path.read_bytes()
    with pytest.raises(OSError, match="cannot write mode CMYK"):
        save_png(Image.new("CMYK", (4, 4)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_document_says_everything_of_a_report() -> None:
    about = report(
        verdicts=(Verdict("checker", "2", True, {"gore": 0.9, "nsfw": float("nan")}, {"gore": 0.5}, "gore"),),
        errors=(Failure("sld", "1", "ValueError: no", 3),),
        action="black",
        attempts=2,
        plain_rows=8,
    )
    result = Result([Image.new("RGB", (4, 4))], (about,), trace(), PROVENANCE)
    picture = result_document(result, [{"picture": "0000-7.png"}])["pictures"][0]
    del picture["trace"]
    assert picture == {
        "files": {"picture": "0000-7.png"},
        "prompt": "a red knight",
        "seed": 7,
        "policy": "medium",
        "policy_digest": "d1",
        "concepts": {"pack/one": ["an image showing hate", "an image showing harm"], "pack/two": ["blood"]},
        "action": "black",
        "flagged": True,
        "withheld": True,
        "unreviewed": False,
        "marks": [],
        "attempts": 2,
        "asked": {"seed": 7, "policy_digest": "d1"},
        "earlier": [],
        "rows": 11,
        "probes": [],
        "plain_rows": 8,
        "verdicts": [
            {
                "filter": "checker",
                "version": "2",
                "flagged": True,
                "scores": {"gore": 0.9, "nsfw": None},
                "thresholds": {"gore": 0.5},
                "reason": "gore",
                "boxes": [],
                "weights": "",
                "seconds": 0.0,
                "shadow": False,
            }
        ],
        "errors": [{"source": "sld", "version": "1", "error": "ValueError: no", "step": 3, "on_error": ""}],
    }


def test_a_trace_summary_counts_what_each_concept_of_the_sample_did() -> None:
    assert trace_summary(trace(), 0, report().concepts) == [
        {
            "concept": "pack/one",
            "rows_evaluated": 3,
            "steps_applied": 3,
            "first_step_acted": 2,  # at step 1 the applied term was zero everywhere
            "max_norm": 3.0,
            "mean_relevance": 0.375,
        },
        {
            "concept": "pack/two",
            "rows_evaluated": 1,
            "steps_applied": 0,
            "first_step_acted": None,
            "max_norm": 1.0,
            "mean_relevance": -1.0,
        },
    ]


def test_a_trace_summary_has_nothing_where_nothing_was_evaluated() -> None:
    never = trace_summary(trace(), 0, {"pack/three": ("text",)})[-1]
    assert never["concept"] == "pack/three"
    assert [never[name] for name in ("first_step_acted", "max_norm", "mean_relevance")] == [None] * 3


def test_files_must_be_given_for_every_picture() -> None:
    result = Result([Image.new("RGB", (4, 4))], (report(),), trace(), PROVENANCE)
    with pytest.raises(ValueError, match="shorter"):
        result_document(result, [])


def test_a_written_document_is_strict_json(tmp_path: Path) -> None:
    document = {
        "nan": float("nan"),
        "array": np.array([1.0, np.inf]),
        "path": Path("a"),
        3: np.float32(0.5),
        "t": (1,),
    }
    write_json(tmp_path / "new" / "result.json", document)
    read = strict((tmp_path / "new" / "result.json").read_text(encoding="utf-8"))
    assert read == {"nan": None, "array": [1.0, None], "path": "a", "3": 0.5, "t": [1]}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(plain)
def test_plain_data_survives_json(value: Any) -> None:
    assert strict(json_text(value)) == value


def test_versions_are_known_without_loading_the_libraries() -> None:
    code = (
        "import sys; from sldcore.provenance import library_versions; v = library_versions();"
        "assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys(); print(v['torch'])"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == library_versions()["torch"]
