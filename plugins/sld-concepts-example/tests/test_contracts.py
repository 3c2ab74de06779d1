"""The contract of concept packs, on ``example-heights``."""

from pathlib import Path

import sld_concepts_example

from sldcore.concepts import load_pack
from sldcore.contributions import ConceptProvider
from sldcore.testing import ConceptContract

PACK = Path(sld_concepts_example.__file__).with_name("example-heights.yaml")


class TestHeights(ConceptContract):
    """The pack as the manifest names it."""

    contribution = ConceptProvider(name="example-heights", load=lambda: load_pack(PACK))
