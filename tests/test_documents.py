from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sldcore.documents import (
    DEPTH_LIMIT,
    SIZE_LIMIT,
    Problem,
    Strict,
    find_problems,
    parse_mapping,
    read_mapping,
    to_yaml,
    write_bytes_atomically,
    write_text_atomically,
)
from sldcore.errors import ConceptError, ConfigurationError, PolicyError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(), parts, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), plain, max_size=4))
def test_what_is_written_as_yaml_is_read_back_equal(document: dict[str, object]) -> None:
    assert parse_mapping(to_yaml(document), source="test") == document


def test_a_list_used_twice_is_written_out_twice() -> None:
    shared = [1]
    document = {"a": shared, "b": shared}
    assert parse_mapping(to_yaml(document), source="test") == document


def test_keys_keep_the_order_they_are_given_in() -> None:
    assert to_yaml({"b": 1, "a": 2}) == "b: 1\na: 2\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3\n", r"source: line 3.*duplicate key 'a'.*line 1"),
        ("x:\n  a: 1\n  a: 2\n", r"line 3, column 3: duplicate key 'a', first given in line 2"),
        ("a: &anchor 1\n", r"line 1, column 4: an anchor is not allowed"),
        ("a: 1\nb: *anchor\n", r"line 2, column 4: an alias is not allowed"),
        ("a: &x {c: 1}\nb:\n  <<: *x\n", r"an anchor is not allowed"),
        ("<<: {a: 1}\n", r"line 1, column 1: a key must be a plain text"),
        ("1: one\n", r"line 1, column 1: a key must be a plain text"),
        ("? [a, b]\n: c\n", r"a key must be a plain text"),
        ("a: !!python/object/apply:os.system [ls]\n", r"line 1, column 4: could not determine a constructor"),
        ("a: [1, 2\nb: 3\n", r"line 2"),
        ("a: 2024-99-99\n", r"a value that cannot be read"),
        ("a: \x07\n", r"special characters are not allowed"),
        ("- 1\n- 2\n", r"expected a mapping.*found a list"),
        ("just text\n", r"expected a mapping.*found a str"),
        ("", r"expected a mapping.*found nothing"),
        ("a: 1\n---\nb: 2\n", r"line 2"),
    ],
)
def test_a_document_that_is_not_plain_data_is_refused_and_says_where(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        parse_mapping(text, source="source")


def test_the_message_begins_with_the_source() -> None:
    with pytest.raises(ConfigurationError, match=r"^mine\.yaml: line 2"):
        parse_mapping("a: 1\na: 2\n", source="mine.yaml")


def test_the_caller_chooses_the_class_of_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        parse_mapping("", source="policy", error=PolicyError)
    with pytest.raises(ConceptError):
        read_mapping(tmp_path / "absent.yaml", error=ConceptError)


def test_a_bomb_of_aliases_is_refused_before_it_expands() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    with pytest.raises(ConfigurationError, match="not allowed"):
        parse_mapping("\n".join(lines), source="bomb")


def test_nesting_is_read_up_to_the_limit_and_refused_beyond() -> None:
    inner = DEPTH_LIMIT - 2  # the top mapping and the innermost value are levels too
    assert parse_mapping("a: " + "[" * inner + "1" + "]" * inner, source="deep")
    with pytest.raises(ConfigurationError, match="levels deep"):
        parse_mapping("a: " + "[" * 20_000 + "]" * 20_000, source="deep")


def test_a_document_of_more_than_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("a: " + "x" * SIZE_LIMIT)
    with pytest.raises(ConfigurationError, match=r"1,048,579 bytes, and at most 1,048,576 are read"):
        read_mapping(path)
    with pytest.raises(ConfigurationError, match="at most 1,048,576"):
        parse_mapping("ä" * (SIZE_LIMIT // 2 + 1), source="large")


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("a: 1\nb: ä\n".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="line 2: not UTF-8"):
        read_mapping(path)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "marked.yaml"
    path.write_bytes("a: ä\n".encode("utf-8-sig"))
    assert read_mapping(path) == {"a": "ä"}


def test_a_folder_in_place_of_a_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_mapping(tmp_path)


def test_writing_makes_folders_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text_atomically(path, "ä\r\n")
    write_text_atomically(path, "ö\n")
    assert path.read_bytes() == "ö\n".encode()
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"
    write_bytes_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_written_file_has_the_permissions_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text_atomically(tmp_path / "atomic", "")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


class Leaf(Strict):
    size: int


class Tree(Strict):
    name: str
    leaves: tuple[Leaf, ...] = ()


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("name: oak\nleaves:\n  - size: 1\n", []),
        ("leaves:\n  - size: 1\n  - size: x\n", [(1, "name"), (3, "leaves.1.size")]),
        ("name: oak\nleaves: [{size: 1}, {sze: 1}]\n", [(2, "leaves.1.size"), (2, "leaves.1.sze")]),
        ("name: oak\nleafs: []\nleaves:\n- {}\nroot: 1\n", [(2, "leafs"), (4, "leaves.0.size"), (5, "root")]),
        ("name: oak\nleaves: {a: 1}\n", [(2, "leaves")]),
        ("name: oak\nname: elm\n", [(2, "")]),
        ("name: oak\nleaves: [1\n", [(3, "")]),
        ("- oak\n", [(1, "")]),
        ('name: [\n"\\ud800"]\n', [(2, "")]),
    ],
)
def test_every_problem_of_a_document_has_its_line_and_field(text: str, places: list[tuple[int, str]]) -> None:
    assert [(problem.line, problem.field) for problem in find_problems(text, Tree)] == places


def test_a_problem_says_what_is_wrong_with_the_value() -> None:
    (problem,) = find_problems("name: oak\nleaves: [{size: big}]\n", Tree)
    assert problem == Problem(
        2,
        "leaves.0.size",
        "Input should be a valid integer, unable to parse string as an integer, got 'big'",
    )


@given(st.text(max_size=60) | st.dictionaries(st.sampled_from(["name", "leaves", "x"]), plain).map(to_yaml))
def test_any_text_has_problems_on_its_own_lines_or_none_if_it_can_be_read(text: str) -> None:
    problems = find_problems(text, Tree)
    lines = len(text.splitlines()) + 1
    assert all(1 <= problem.line <= lines for problem in problems)
    if not problems:
        Tree.model_validate(parse_mapping(text, source="tree"))
