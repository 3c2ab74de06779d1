"""The contract of concept packs."""

# ruff: noqa: D102  (the name of a test is its documentation)

from __future__ import annotations

from typing import Final

from sldcore.catalogue import using
from sldcore.concepts import ConceptPack, resolve
from sldcore.contributions import ConceptProvider
from sldcore.policy import ConceptUse
from sldcore.splitting import split_to_window
from sldcore.testing.contracts.base import Contract, require
from sldcore.testing.fakes import WINDOW, count_tokens
from sldcore.testing.sources import catalogue_with

ACCEPTED: Final = 2.5
"""The most tokens per word that are reckoned with: CLIP's vocabulary is English, other words fall apart."""


class ConceptContract(Contract):
    """For :class:`sldcore.contributions.ConceptProvider`."""

    kind = ConceptProvider

    def make(self) -> ConceptPack:
        """The pack."""
        pack: ConceptPack = self.subject.load()
        return pack

    def use(self, made: ConceptPack) -> int:
        """Every concept, once."""
        for each in made.concepts:
            made.concept(each.id)
        made.whole()
        return 1

    def test_it_is_a_pack_of_the_name_that_it_is_provided_under(self) -> None:
        pack = self.make()
        require(isinstance(pack, ConceptPack), f"load() gave {type(pack).__name__}, not a ConceptPack")
        require(
            pack.id == self.subject.name, f"the pack's id is '{pack.id}', and its name '{self.subject.name}'"
        )

    def test_it_says_where_it_comes_from_and_what_it_cannot_do(self) -> None:
        pack = self.make()
        for name in ("version", "title", "languages", "licence", "sources", "limits"):
            require(getattr(pack, name), f"'{name}' is empty; users of a pack must know it")

    def test_it_is_the_same_every_time(self) -> None:
        require(self.make() == self.make(), "two calls of load() give different packs")

    def test_a_policy_can_use_all_of_it(self) -> None:
        pack = self.make()
        with using(catalogue_with(self.subject)):
            whole = resolve([ConceptUse(use=(pack.id,))])
            every = resolve([ConceptUse(use=(f"{pack.id}/*",))])
            single = [resolve([ConceptUse(use=(f"{pack.id}/{each.id}",))])[0] for each in pack.concepts]
        require(
            [used.concept.id for used in whole] == [pack.id], f"'{pack.id}' does not stand for the whole pack"
        )
        ids = [f"{pack.id}/{each.id}" for each in pack.concepts]
        require([used.concept.id for used in single] == ids, "its concepts cannot be used one by one")
        twice = [name for name in ids if name not in [used.concept.id for used in every]]
        require(not twice, f"{', '.join(twice)}: the same text as another concept of the pack")

    def test_its_texts_can_be_split_to_a_text_encoder(self) -> None:
        pack = self.make()
        for concept in [pack.whole(), *(pack.concept(each.id) for each in pack.concepts)]:
            if concept.embedding is None:
                parts = split_to_window(concept, _generous_count, WINDOW)
                require(all(parts), f"{concept.id}: a part is empty")

    def test_weights_do_something(self) -> None:
        idle = [each.id for each in self.make().concepts if each.weight == 0]
        require(not idle, f"{', '.join(idle)}: weight 0, so that a policy would name them in vain")


def _generous_count(text: str) -> int:
    return round(ACCEPTED * (count_tokens(text) - 2)) + 2
