"""Whether a chain of records is whole, and if not, which is the first that is wrong and in what way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sldcore.service.ledger.chain import EMPTY, HASH, Chain, Entry, Head, Torn, parsed

How = Literal[
    "changed", "removed", "inserted", "reordered", "wrong key", "truncated", "head", "rewritten", "altered"
]
"""``truncated``: records are gone at the end. ``head``: what says where the chain ends is missing or changed. ``rewritten``: the chain
fits together, but is not the one that was noted. ``altered``: the chain is whole, but what protects the database was taken away."""


@dataclass(frozen=True, slots=True)
class SealedHead:
    """A head as it is stored, with its seal."""

    head: Head
    seal: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The first record that is wrong (its number, counted from 0), how, and in words."""

    seq: int
    how: How
    message: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found: how much of the chain holds, lines that a crash tore, and where it breaks, if it does."""

    head: Head
    torn: int = 0
    broken: Broken | None = None

    @property
    def whole(self) -> bool:
        """True if nothing is wrong."""
        return self.broken is None


def verify(
    stored: Iterable[Entry | Torn],
    chain: Chain,
    head: SealedHead | None = None,
    *,
    noted: str | None = None,
) -> Verification:
    """Follow a chain from its first record to its last, in the order in which they are stored.

    Args:
        stored: Entries, and lines that are none. They are read once, and not kept.
        chain: How hashes are made.
        head: Where the chain ends, as it was stored apart. Later records that fit are no fault: a crash may come between the two.
            Without one, only ``noted`` shows that the end is missing.
        noted: The hash of any record, noted elsewhere: that record must be there.
    """
    entries = iter(stored)
    good, torn, unread = EMPTY, 0, 0
    seen_noted = noted == good.hash
    at_head = head is not None and head.head.count == 0 and head.head.hash == good.hash
    for entry in entries:
        if isinstance(entry, Torn):
            unread += 1
            continue
        fits = entry.seq == good.count and chain.link(good.hash, good.count, entry.text) == entry.hash
        if not fits or parsed(entry.text) is None:
            return Verification(good, torn, _broken(entry, entries, chain, good, head, unread))
        torn, unread = torn + unread, 0
        good = Head(good.count + 1, entry.hash)
        seen_noted |= entry.hash == noted
        at_head |= head is not None and head.head == good
    return Verification(
        good, torn + unread, _wrong_end(good, chain, head, at_head, noted is not None and not seen_noted)
    )


def _broken(
    entry: Entry, rest: Iterator[Entry | Torn], chain: Chain, good: Head, head: SealedHead | None, unread: int
) -> Broken:
    """Say why an entry is not the one that is expected after ``good``."""
    seq = good.count
    if seq == 0 and chain.is_other(entry):
        asked = "with another secret, or none" if chain.secret else "with a secret, which is needed"
        return Broken(0, "wrong key", f"the chain was made {asked}")
    if entry.seq < seq:
        return Broken(
            seq,
            "inserted",
            f"a record with the number {entry.seq}, which there was before, stands in its place",
        )
    if chain.link(good.hash, seq, entry.text) == entry.hash:
        return Broken(seq, "changed", f"its number was made {entry.seq}")
    look = _Look(entry, chain, good)
    for other in rest:
        look.at(other)
    if look.expected or (entry.seq != seq and look.same_number):
        if look.displaced and not look.again:
            return Broken(
                seq, "reordered", f"it comes later; here is one that belongs elsewhere ({entry.seq})"
            )
        return Broken(seq, "inserted", "a record that does not belong here stands before it")
    if entry.seq != seq:
        if unread:
            return Broken(seq, "changed", "it cannot be read any more")
        last = f" to {entry.seq - 1}" if entry.seq - 1 > seq else ""
        return Broken(seq, "removed", f"record {seq}{last} is missing: {entry.seq} comes next")
    if head is not None and seq >= head.head.count:
        return Broken(
            seq, "inserted", f"only {head.head.count} records were written, and this one does not fit"
        )
    return Broken(seq, "changed", "the record, its number or its hash is not what was written")


class _Look:
    """Looks through what comes after a record that does not fit, to tell the ways to break a chain apart."""

    def __init__(self, entry: Entry, chain: Chain, good: Head) -> None:
        self._entry, self._chain, self._good = entry, chain, good
        self.expected = self.same_number = self.displaced = self.again = False

    def at(self, other: Entry | Torn) -> None:
        """Take one of the later entries into account."""
        if isinstance(other, Torn):
            return
        link, good, entry = self._chain.link, self._good, self._entry
        self.expected |= link(good.hash, good.count, other.text) == other.hash
        self.same_number |= other.seq == good.count
        self.again |= other.hash == entry.hash
        # Its true predecessor bears its own number, or the one that it was exchanged with.
        if not self.displaced and HASH.fullmatch(other.hash):
            numbers = {max(other.seq, 0), max(other.seq + 1, 0), entry.seq}
            self.displaced = any(link(other.hash, number, entry.text) == entry.hash for number in numbers)


def _wrong_end(
    good: Head, chain: Chain, head: SealedHead | None, at_head: bool, lacks_noted: bool
) -> Broken | None:
    if head is not None:
        if not chain.sealed(head.head, head.seal):
            return Broken(good.count, "head", "what says where the ledger ends was changed")
        if head.head.count > good.count:
            gone = head.head.count - good.count
            return Broken(good.count, "truncated", f"{gone} of {head.head.count} records are gone at the end")
        if not at_head:
            return Broken(
                max(head.head.count - 1, 0),
                "rewritten",
                "the chain is not the one that was written: another head is stored",
            )
    if lacks_noted:
        message = "no record has the head that was noted: the end is gone, or the chain was written anew"
        return Broken(good.count, "rewritten", message)
    return None
