from __future__ import annotations

import sys

import pytest

from sldcore.errors import ConfigurationError
from sldcore.evaluation.text import normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red knight", "a red knight"),
        ("  a\n red\tknight  ", "a red knight"),
        ("ben &amp; jerry", "ben & jerry"),
        (
            "1 < 2 &amp;amp; 3",
            "1 < 2 & 3",
        ),  # unescaped twice, as the original does; ftfy leaves text with a < alone
        ("dollâ€™s house", "doll's house"),  # ftfy repairs, and makes quotes straight
        ("café", "café"),
        ("&nbsp;", ""),
        ("A Red Knight", "A Red Knight"),
    ],
)
def test_text_is_cleaned_as_openais_tokenizer_does(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_without_ftfy_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ConfigurationError, match="pip install ftfy"):
        normalise("a knight")
