"""Text normalisation before CLIP's tokenizer, as OpenAI's own tokenizer does it and the fast one of transformers does not.

Of the 4,467 distinct prompts of I2P, 97 become other tokens without it. So it decides pictures, and it is an option of a run.
"""

from __future__ import annotations

import html

from sldcore.errors import ConfigurationError


def normalise(text: str) -> str:
    """The text with encoding accidents repaired, HTML entities written out (twice), and white space collapsed.

    Case stays as it is: every CLIP tokenizer lowers it. Applying it a second time changes little, but may change something
    (``&amp;amp;amp;``), as in the original.

    Raises:
        ConfigurationError: ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError:
        raise ConfigurationError(
            "normalising prompts needs ftfy, which is not installed; run `pip install ftfy`, or leave prompts as they are"
        ) from None
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(unescaped.split())
