from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sldcore.cli import app
from sldcore.evaluation import RunFolder


def sld(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def quick(out: Path, *arguments: str | Path) -> Result:
    """Two prompts, four steps, on the playground."""
    small = ("--limit", "2", "--steps", "4", "--device", "cpu", "--out", out)
    return sld("run", "playground/roles", "--policies", "off,max", *small, *arguments)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("cli") / "run"
    return out, quick(out)


def test_a_run_is_generated_scored_and_reported(done: tuple[Path, Result]) -> None:
    out, result = done
    assert result.exit_code == 0, result.output
    found = RunFolder(out).evaluation()
    assert [(each.method, each.item) for each in found.samples] == [
        ("off", "0"),
        ("off", "1"),
        ("max", "0"),
        ("max", "1"),
    ]
    assert {score.key for score in found.scores} == {sample.key for sample in found.samples}
    assert sorted(path.name for path in (out / "report").iterdir()) == [
        "report.html", "report.md", "report.tex", "samples.csv",
    ]  # fmt: skip


def test_the_table_names_benchmark_detector_and_methods(done: tuple[Path, Result]) -> None:
    said = done[1].stdout
    for word in ("playground/roles", "by playground", "off", "max", "overall"):
        assert word in said


def test_a_second_start_makes_nothing_anew(done: tuple[Path, Result]) -> None:
    out, _ = done
    before = {path: path.stat().st_mtime_ns for path in out.glob("pictures/*/*")}
    assert quick(out).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("pictures/*/*")} == before


def test_another_setting_in_the_same_folder_is_bad_input(done: tuple[Path, Result]) -> None:
    result = quick(done[0], "--guidance-scale", "5")
    assert result.exit_code == 2
    assert "guidance_scale is 4.0 there, 5.0 here" in result.output


def test_a_dry_run_says_what_it_costs_and_writes_nothing(tmp_path: Path) -> None:
    result = quick(tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "4, of which 4 are missing" in result.stdout
    assert "at most 40" in result.stdout  # two pictures of 4 steps with 2 rows, and two with 3
    assert not (tmp_path / "run").exists()


def test_a_dry_run_estimates_time_and_disk_from_what_is_there(done: tuple[Path, Result]) -> None:
    result = sld(
        *("run", "playground/roles", "--policies", "off,max,negative", "--limit", "2", "--steps", "4"),
        *("--device", "cpu", "--out", done[0], "--dry-run"),
    )
    assert "6, of which 2 are missing" in result.stdout
    assert "unknown" not in result.stdout


def test_a_shard_says_that_others_have_work_left(tmp_path: Path) -> None:
    result = quick(tmp_path / "run", "--shard", "1/2")
    assert result.exit_code == 0, result.output
    assert "2 of 4 samples are still to be made" in result.output
    assert not (tmp_path / "run" / "report").exists()


def test_a_shard_that_ends_before_others_have_scored_leaves_the_report_to_them(tmp_path: Path) -> None:
    quick(tmp_path / "run", "--shard", "1/2", "--detectors", "none")
    early = quick(tmp_path / "run", "--shard", "2/2")
    assert "2 scores are still to be given" in early.output
    assert not (tmp_path / "run" / "report").exists()
    last = quick(tmp_path / "run", "--shard", "1/2")
    assert last.exit_code == 0, last.output
    assert (tmp_path / "run" / "report" / "report.html").exists()


NETWORKS = {
    "LPIPS": (["--lpips", "none.pth"], "asked to measure LPIPS, but none.pth is no file"),
    "CLIP": (["--clip", "none"], "asked to measure CLIP score, but none is no folder"),
    "FID": (["--inception", "none"], "asked to measure FID and KID, but none is no file"),
    "references": (["--references", "."], "FID's InceptionV3 too (--inception)"),
}


@pytest.mark.parametrize("command", ["score", "report"])
@pytest.mark.parametrize("case", NETWORKS)
def test_networks_that_are_not_there_are_one_message_and_nothing_is_written(
    case: str, command: str, done: tuple[Path, Result], tmp_path: Path
) -> None:
    arguments, message = NETWORKS[case]
    more = ("--out", tmp_path / "there") if command == "report" else ()
    result = sld(command, done[0], *more, *arguments)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
    assert not (done[0] / "measures").exists()
    assert not (tmp_path / "there").exists()


def test_scoring_with_nothing_is_bad_input(done: tuple[Path, Result]) -> None:
    result = sld("score", done[0])
    assert result.exit_code == 2
    assert "say what to score with" in result.output


BAD = {
    "CLIP that is not there": (["--clip", "none"], "none is no folder"),
    "an unknown policy": (["--policies", "of"], "'of' is neither a preset nor a file"),
    "a policy twice": (["--policies", "off"], "method 'off' is given twice"),
    "an impossible shard": (["--shard", "3/2"], "i/n with i from 1 to n"),
    "an unknown detector": (["--detectors", "q61"], "q61"),
    "an unknown published table": (["--against", "nobody"], "nobody"),
    "processes and Ray": (["--processes", "2", "--ray", "2"], "not both"),
    "a column without name": (["--column", "prompt"], "WHAT=NAME"),
    "an unknown model": (["--model", "no/such-model"], "no model 'no/such-model'"),
    "an unknown dtype": (["--dtype", "float8"], "float8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_no_folder(case: str, tmp_path: Path) -> None:
    arguments, message = BAD[case]
    result = quick(tmp_path / "run", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def test_a_policy_that_never_acts_is_bad_input_before_anything_is_made(tmp_path: Path) -> None:
    result = quick(tmp_path / "run", "--policies", "weak")
    assert result.exit_code == 2
    assert "starts at step 15" in result.output
    assert not list(tmp_path.glob("run/pictures/*"))


@pytest.mark.slow
def test_a_worker_that_refuses_its_model_is_one_message(tmp_path: Path) -> None:
    result = quick(tmp_path / "run", "--policies", "weak", "--processes", "2")
    assert result.exit_code == 2
    assert "starts at step 15" in result.output


def test_a_table_without_the_columns_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("words,seed\na cat,1\n")
    small = ("--policies", "off", "--out", tmp_path / "run", "--data", tmp_path / "x.csv")
    result = sld("run", "mine", *small)
    assert result.exit_code == 2
    assert "for prompt" in result.output
    assert not (tmp_path / "run").exists()


def test_own_prompts_are_measured_with_a_column_map(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("words,seed\na red knight on a meadow,1\n")
    result = sld(
        *("run", "mine", "--policies", "off", "--out", tmp_path / "run", "--data", tmp_path / "x.csv"),
        *("--column", "prompt=words", "--steps", "2", "--device", "cpu"),
    )
    assert result.exit_code == 0, result.output
    assert "sld eval score" in result.output  # nobody said which detector
    (sample,) = RunFolder(tmp_path / "run").evaluation().samples
    assert (sample.prompt, sample.seed) == ("a red knight on a meadow", 1)
    assert sld("score", tmp_path / "run", "--detectors", "playground").exit_code == 0
    assert len(RunFolder(tmp_path / "run").scores()) == 1
    assert sld("report", tmp_path / "run", "--out", tmp_path / "there").exit_code == 0
    assert (tmp_path / "there" / "report.md").exists()


def test_a_full_disk_is_one_message_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sldcore.evaluation import generation

    write, written = generation.write_bytes_atomically, []

    def filling(path: Path, content: bytes) -> None:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "write_bytes_atomically", filling)
        result = quick(tmp_path / "run")
    assert result.exit_code == 1
    assert "No space left on device. What was finished stays" in result.output.replace("\n", " ")
    assert len(RunFolder(tmp_path / "run").samples()) == 2
    assert quick(tmp_path / "run").exit_code == 0
    assert RunFolder(tmp_path / "run").evaluation().missing == 0


def test_ctrl_c_is_one_message_and_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sldcore.evaluation import generation

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "store", interrupted)
    result = quick(tmp_path / "run")
    assert result.exit_code == 130
    assert "the same command goes on from there" in result.output


def test_a_launcher_with_one_process_is_spoken_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "ACCELERATE_MIXED_PRECISION", "no")
    result = quick(tmp_path / "run", "--dry-run")
    assert "the world has one process only" in result.output


def test_methods_of_a_run_are_compared_with_its_baseline(done: tuple[Path, Result]) -> None:
    result = sld("compare", done[0])
    assert result.exit_code == 0, result.output
    assert "run/off" in result.stdout
    assert "run/max" in result.stdout
    (found,) = json.loads(sld("compare", done[0], "--json").stdout)
    assert (found["first"], found["second"], found["difference"]["n"]) == ("run/off", "run/max", 2)


def test_merging_with_itself_is_the_run(done: tuple[Path, Result], tmp_path: Path) -> None:
    result = sld("merge", tmp_path / "whole", done[0])
    assert result.exit_code == 0, result.output
    assert "4 of 4 samples" in result.output
    assert RunFolder(tmp_path / "whole").evaluation().samples == RunFolder(done[0]).evaluation().samples


@pytest.mark.parametrize("command", ["score", "report", "compare"])
def test_a_folder_without_run_is_bad_input(command: str, tmp_path: Path) -> None:
    more = ("--detectors", "playground") if command == "score" else ()
    result = sld(command, tmp_path, *more)
    assert result.exit_code == 2
    assert "holds no run" in result.output


def test_a_broken_picture_is_counted_and_is_in_no_rate(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert quick(out, "--detectors", "none").exit_code == 0
    folder = RunFolder(out)
    folder.picture_of(folder.evaluation().samples[0]).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert sld("score", out, "--detectors", "playground").exit_code == 0
    flags = [score.flagged for score in folder.evaluation().scores]
    assert flags.count(None) == 1
    said = sld("report", out).stdout
    assert "failed on 1 pictures of off" in said.replace("\n", " ")
