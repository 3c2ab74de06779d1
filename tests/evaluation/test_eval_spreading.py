"""A run is the same whoever makes it, in how many parts, and however often it is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from forked_runs import ForkedRun

from sldcore.evaluation import Evaluation, RunFolder, Sample, merge

LIMIT, STEPS, BATCH = 8, 4, 2
OPTIONS = (
    *("playground/roles", "--policies", "off,max,negative", "--limit", str(LIMIT)),
    *("--steps", str(STEPS), "--batch-size", str(BATCH), "--device", "cpu"),
)
SAMPLES = 3 * LIMIT

pytestmark = pytest.mark.slow


def arguments(out: Path, *options: str) -> list[str]:
    return ["eval", "run", *OPTIONS, "--out", str(out), *options]


def start(out: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """The command as a user starts it, which starts others."""
    code = "from sldcore.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments(out, *options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def sld(out: Path, *options: str, **environment: str) -> str:
    process = start(out, *options, **environment)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def forked(out: Path, *options: str, **environment: str) -> ForkedRun:
    """The same command in one process, without the seconds that its imports take."""
    said = out.with_name(f"{out.name}-{len(list(out.parent.glob('*.said')))}.said")
    said.touch()
    return ForkedRun(arguments(out, *options), said, environment)


def timeless(evaluation: Evaluation) -> list[Sample]:
    """Samples without what a clock decides."""
    return [replace(sample, seconds=0.0) for sample in evaluation.samples]


def files(out: Path) -> dict[str, bytes]:
    """Finished ones: what a kill leaves half-written begins with a dot."""
    return {path.name: path.read_bytes() for path in out.glob("pictures/*/[!.]*")}


def require_same(out: Path, undisturbed: Path) -> None:
    found, expected = RunFolder(out).evaluation(), RunFolder(undisturbed).evaluation()
    assert timeless(found) == timeless(expected)
    assert found.scores == expected.scores
    assert files(out) == files(undisturbed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval") / "run"
    forked(out).finish()
    found = RunFolder(out).evaluation()
    assert (len(found.samples), len(found.scores), found.missing) == (SAMPLES, SAMPLES, 0)
    return out


def test_two_shards_in_two_folders_merged_are_one_run(undisturbed: Path, tmp_path: Path) -> None:
    for number in ("1", "2"):
        said = forked(tmp_path / number, "--shard", f"{number}/2").finish()
        assert "still to be made" in said
    first, second = (RunFolder(tmp_path / number).evaluation() for number in ("1", "2"))
    assert len(first.samples) + len(second.samples) == SAMPLES
    merge(tmp_path / "whole", [tmp_path / "1", tmp_path / "2"])
    require_same(tmp_path / "whole", undisturbed)


def test_two_processes_make_the_same_run(undisturbed: Path, tmp_path: Path) -> None:
    sld(tmp_path / "run", "--processes", "2")
    assert len(list(tmp_path.glob("run/samples/*process*"))) == 2
    require_same(tmp_path / "run", undisturbed)


def test_ranks_of_a_launcher_make_the_same_run_in_one_folder(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ranks = [
        forked(out, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
        for rank in range(2)
    ]
    for process in ranks:
        process.finish()
    require_same(out, undisturbed)


@pytest.fixture
def traces(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment by which all that a Ray run starts is known; when the test is over, nothing may be left of it."""
    with TemporaryDirectory(prefix="sld-test-", dir="/tmp") as short:  # a socket's path may not be long
        own = {"RAY_TMPDIR": short, "HOME": str(tmp_path), "SLD_TEST_RUN": tmp_path.name + short}
        yield own
        deadline = time.monotonic() + 60
        while _processes(own) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert _processes(own) == {}
        assert (list(Path(short).iterdir()), list(tmp_path.glob(".ray"))) == ([], [])


def test_ray_actors_make_the_same_run(undisturbed: Path, tmp_path: Path, traces: dict[str, str]) -> None:
    sld(tmp_path / "run", "--ray", "2", **traces)
    assert list(tmp_path.glob("run/samples/ray.jsonl"))
    require_same(tmp_path / "run", undisturbed)


def test_a_batch_of_a_ray_actor_that_dies_is_made_by_another(
    undisturbed: Path, tmp_path: Path, traces: dict[str, str]
) -> None:
    out = tmp_path / "run"
    process = start(out, "--ray", "2", **traces)
    _wait_for_samples(process, out)
    _kill_one(process.pid, "ray::_Maker")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    require_same(out, undisturbed)


def test_ray_passes_on_what_a_pipeline_refuses(tmp_path: Path, traces: dict[str, str]) -> None:
    process = start(tmp_path / "run", "--ray", "1", "--policies", "weak", **traces)
    said, _ = process.communicate(timeout=600)
    assert (process.returncode, "starts at step 15" in said) == (2, True), said


def test_an_interrupted_ray_run_stops_what_it_started_on_the_loopback_interface(
    tmp_path: Path, traces: dict[str, str]
) -> None:
    out = tmp_path / "run"
    process = start(out, "--ray", "1", **traces)
    _wait_for_samples(process, out)
    processes = _processes(traces)
    listening = {address for each in processes for address in _listening(each)}
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=600)
    assert (process.returncode, "interrupted" in said) == (130, True), said
    assert any("raylet" in name for name in processes.values())
    assert {str(each) for each in listening} == {"127.0.0.1"}


def test_a_process_that_is_killed_is_named_and_the_next_start_goes_on(
    undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(out, "--processes", "2")
    _wait_for_samples(process, out)
    _kill_one(process.pid, "spawn_main")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1, said
    assert "was killed by signal 9" in said
    forked(out).finish()
    require_same(out, undisturbed)


def test_a_run_killed_twenty_times_ends_as_one_that_was_left_alone(undisturbed: Path, tmp_path: Path) -> None:
    out, chance, lived = tmp_path / "run", random.Random(5), 0
    for number in range(20):
        process = forked(out)
        _let_live(process, out, batches=number % 2, chance=chance)
        lived += process.poll() is not None
        process.kill()
    assert lived < 20
    forked(out).finish()
    require_same(out, undisturbed)


def _wait_for_samples(process: subprocess.Popen[str], out: Path) -> None:
    deadline = time.monotonic() + 300
    while not _lines(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]


def _kill_one(parent: int, name: str) -> None:
    """Kill a descendant of our own process whose command line has this name."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if name in (folder / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended meanwhile
    ours = [each for each in found if _descends(each, parent, parents)]
    assert ours, f"no {name} among the descendants"
    os.kill(ours[0], signal.SIGKILL)


def _processes(environment: dict[str, str]) -> dict[int, str]:
    """Processes that have the run's mark in their environment, and their command lines."""
    mark, found = f"SLD_TEST_RUN={environment['SLD_TEST_RUN']}".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile, or is somebody else's
    return found


def _listening(process: int) -> set[IPv4Address | IPv6Address]:
    """Addresses at which a process waits for connections."""
    sockets, found = set(), set()
    with suppress(OSError):  # it may end meanwhile
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            sockets.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
                local, state, inode = (line.split()[column] for column in (1, 3, 9))
                if inode in sockets and state == "0A":
                    found.add(_address(local.partition(":")[0]))
    return found


def _address(text: str) -> IPv4Address | IPv6Address:
    """An address as the kernel writes it: hexadecimal words in the machine's order of bytes."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    address = ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address


def _descends(process: int, ancestor: int, parents: dict[int, int]) -> bool:
    while process > 1 and process != ancestor:
        process = parents.get(process, 0)
    return process == ancestor


def _let_live(process: ForkedRun, out: Path, batches: int, chance: random.Random) -> None:
    """Until the run has made so many more batches, and then for a moment that chance decides."""
    before, deadline = _lines(out), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and _lines(out) < before + BATCH * batches:
        time.sleep(0.01)
    time.sleep(chance.random() * (0.15 if batches else 2))


def _lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("samples/*.jsonl"))
