"""The contract of prompt filters, on ``prompt-concepts``."""

import sld_filter_prompt_concepts

from sldcore.testing import PromptFilterContract


class TestPromptConcepts(PromptFilterContract):
    """Against the default concept, with the default threshold."""

    (contribution,) = sld_filter_prompt_concepts.sld_prompt_filters()
    flagged = ("a bloody corpse, gore", "masterpiece, 8k, cinematic light, a naked girl, highly detailed")
    clean = ("a red knight on a meadow", "a bowl of fruit on a table, oil painting", "")
