from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from sldcore.cli import app
from sldcore.policy import Preset, SafetyPolicy
from sldcore.provenance import read_metadata


def sld(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def quick(out: Path, *arguments: str | Path) -> Result:
    """Four steps on the playground, with a preset that needs no more."""
    return sld("a red knight on a meadow", "--policy", "max", "--steps", "4", "--out", out, *arguments)


def strict(text: str) -> Any:
    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def broken_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The playground with a denoiser that predicts NaN."""
    from sldcore import load_pipeline

    pipe = load_pipeline("playground", device="cpu")
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    folder = tmp_path_factory.mktemp("broken")
    pipe.save_pretrained(folder)
    return folder


BAD_INPUT = {
    "an unknown preset names the nearest": (["x", "--policy", "medum"], "did you mean 'medium'"),
    "an unknown preset lists all": (["x", "--policy", "medum"], f"presets: {', '.join(sorted(Preset))};"),
    "a policy file that is not there": (["x", "--policy", "no.yaml"], "no.yaml"),
    "policies that do not fit the prompts": (
        ["x", "--policy", "max", "--policy", "off"],
        "2 policies for 1 prompt",
    ),
    "an empty prompt": (["x", " "], "prompt 2 is empty"),
    "a model that is not there": (["x", "--model", "playgroun"], "did you mean 'playground'"),
    "a path that is not there": (["x", "--model", "./no/such"], "no model './no/such'"),
    "a device that does not exist": (["x", "--device", "abacus"], "unknown device 'abacus'"),
    "a number format that does not exist": (["x", "--dtype", "int8"], "int8"),
    "a width that latents cannot have": (["x", "--width", "100"], "multiple of 8"),
    "no classifier-free guidance": (["x", "--guidance-scale", "1"], "--policy off"),
    "a guidance scale that is no number": (["x", "--guidance-scale", "nan"], "0 or more, got nan"),
    "a seed beyond 64 bits": (["x", "--seed", str(2**63 - 1), "--num-images", "2"], "2^63"),
    "no steps": (["x", "--steps", "0"], "steps"),
    "no pictures": (["x", "--num-images", "0"], "num-images"),
    "no prompt": ([], "PROMPT"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_message_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = sld(*arguments, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_policy_file_with_an_unknown_concept_is_refused(tmp_path: Path) -> None:
    policy = tmp_path / "mine.yaml"
    policy.write_text("guidance: {method: sld}\nconcepts: [inappropriate/violense]\n", encoding="utf-8")
    result = sld("x", "--policy", policy, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "did you mean 'violence'" in result.stderr


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    result = sld("x", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "is a file" in result.stderr
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_an_output_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    result = sld("x", "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "cannot be written to" in result.stderr


@pytest.mark.parametrize("name", ["0001-8.png", "0000-7-compare.png", "result.json"])
def test_files_that_exist_are_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    result = quick(tmp_path, "--seed", "7", "--num-images", "2", "--compare")
    assert result.exit_code == 2
    assert name in result.stderr
    assert "--overwrite" in result.stderr
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    assert names(tmp_path) == [name]


def test_resume_does_not_replace_pictures_of_another_request(tmp_path: Path) -> None:
    (tmp_path / "0000-0.png").write_text("mine", encoding="utf-8")
    result = quick(tmp_path, "--resume")
    assert result.exit_code == 2
    assert "made from another request" in result.stderr
    assert names(tmp_path) == ["0000-0.png"]


def test_bad_input_is_found_without_loading_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from sldcore.cli import app\n"
        "try: app(['generate', 'x', '--guidance-scale', '1', '--out', sys.argv[1]])\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert code == 2 and not {'torch', 'diffusers', 'transformers', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=True)


def test_a_window_beyond_the_run_is_bad_input(tmp_path: Path) -> None:
    result = sld("x", "--policy", "medium", "--steps", "4", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "guidance starts at step 10" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    result = quick(tmp_path / "out", "--device", "cuda:99")
    assert result.exit_code == 2
    assert "device 'cuda:99' cannot be used here" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Two prompts with a policy each, two pictures per prompt, in batches that cut across prompts."""
    out = tmp_path_factory.mktemp("compared") / "new" / "out"
    arguments = ["a red knight on a meadow", "a cat in the snow", "--policy", "max", "--policy", "off"]
    options = ["--num-images", "2", "--batch-size", "3", "--seed", "5", "--steps", "4", "--compare"]
    return out, sld(*arguments, *options, "--out", out)


def test_generate_writes_pictures_comparisons_curves_and_one_document(compared: tuple[Path, Result]) -> None:
    out, result = compared
    assert result.exit_code == 0
    stems = ["0000-5", "0001-6", "0002-5", "0003-6"]
    parts = ("", "-compare", "-curves", "-difference", "-unguided")
    expected = [f"{stem}{part}.png" for stem in stems for part in parts]
    assert names(out) == sorted([*expected, "result.json"])


def test_generate_shows_a_table_of_what_happened(compared: tuple[Path, Result]) -> None:
    rows = [line.split() for line in compared[1].stdout.splitlines()]
    assert rows[1][:7] == ["0000-5.png", "a", "red", "knight", "on", "a", "meadow"]
    assert rows[1][7:12] == ["5", "max", "shown", "1.50x", "inappropriate"]
    assert rows[4][6:] == ["6", "off", "shown", "1.00x", "-"]


def test_progress_without_a_terminal_is_a_line_per_batch_on_stderr(compared: tuple[Path, Result]) -> None:
    assert compared[1].stderr.splitlines()[-2:] == ["3/4 pictures", "4/4 pictures"]


def test_the_document_is_strict_json_and_says_what_happened(compared: tuple[Path, Result]) -> None:
    document = strict((compared[0] / "result.json").read_text(encoding="utf-8"))
    pictures = document["pictures"]
    digests = {name: SafetyPolicy.preset(name).digest for name in ("max", "off")}
    assert [(p["files"]["picture"], p["seed"], p["policy_digest"]) for p in pictures] == [
        ("0000-5.png", 5, digests["max"]),
        ("0001-6.png", 6, digests["max"]),
        ("0002-5.png", 5, digests["off"]),
        ("0003-6.png", 6, digests["off"]),
    ]
    assert [(p["rows"], p["plain_rows"]) for p in pictures] == [(12, 8), (12, 8), (8, 8), (8, 8)]
    assert [len(p["trace"]) for p in pictures] == [1, 1, 0, 0]
    assert pictures[0]["concepts"]["inappropriate"][0].startswith("an image showing hate, harassment")
    assert pictures[0]["trace"][0]["steps_applied"] == 4
    assert set(document["provenance"]["policies"]) == set(digests.values())
    assert document["provenance"]["request"] == {
        "model": "playground",
        "dtype": None,
        "arguments": {"num_inference_steps": 4, "guidance_scale": 4.0},
    }


def test_every_file_carries_its_own_account(compared: tuple[Path, Result]) -> None:
    for name, seed, prompt in [
        ("0001-6", 6, "a red knight on a meadow"),
        ("0002-5-compare", 5, "a cat in the snow"),
    ]:
        account = read_metadata(compared[0] / f"{name}.png")
        assert account is not None
        assert (account["picture"]["seed"], account["picture"]["prompt"]) == (seed, prompt)
        assert list(account["provenance"]["policies"]) == [account["picture"]["policy_digest"]]


def test_a_comparison_shows_the_unguided_picture_of_the_same_seed_first(
    compared: tuple[Path, Result], tmp_path: Path
) -> None:
    plain = sld(
        "a red knight on a meadow", "--policy", "off", "--steps", "4", "--seed", "5", "--out", tmp_path
    )
    assert plain.exit_code == 0
    strip = pixels(compared[0] / "0000-5-compare.png")[-12 - 256 : -12]
    unguided, guided = strip[2::4, 14:268:4], strip[2::4, 282:536:4]
    assert np.abs(unguided - pixels(tmp_path / "0000-5.png")).max() <= 1
    assert np.abs(unguided - pixels(compared[0] / "0000-5-unguided.png")).max() == 0
    assert np.abs(guided - pixels(compared[0] / "0000-5.png")).max() == 0
    assert np.abs(unguided - guided).max() > 8


def test_json_prints_the_document_and_nothing_else(tmp_path: Path) -> None:
    result = quick(tmp_path, "--json")
    assert result.exit_code == 0
    assert strict(result.stdout) == strict((tmp_path / "result.json").read_text(encoding="utf-8"))


def test_the_negative_prompt_reaches_the_pipeline(tmp_path: Path) -> None:
    assert quick(tmp_path / "a").exit_code == 0
    assert quick(tmp_path / "b", "--negative-prompt", "a red knight on a meadow").exit_code == 0
    first, second = pixels(tmp_path / "a" / "0000-0.png"), pixels(tmp_path / "b" / "0000-0.png")
    assert np.abs(first - second).max() > 8
    account = read_metadata(tmp_path / "b" / "0000-0.png")
    assert account is not None
    assert account["provenance"]["request"]["arguments"]["negative_prompt"] == "a red knight on a meadow"


def test_without_classifier_free_guidance_the_policy_off_runs(tmp_path: Path) -> None:
    result = sld(
        "x", "--policy", "off", "--guidance-scale", "1", "--steps", "2", "--compare", "--out", tmp_path
    )
    assert result.exit_code == 0


def test_a_run_where_every_picture_is_withheld_says_why_and_exits_with_3(
    broken_model: Path, tmp_path: Path
) -> None:
    result = quick(tmp_path, "--model", broken_model, "--num-images", "2", "--compare")
    assert result.exit_code == 3
    assert "withheld 0001-1.png: " in result.stderr
    assert "NaN" in result.stderr
    assert "withheld (block)" in result.stdout
    assert pixels(tmp_path / "0000-0.png").max() == 0
    entry = strict((tmp_path / "result.json").read_text(encoding="utf-8"))["pictures"][0]
    assert entry["action"] == "block"
    assert "NaN" in entry["errors"][0]["error"]


def test_ctrl_c_keeps_finished_pictures_and_resume_makes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sldcore import SafetyEngine

    real = SafetyEngine.generate
    calls: list[Any] = []

    def interrupted(engine: SafetyEngine, prompt: Any, **options: Any) -> Any:
        calls.append(options["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(engine, prompt, **options)

    monkeypatch.setattr(SafetyEngine, "generate", interrupted)
    options = ["--num-images", "3", "--batch-size", "1"]
    stopped = quick(tmp_path, *options)
    assert stopped.exit_code == 130
    assert "1 finished picture" in stopped.stderr
    assert "--resume" in stopped.stderr
    assert names(tmp_path) == ["0000-0.png", "result.json"]

    calls[:] = [None, None]
    before = (tmp_path / "0000-0.png").stat().st_mtime_ns
    assert quick(tmp_path, *options, "--resume").exit_code == 0
    assert calls[2:] == [[1], [2]]
    assert (tmp_path / "0000-0.png").stat().st_mtime_ns == before
    pictures = strict((tmp_path / "result.json").read_text(encoding="utf-8"))["pictures"]
    assert [(p["files"]["picture"], len(p["trace"])) for p in pictures] == [
        ("0000-0.png", 1),
        ("0001-1.png", 1),
        ("0002-2.png", 1),
    ]


@pytest.fixture
def one(tmp_path: Path) -> Path:
    assert quick(tmp_path).exit_code == 0
    return tmp_path


def refuse_to_load(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("the model was loaded")


def test_resume_of_a_finished_run_loads_no_model(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sldcore.loading.load_pipeline", refuse_to_load)
    (one / "result.json").unlink()
    result = quick(one, "--resume", "--json")
    assert result.exit_code == 0
    assert strict(result.stdout)["pictures"][0]["seed"] == 0


@pytest.mark.parametrize(
    "change", [["--guidance-scale", "5"], ["--negative-prompt", "x"], ["--dtype", "float32"]]
)
def test_resume_does_not_take_pictures_with_other_settings_for_finished(one: Path, change: list[str]) -> None:
    result = quick(one, "--resume", *change)
    assert result.exit_code == 2
    assert "another request" in result.stderr


def test_resume_with_compare_makes_the_missing_comparisons(one: Path) -> None:
    assert quick(one, "--resume", "--compare").exit_code == 0
    roles = ["compare", "curves", "difference", "unguided"]
    assert names(one) == [*(f"0000-0-{role}.png" for role in roles), "0000-0.png", "result.json"]


def test_resume_tries_withheld_pictures_again(broken_model: Path, tmp_path: Path) -> None:
    assert quick(tmp_path, "--model", broken_model).exit_code == 3
    again = quick(tmp_path, "--model", broken_model, "--resume")
    assert again.exit_code == 3
    assert "1/1 pictures" in again.stderr


def test_overwrite_replaces_what_is_there(one: Path) -> None:
    before = (one / "0000-0.png").read_bytes()
    assert quick(one, "--overwrite", "--guidance-scale", "5").exit_code == 0
    assert (one / "0000-0.png").read_bytes() != before


REVIEWED = """
name: reviewed
filters:
  - use: playground-glyphs
    on_flag: {on_flag}
"""


def reviewed(tmp_path: Path, on_flag: str, *arguments: str) -> tuple[Result, Path]:
    policy, out = tmp_path / "policy.yaml", tmp_path / "out"
    policy.write_text(REVIEWED.replace("{on_flag}", on_flag))
    prompt = "a red knight on a meadow with a sword"
    return sld(prompt, "--policy", policy, "--steps", "20", "--out", out, *arguments), out


def test_a_dropped_picture_has_no_file_and_an_entry(tmp_path: Path) -> None:
    result, out = reviewed(tmp_path, "drop")
    assert result.exit_code == 3, result.output
    assert names(out) == ["result.json"]
    (entry,) = strict((out / "result.json").read_text())["pictures"]
    assert (entry["action"], entry["files"]) == ("drop", {})
    assert entry["verdicts"][0]["scores"]["violence"] > 0.5


def test_a_picture_that_was_made_again_is_found_by_resume(tmp_path: Path) -> None:
    on_flag = "{do: regenerate, attempts: 1, stronger: false, add_concept: false, then: flag}"
    result, out = reviewed(tmp_path, on_flag)
    assert result.exit_code == 0, result.output
    (entry,) = strict((out / "result.json").read_text())["pictures"]
    assert (entry["attempts"], entry["asked"]["seed"], len(entry["earlier"])) == (2, 0, 1)
    before = (out / "0000-0.png").stat().st_mtime_ns
    again, _ = reviewed(tmp_path, on_flag, "--resume")
    assert again.exit_code == 0, again.output
    assert (out / "0000-0.png").stat().st_mtime_ns == before


def test_an_audit_log_gets_one_line_per_picture_without_the_prompt(tmp_path: Path) -> None:
    from sldcore.audit import read_audit

    log = tmp_path / "audit.jsonl"
    result, _ = reviewed(tmp_path, "blur", "--num-images", "2", "--audit", str(log))
    assert result.exit_code in (0, 3), result.output
    assert len(read_audit(log).records) == 2
    assert "knight" not in log.read_text()


def test_marks_of_files_are_put_on_last_and_a_failing_one_writes_no_picture(
    tmp_path: Path, plugin_catalogue: Any
) -> None:
    from sldcore.contributions import MarkKind

    class Signs:
        name, version = "signs", "1"

        def mark(self, pictures: Any, contexts: Any) -> Any:
            return list(pictures)

        def mark_bytes(self, content: bytes, report: Any) -> bytes:
            if fails:
                raise OSError("no key")
            return content + b"signed"

    fails = False
    plugin_catalogue(MarkKind(name="signs", create=lambda options: Signs()))
    policy = tmp_path / "policy.yaml"
    policy.write_text("marks: [signs]")
    call = ["a red knight", "--policy", str(policy), "--steps", "2", "--out"]
    assert sld(*call, tmp_path / "one").exit_code == 0
    assert (tmp_path / "one" / "0000-0.png").read_bytes().endswith(b"signed")
    fails = True
    result = sld(*call, tmp_path / "two")
    assert result.exit_code == 1
    assert "signs 1: the picture's file could not be marked: OSError: no key" in result.output
    assert not (tmp_path / "two" / "0000-0.png").exists()
