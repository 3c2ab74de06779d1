"""Whatever single record is changed, removed, moved or added: it is found, at its place."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_ledgers import LEDGERS, SECRET, record, tampered, verified

from sldcore.service.ledger.chain import EMPTY, Chain, Entry, Head, Torn, canonical
from sldcore.service.ledger.records import begin_record
from sldcore.service.ledger.verifying import SealedHead, Verification, verify

COUNT = 6
places = st.integers(0, COUNT - 1)
chains = st.sampled_from([Chain(), Chain(SECRET)])


def made(chain: Chain, count: int = COUNT) -> list[Entry]:
    records = [begin_record(chain.fingerprint), *map(record, range(1, count))]
    return chain.extended(EMPTY, [canonical(each) for each in records])


def head_of(chain: Chain, entries: list[Entry]) -> SealedHead:
    head = Head(len(entries), entries[-1].hash)
    return SealedHead(head, chain.seal(head))


def found(chain: Chain, entries: list[Entry], stored: list[Entry | Torn]) -> tuple[int, str] | None:
    """Where and how it is broken, given what is stored in place of the entries."""
    broken = verify(stored, chain, head_of(chain, entries)).broken
    return None if broken is None else (broken.seq, broken.how)


def changed(entry: Entry) -> Entry:
    return Entry(entry.seq, entry.hash, entry.text.replace('"format":1', '"format":2'))


@given(chains)
def test_what_was_written_is_whole(chain: Chain) -> None:
    entries = made(chain)
    head = Head(COUNT, entries[-1].hash)
    assert verify(entries, chain, head_of(chain, entries)) == Verification(head)


@given(chains, places, st.sampled_from(["text", "hash", "number"]))
def test_a_changed_record_is_found(chain: Chain, at: int, part: str) -> None:
    entries = made(chain)
    old = entries[at]
    new = {
        "text": changed(old),
        "hash": Entry(old.seq, "a" * 64, old.text),
        "number": Entry(old.seq + COUNT, old.hash, old.text),
    }[part]
    assert found(chain, entries, [*entries[:at], new, *entries[at + 1 :]]) == (at, "changed")


@given(chains, places, st.data())
def test_any_changed_byte_is_found(chain: Chain, at: int, data: st.DataObject) -> None:
    entries = made(chain)
    text = entries[at].text
    place = data.draw(st.integers(0, len(text) - 1))
    mark = data.draw(st.characters(codec="ascii").filter(lambda mark: mark != text[place]))
    new = Entry(at, entries[at].hash, text[:place] + mark + text[place + 1 :])
    broken = found(chain, entries, [*entries[:at], new, *entries[at + 1 :]])
    assert broken in ((at, "changed"), (0, "wrong key"))
    assert broken == (at, "changed") or at == 0


@given(chains, st.integers(0, COUNT - 2))
def test_a_removed_record_is_found(chain: Chain, at: int) -> None:
    entries = made(chain)
    assert found(chain, entries, entries[:at] + entries[at + 1 :]) == (at, "removed")


@given(chains, st.integers(0, COUNT - 2))
def test_a_removed_record_is_found_though_the_others_are_renumbered(chain: Chain, at: int) -> None:
    entries = made(chain)
    moved = [Entry(entry.seq - 1, entry.hash, entry.text) for entry in entries[at + 1 :]]
    broken = found(chain, entries, entries[:at] + moved)
    assert broken == (at, "changed")


@given(chains, st.integers(0, COUNT - 1))
def test_a_removed_end_is_found(chain: Chain, at: int) -> None:
    entries = made(chain)
    assert found(chain, entries, entries[:at]) == (at, "truncated")


@given(chains, places, places)
def test_two_exchanged_records_are_found(chain: Chain, one: int, other: int) -> None:
    entries = made(chain)
    first, second = sorted((one, other))
    stored = list(entries)
    stored[first], stored[second] = stored[second], stored[first]
    assert found(chain, entries, stored) == (None if one == other else (first, "reordered"))


@given(chains, places, places)
def test_two_records_that_exchange_numbers_are_found(chain: Chain, one: int, other: int) -> None:
    entries = made(chain)
    first, second = sorted((one, other))
    stored = list(entries)
    stored[first] = Entry(first, entries[second].hash, entries[second].text)
    stored[second] = Entry(second, entries[first].hash, entries[first].text)
    assert found(chain, entries, stored) == (None if one == other else (first, "reordered"))


@given(chains, st.integers(0, COUNT), st.integers(0, 2 * COUNT))
def test_a_forged_record_that_is_added_is_found(chain: Chain, at: int, number: int) -> None:
    entries = made(chain)
    forged = Entry(number, "c" * 64, canonical(record(77)))
    broken = found(chain, entries, [*entries[:at], forged, *entries[at:]])
    assert broken is not None
    assert broken[0] == at
    assert broken[1] == "inserted" or (at == COUNT and number > COUNT)


@given(chains, st.integers(0, COUNT), places)
def test_a_record_that_is_there_twice_is_found(chain: Chain, at: int, copied: int) -> None:
    entries = made(chain)
    broken = found(chain, entries, [*entries[:at], entries[copied], *entries[at:]])
    # Before itself or after itself, a copy cannot be told from the record.
    assert broken == ((at, "inserted") if copied != at else (at + 1, "inserted"))


@given(chains, st.integers(0, COUNT))
def test_a_torn_line_alone_breaks_nothing(chain: Chain, at: int) -> None:
    entries = made(chain)
    result = verify([*entries[:at], Torn(), *entries[at:]], chain, head_of(chain, entries))
    assert (result.whole, result.torn, result.head.count) == (True, 1, COUNT)


@given(chains, places)
def test_a_record_that_is_made_unreadable_is_found(chain: Chain, at: int) -> None:
    entries = made(chain)
    broken = found(chain, entries, [*entries[:at], Torn(), *entries[at + 1 :]])
    assert broken == ((at, "truncated") if at == COUNT - 1 else (at, "changed"))


@given(places)
def test_a_chain_made_anew_without_the_secret_is_found(at: int) -> None:
    chain, forger = Chain(SECRET), Chain(b"a guess of the secret")
    entries = made(chain)
    texts = [changed(entry).text for entry in entries[at:]]
    before = Head(at, entries[at - 1].hash) if at else EMPTY
    forged = [*entries[:at], *forger.extended(before, texts)]
    assert verify(forged, chain, head_of(forger, forged)).broken is not None


@given(places)
def test_a_chain_without_a_secret_that_is_made_anew_is_found_by_a_noted_head_only(at: int) -> None:
    chain = Chain()
    entries = made(chain)
    texts = [changed(entries[at]).text, *(entry.text for entry in entries[at + 1 :])]
    forged = [
        *entries[:at], *chain.extended(Head(at, entries[at - 1].hash) if at else EMPTY, texts),
    ]  # fmt: skip
    head = head_of(chain, forged)
    assert verify(forged, chain, head).whole
    result = verify(forged, chain, head, noted=entries[-1].hash)
    assert result.broken is not None
    assert result.broken.how == "rewritten"
    assert verify(entries, chain, head_of(chain, entries), noted=entries[at].hash).whole


def test_a_head_that_was_set_back_is_found_if_there_is_a_secret() -> None:
    chain, entries = Chain(SECRET), made(Chain(SECRET))
    seal = head_of(chain, entries).seal
    back = SealedHead(Head(3, entries[2].hash), seal)
    broken = verify(entries[:3], chain, back).broken
    assert broken is not None
    assert (broken.seq, broken.how) == (3, "head")


def test_a_head_of_another_chain_is_found() -> None:
    chain, entries = Chain(), made(Chain())
    head = Head(COUNT, "d" * 64)
    broken = verify(entries, chain, SealedHead(head, chain.seal(head))).broken
    assert broken is not None
    assert (broken.seq, broken.how) == (COUNT - 1, "rewritten")


@pytest.mark.parametrize(
    ("made_with", "read_with"), [(SECRET, b""), (b"", SECRET), (SECRET, b"another secret 0123")]
)
def test_the_wrong_key_is_named(made_with: bytes, read_with: bytes) -> None:
    entries = made(Chain(made_with))
    broken = verify(entries, Chain(read_with), head_of(Chain(made_with), entries)).broken
    assert broken is not None
    assert (broken.seq, broken.how) == (0, "wrong key")


def test_the_hash_is_what_its_description_says() -> None:
    from hashlib import sha256
    from hmac import digest

    (entry,) = Chain().extended(EMPTY, ['{"a":1}'])
    message = b"sldcore ledger record 1\0" + bytes(32) + bytes(8) + b'{"a":1}'
    assert entry.hash == sha256(message).hexdigest()
    (keyed,) = Chain(SECRET).extended(EMPTY, ['{"a":1}'])
    assert keyed.hash == digest(SECRET, message, "sha256").hex()


def filled(path: Path, kind: str) -> Path:
    ledger = LEDGERS[kind](path / "ledger", SECRET)
    ledger.append([record(number) for number in range(1, 6)])
    ledger.close()
    return path / "ledger"


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE records SET record = replace(record, 'anna', 'bert') WHERE seq = 2"], (2, "changed")),
        (["UPDATE records SET hash = upper(hash) WHERE seq = 4"], (4, "changed")),
        (["DELETE FROM records WHERE seq = 3"], (3, "removed")),
        (["DELETE FROM records WHERE seq > 3"], (4, "truncated")),
        (["DELETE FROM records"], (0, "truncated")),
        (["DELETE FROM records WHERE seq > 3", "UPDATE head SET count = 4"], (4, "head")),
        (["DELETE FROM head"], (6, "head")),
        (["INSERT INTO records VALUES (6, 'x', '{}')"], (6, "inserted")),
        (["INSERT INTO records VALUES (-1, 'x', '{}')"], (0, "inserted")),
        (
            [
                "UPDATE records SET seq = 9 WHERE seq = 2",
                "UPDATE records SET seq = 2 WHERE seq = 3",
                "UPDATE records SET seq = 3 WHERE seq = 9",
            ],
            (2, "reordered"),
        ),
    ],
)
def test_a_database_that_somebody_wrote_to_is_found(
    tmp_path: Path, statements: list[str], expected: tuple[int, str]
) -> None:
    path = filled(tmp_path, "sqlite")
    tampered(path, *statements)
    broken = verified(path).broken
    assert broken is not None
    assert (broken.seq, broken.how) == expected


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DROP TRIGGER no_delete", (6, "altered")),
        ("CREATE TRIGGER more AFTER INSERT ON records BEGIN DELETE FROM records; END", (6, "altered")),
        ("DROP INDEX by_request", (6, "altered")),
    ],
)
def test_a_database_that_lost_its_protection_is_found(
    tmp_path: Path, statement: str, expected: tuple[int, str]
) -> None:
    path = filled(tmp_path, "sqlite")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
    broken = verified(path).broken
    assert broken is not None
    assert (broken.seq, broken.how) == expected


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([0, 1, 2, 3, 5], (4, "removed")),
        ([0, 1, 3, 2, 4, 5], (2, "reordered")),
        ([0, 1, 2, 2, 3, 4, 5], (3, "inserted")),
        ([0, 1, 2, 3, 4], (5, "truncated")),
        ([], (0, "truncated")),
    ],
)
def test_a_file_of_lines_that_somebody_edited_is_found(
    tmp_path: Path, kept: list[int], expected: tuple[int, str]
) -> None:
    path = filled(tmp_path, "jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[number] for number in kept))
    broken = verified(path).broken
    assert broken is not None
    assert (broken.seq, broken.how) == expected


def test_space_that_json_does_not_mind_is_found(tmp_path: Path) -> None:
    path = filled(tmp_path, "jsonl")
    path.write_bytes(path.read_bytes().replace(b'"record":{', b'"record":{ ', 3))
    broken = verified(path).broken
    assert broken is not None
    assert (broken.seq, broken.how) == (0, "changed")


@pytest.mark.parametrize("content", [None, b"", b"nothing", b'{"count": 3, "hash": "x", "seal": "y"}'])
def test_a_head_file_that_is_gone_or_changed_is_found(tmp_path: Path, content: bytes | None) -> None:
    path = filled(tmp_path, "jsonl")
    head = tmp_path / "ledger.head"
    last = json.loads(head.read_bytes())["hash"]
    head.unlink()
    if content is not None:
        head.write_bytes(content)
    broken = verified(path).broken
    assert broken is not None
    assert (broken.seq, broken.how) == (6, "head")
    assert verified(path, noted=last).whole == (content is None)
