"""Files with prompts, well formed and otherwise, and data sets of the Hub through a stand-in for ``datasets``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sldcore.errors import ConfigurationError
from sldcore.evaluation import readers
from sldcore.evaluation.benchmarks import load_benchmark
from sldcore.evaluation.readers import read_table

WANTED = {"prompt", "seed"}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def cells(path: Path) -> list[dict[str, Any]]:
    return [
        {name: row.cells[name] for name in row.cells if name in WANTED}
        for row in read_table(path, WANTED).rows
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'other,prompt,seed\n1,"a, ""b""\nc",7\n\n2,d,8\n'),
        ("a.csv", '\ufeffprompt,seed,other\r\n"a, ""b""\nc",7,1\r\nd,8,2'),
        ("a.TSV", 'other\tprompt\tseed\n1\t"a, ""b""\nc"\t7\n2\td\t8\n'),
        (
            "a.jsonl",
            '{"prompt": "a, \\"b\\"\\nc", "seed": "7"}\n\n{"prompt": "d", "seed": "8", "other": [1]}',
        ),
    ],
)
def test_kinds_of_files_give_the_same_rows(name: str, content: str, tmp_path: Path) -> None:
    assert cells(write(tmp_path, name, content)) == [
        {"prompt": 'a, "b"\nc', "seed": "7"},
        {"prompt": "d", "seed": "8"},
    ]


def test_a_parquet_file_gives_plain_data_of_the_wanted_columns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt": ["a", "b"], "seed": [7, 8], "labels": [["x"], []]}), path)
    assert cells(path) == [{"prompt": "a", "seed": 7}, {"prompt": "b", "seed": 8}]
    benchmark = load_benchmark("mine", path, columns={"categories": "labels"})
    assert [(item.seed, item.categories) for item in benchmark.items] == [(7, ("x",)), (8, ())]


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigurationError, match="not a Parquet file"):
        read_table(write(tmp_path, "a.parquet", b"PAR1 no PAR1"), WANTED)


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"sldcore\[datasets\]"):
        read_table(write(tmp_path, "a.parquet", b"PAR1"), WANTED)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "no rows"),
        ("a.csv", "prompt\n", "no rows"),
        ("a.csv", "prompt,seed\na\n", "line 2: 1 cells, and the header has 2"),
        ("a.csv", "prompt\na,b\n", "line 2: 2 cells, and the header has 1"),
        ("a.csv", "prompt,prompt\na,b\n", "names 'prompt' more than once"),
        ("a.csv", 'prompt\n"a" b\n', "line 2: "),
        ("a.csv", 'prompt\n"a\n', "line 2: unexpected end"),
        ("a.csv", "prompt\n" + "x" * 10_000_000 + "\n", "line 2: field larger than field limit"),
        ("a.csv", b"prompt\n\xff\xfe\n", "not UTF-8"),
        ("a.jsonl", "[1]\n", "line 1: expected an object"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}\n', "line 1: not JSON: a name is given twice"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1: not JSON"),
        ("a.jsonl", '{"prompt": "' + "x" * 10_000_000 + '"}\n', "line 1: longer than"),
        ("a.xlsx", "PK", "of no kind that can be read"),
        ("a", "prompt\na\n", "of no kind that can be read"),
    ],
    ids=range(16),
)  # fmt: skip
def test_a_malformed_file_is_refused_with_one_short_message(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_table(write(tmp_path, name, content), WANTED)
    assert len(str(caught.value)) < 500


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name, message in (
        ("none.csv", "No such file"),
        ("folder.csv", "not a file"),
        ("a\0.csv", "null byte"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            read_table(tmp_path / name, WANTED)


def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.truncate(readers.LARGEST_FILE + 1)  # sparse
    with pytest.raises(ConfigurationError, match="at most 1,073,741,824 are read"):
        read_table(path, WANTED)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_too_many_rows_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_ROWS", 2)
    row = '{"prompt": "a"}' if name.endswith("l") else "a"
    with pytest.raises(ConfigurationError, match="more than 2 rows"):
        read_table(
            write(tmp_path, name, f"{'' if name.endswith('l') else 'prompt'}\n" + f"{row}\n" * 3), WANTED
        )


def test_half_a_character_in_json_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", json.dumps({"prompt": "a\ud800"}) + "\n")
    with pytest.raises(ConfigurationError, match=r"line 1: the prompt has .* half a character"):
        load_benchmark("mine", path)


@pytest.mark.parametrize("prompt", [7, ["a"], None, True])
def test_a_prompt_that_is_no_text_is_refused(prompt: object, tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", json.dumps({"prompt": prompt}) + "\n")
    with pytest.raises(ConfigurationError, match="there is no prompt"):
        load_benchmark("mine", path)


class FakeDataset:
    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows
        self.column_names = list(rows[0])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Any:
        return iter(self._rows)

    def select_columns(self, names: Sequence[str]) -> FakeDataset:
        return FakeDataset([{name: row[name] for name in names} for row in self._rows])


def stand_in(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_data_set_of_the_hub_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, **more: Any) -> FakeDataset:
        asked.append((name, more))
        return FakeDataset([{"adv_prompt": "a", "image": object()}, {"adv_prompt": "b", "image": object()}])

    stand_in(monkeypatch, load)
    benchmark = load_benchmark("mma-diffusion")
    assert [item.prompt for item in benchmark.items] == ["a", "b"]
    assert asked == [
        ("YijunYang280/MMA-Diffusion-NSFW-adv-prompts-benchmark", {"split": "train", "revision": None})
    ]


def test_a_data_set_that_cannot_be_had_says_what_else_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **more: Any) -> FakeDataset:
        raise ConnectionError("offline")

    stand_in(monkeypatch, load)
    with pytest.raises(
        ConfigurationError, match=r"ConnectionError: offline\. Download its file .*--data PATH"
    ):
        load_benchmark("i2p")
