"""The contract of marks, on ``provenance``."""

from io import BytesIO

import pytest
import sld_mark_provenance
from sld_mark_provenance.signing import credentials_of
from sld_mark_provenance.trial import write_chain

from sldcore.testing import MarkContract
from sldcore.types import Report


class TestProvenance(MarkContract):
    """With a certificate made for the test."""

    (contribution,) = sld_mark_provenance.sld_marks()

    @pytest.fixture(autouse=True)
    def _chain(self, tmp_path):
        self.options = write_chain(tmp_path)

    def test_a_mark_changes_the_picture(self):
        """It changes the file, not the pixels."""
        content = BytesIO()
        self.pictures()[0].save(content, "PNG")
        signed = self.make().mark_bytes(content.getvalue(), Report("", 0, "", "", {}))
        assert credentials_of(content.getvalue()) is None
        assert credentials_of(signed).whole
