"""The contracts that every plugin must keep, on what this one contributes."""

from pathlib import Path

import sld_template

from sldcore.concepts import load_pack
from sldcore.contributions import ConceptProvider
from sldcore.testing import ConceptContract, WindowContract

PACK = Path(sld_template.__file__).with_name("concepts.yaml")


class TestPack(ConceptContract):
    """The concept pack."""

    contribution = ConceptProvider(name="template", load=lambda: load_pack(PACK))


class TestWindow(WindowContract):
    """The window."""

    (contribution,) = sld_template.sld_windows()
