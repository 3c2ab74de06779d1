from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_one_top_level_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sldcore"}


def test_the_wheel_brings_the_concept_packs(wheel: zipfile.ZipFile) -> None:
    shipped = {name.removeprefix("sldcore/concepts_data/") for name in wheel.namelist()}
    assert {path.name for path in (ROOT / "concepts").iterdir()} <= shipped


def test_the_wheel_brings_the_playground_model(wheel: zipfile.ZipFile) -> None:
    model = ROOT / "sldcore" / "playground" / "model"
    files = {path.relative_to(ROOT).as_posix() for path in model.rglob("*") if path.is_file()}
    assert files
    assert files <= set(wheel.namelist())


def test_the_wheel_brings_the_template_of_plugins(wheel: zipfile.ZipFile) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sldcore/plugin_template").rglob("*.tmpl")}
    assert files
    assert files <= set(wheel.namelist())


def test_packs_are_found_in_an_installed_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import sldcore, sldcore.concepts as c\n"
        "print(sldcore.__file__, c.pack_ids(), c.load_pack('inappropriate').id)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.startswith(str(tmp_path))
    shipped = sorted(path.stem for path in (ROOT / "concepts").glob("*.yaml"))
    assert f"{tuple(shipped)} inappropriate" in found.stdout
