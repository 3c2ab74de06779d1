from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sldcore.errors import ConfigurationError
from sldcore.evaluation import journals

DOCUMENTS = [{"n": 1, "text": "a\nb"}, {"n": 2, "text": "ü"}, {"n": 3, "text": "\u2028"}]


@given(cut=st.integers(0, 70))
def test_a_journal_cut_anywhere_yields_its_whole_lines_and_takes_more(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "a.jsonl"
    journals.append(path, DOCUMENTS)
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    whole = list(journals.read(path))
    assert whole == DOCUMENTS[: len(whole)]
    assert len(whole) >= content.count(b"\n")
    journals.append(path, [{"n": 4}])
    assert list(journals.read(path)) == [*whole, {"n": 4}]


def test_lines_that_are_no_objects_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'[1]\n\xff\xfe\n{"n": 1}\n' + b"[" * 100_000 + b'\n\n"x"\n{"n": 2}')
    assert list(journals.read(path)) == [{"n": 1}, {"n": 2}]


def test_a_full_disk_is_an_error_and_leaves_the_earlier_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    journals.append(path, [{"n": 1}])
    write = os.write
    calls = []

    def full(descriptor: int, content: bytes) -> int:
        if calls:
            raise OSError(28, "No space left on device")
        calls.append(write(descriptor, content[:5]))
        return calls[0]

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "write", full)
        journals.append(path, [{"n": 2}])
    journals.append(path, [{"n": 3}])
    assert list(journals.read(path)) == [{"n": 1}, {"n": 3}]


def test_a_journal_that_is_a_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the journal"):
        list(journals.read(tmp_path))
