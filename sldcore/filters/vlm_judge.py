"""Vision-language models as judges of pictures, in a folder, with policy texts made of the policy's concepts.

Three ways of asking (``style``):

    shieldgemma  ShieldGemma 2's own prompt and class, once per concept. Score: P(Yes) / (P(Yes) + P(No)) at the last position
    yes-no       any image-text-to-text model with a chat template, once per concept. The likeliest first word of its answer
                 must be Yes or No. Score: P(yes words) / (P(yes words) + P(no words)) at that position
    llavaguard   a LlavaGuard model, once for all concepts: a JSON answer with rating, category and rationale. It says a word
                 and no probability, so scores are 0 or 1, of ``unsafe`` and of the concept that it names

A category is one concept, and 0.5 is where the answer turns from no to yes; it was calibrated on nothing. An answer that is
none of those that were asked for raises, so the picture is withheld. Answers are greedy, whatever the folder's
generation_config says. Pictures of the same size are asked about together, so that nothing is padded; those with a side of less
than 32 pixels are enlarged, since some preprocessors take no smaller ones.

ShieldGemma 2 was trained on three policies (dangerous, sexual, violence) and LlavaGuard on nine categories; texts of other
concepts are up to their generalisation. Nothing was run on trained weights here: tests load models of the real classes with
random weights through this code.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from sldcore.contributions import PostFilterKind
from sldcore.filters.base import PictureContext
from sldcore.filters.concept_texts import concepts_for, content_of, named_concepts
from sldcore.filters.local_models import config_of, in_batches, model_folder, rgb, weight_files, weights_hash
from sldcore.filters.vlm_styles import LlavaGuard, Opinion, ShieldGemma, VlmJudgeOptions, YesNo
from sldcore.types import Verdict

if TYPE_CHECKING:
    from PIL import Image

NAME: Final = "vlm-judge"
SMALLEST: Final = 32


class VlmJudge:
    """Asks a vision-language model about pictures; the model is loaded when the filter is made.

    Raises:
        ModelError: the model or its processor cannot be loaded, or does not fit the style.
        ConfigurationError: a concept or the prompt cannot be had.
    """

    name = NAME
    version = "1"

    def __init__(self, options: VlmJudgeOptions) -> None:
        folder = model_folder(options.model, "a vision-language model")
        self._options, self._lock = options, Lock()
        self._own = named_concepts(options.concepts)
        style = options.style
        if style == "auto":
            style = "shieldgemma" if config_of(folder).model_type == "shieldgemma2" else "yes-no"
        styles = {"shieldgemma": ShieldGemma, "yes-no": YesNo, "llavaguard": LlavaGuard}
        self._judge = styles[style](options)
        self._weights = weights_hash(weight_files(folder))

    def review(self, pictures: Sequence[Image.Image], contexts: Sequence[PictureContext]) -> list[Verdict]:
        """One verdict per picture, with the score of every concept.

        Raises:
            TypeError: something is not a picture.
            ValueError: a picture cannot be judged, an answer cannot be read, or there is no concept to ask for.
        """
        ready = [_enlarged(picture) for picture in rgb(pictures)]
        groups: dict[Any, list[int]] = {}
        for index, (picture, context) in enumerate(zip(ready, contexts, strict=True)):
            contents = {name: content_of(parts) for name, parts in concepts_for(context, self._own).items()}
            groups.setdefault((picture.size, tuple(contents.items())), []).append(index)
        verdicts: dict[int, Verdict] = {}
        with self._lock:
            for (_, items), members in groups.items():
                for some in in_batches(members, self._options.batch_size):
                    opinions = self._judge.opinions([ready[index] for index in some], dict(items))
                    verdicts |= zip(some, map(self._verdict, opinions), strict=True)
        return [verdicts[index] for index in range(len(ready))]

    def _verdict(self, opinion: Opinion) -> Verdict:
        scores, limit = opinion.scores, self._options.threshold
        found = sorted((name for name in scores if scores[name] >= limit), key=lambda name: -scores[name])
        seen = ", ".join(f"{name} {scores[name]:.2f}" for name in found)
        reason = f"the judge finds {seen} (threshold {limit:g}) {opinion.words:.300}".strip() if found else ""
        thresholds = dict.fromkeys(scores, limit)
        return Verdict(
            NAME, self.version, bool(found), scores, thresholds, reason=reason, weights=self._weights
        )


def _enlarged(picture: Image.Image) -> Image.Image:
    """The picture, its pixels repeated if it is smaller than some preprocessors take."""
    from PIL import Image

    times = -(-SMALLEST // min(picture.size))
    size = (picture.width * times, picture.height * times)
    return picture.resize(size, Image.Resampling.NEAREST) if times > 1 else picture


KIND: Final = PostFilterKind(
    name=NAME,
    description="a vision-language model from a folder that is asked about the policy's concepts",
    options=VlmJudgeOptions,
    create=VlmJudge,
)
