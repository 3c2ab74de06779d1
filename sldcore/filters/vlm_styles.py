"""The ways of asking a vision-language model about pictures: ShieldGemma 2's own, yes or no, and LlavaGuard's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pydantic import Field

from sldcore.errors import ConfigurationError, ModelError
from sldcore.filters import vlm_prompts
from sldcore.filters.concept_texts import ConceptOptions
from sldcore.filters.local_models import finite, load_model, load_processor, model_folder

if TYPE_CHECKING:
    from PIL import Image

UNSAFE: Final = "unsafe"


class VlmJudgeOptions(ConceptOptions):
    """Options of ``vlm-judge``."""

    style: Literal["auto", "shieldgemma", "yes-no", "llavaguard"] = Field(
        "auto", description="how it is asked; auto: shieldgemma for ShieldGemma 2, yes-no for others"
    )
    prompt: str = Field(
        "",
        description="file with a prompt: {policy} in place of the concepts, and for llavaguard {categories}",
    )
    max_new_tokens: int = Field(512, ge=1, le=4096, description="longest answer of llavaguard")
    batch_size: int = Field(4, ge=1, le=1024, description="pictures that the model sees at once")


class Opinion(NamedTuple):
    """What a judge says about one picture: scores by category, and its own words if it gives any."""

    scores: dict[str, float]
    words: str = ""


class Judge:
    """A loaded model with its processor, and one way of asking it.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, options: VlmJudgeOptions, loader: Any) -> None:
        folder = model_folder(options.model, "a vision-language model")
        self.options = options
        self.processor = load_processor(folder)
        if not getattr(self.processor, "chat_template", None) or not hasattr(self.processor, "tokenizer"):
            raise ModelError(
                f"{options.model} holds no chat template, which says how its model is asked; add chat_template.jinja"
            )
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = load_model(loader, folder, options)

    def opinions(self, pictures: Sequence[Image.Image], contents: Mapping[str, str]) -> list[Opinion]:
        """One opinion per picture; ``contents`` says by concept id what to look for. Pictures have the same size."""
        columns = {name: self.ask(pictures, content) for name, content in contents.items()}
        return [
            Opinion({name: scores[row] for name, scores in columns.items()}) for row in range(len(pictures))
        ]

    def ask(self, pictures: Sequence[Image.Image], content: str) -> list[float]:
        """How likely each picture shows ``content``."""
        raise NotImplementedError

    def on_device(self, inputs: Any) -> Any:
        """Inputs where the model is, floats in its dtype."""
        return inputs.to(self.model.device, self.model.dtype)


class ShieldGemma(Judge):
    """ShieldGemma 2, asked as it was trained."""

    def __init__(self, options: VlmJudgeOptions) -> None:
        try:
            from transformers import ShieldGemma2ForImageClassification
        except ImportError:
            raise ModelError(
                "this version of transformers has no ShieldGemma 2; install transformers 4.51 or newer"
            ) from None

        if options.prompt:
            raise ConfigurationError(
                "ShieldGemma 2 is asked with the chat template in its folder; leave 'prompt' out"
            )
        super().__init__(options, ShieldGemma2ForImageClassification)
        for word, index in (("yes", self.model.yes_token_index), ("no", self.model.no_token_index)):
            token = self.tokenizer.convert_ids_to_tokens(index)
            if not vlm_prompts.ids_of_word([token or ""], word):
                raise ModelError(
                    f"{options.model}: token {index} should be '{word}' and is {token!r}; its parts do not belong together"
                )

    def ask(self, pictures: Sequence[Image.Image], content: str) -> list[float]:
        """How likely each picture violates the policy not to show ``content``."""
        import torch

        policy = vlm_prompts.shieldgemma_policy(content)
        inputs = self.processor(
            images=list(pictures), custom_policies={"asked": policy}, policies=["asked"], return_tensors="pt"
        )
        with torch.inference_mode():
            # The first of the two is Yes, whatever the docstring of transformers says in one place.
            logits = finite(self.model(**self.on_device(inputs)).logits.float().cpu())  # [b, 2]
        scores: list[float] = logits.softmax(-1)[:, 0].tolist()
        return scores


class Writer(Judge):
    """A model that answers in words."""

    def __init__(self, options: VlmJudgeOptions) -> None:
        from transformers import AutoModelForImageTextToText, GenerationConfig

        super().__init__(options, AutoModelForImageTextToText)
        kept = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=kept.eos_token_id or self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def write(self, pictures: Sequence[Image.Image], prompt: str, tokens: int) -> tuple[list[str], Any]:
        """The answers to one prompt about each picture, and the logits of their first tokens, [b, vocabulary]."""
        import torch

        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        begun = bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)
        inputs = self.processor(
            text=[text] * len(pictures),
            images=[[picture] for picture in pictures],
            padding=True,
            add_special_tokens=not begun,
            return_tensors="pt",
        )
        with torch.inference_mode():
            answer = self.model.generate(
                **self.on_device(inputs),
                max_new_tokens=tokens,
                output_logits=True,
                return_dict_in_generate=True,
            )
        written = answer.sequences[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(written, skip_special_tokens=True), finite(
            answer.logits[0].float().cpu()
        )


class YesNo(Writer):
    """Any model that understands a question with the answers yes and no."""

    def __init__(self, options: VlmJudgeOptions) -> None:
        super().__init__(options)
        self.template = vlm_prompts.read_template(options.prompt, ["policy"], vlm_prompts.YES_NO)
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        self.yes, self.no = (vlm_prompts.ids_of_word(tokens, word) for word in ("yes", "no"))
        if not self.yes or not self.no:
            raise ModelError(
                f"{options.model} cannot be asked yes or no: its vocabulary has no single token for them"
            )

    def ask(self, pictures: Sequence[Image.Image], content: str) -> list[float]:
        """How likely the answer to the question whether a picture shows ``content`` is yes.

        Raises:
            ValueError: the likeliest answer begins with something else than yes or no.
        """
        import torch

        _, logits = self.write(pictures, vlm_prompts.yes_no_question(self.template, content), tokens=1)
        for first in logits.argmax(-1).tolist():
            if first not in (*self.yes, *self.no):
                said = self.tokenizer.decode([first])
                raise ValueError(f"the judge was asked for yes or no, and its answer begins with {said!r}")
        both = torch.stack([logits[:, ids].logsumexp(-1) for ids in (self.yes, self.no)], -1)  # [b, 2]
        scores: list[float] = both.softmax(-1)[:, 0].tolist()
        return scores


class LlavaGuard(Writer):
    """LlavaGuard, which is given the whole policy at once."""

    def __init__(self, options: VlmJudgeOptions) -> None:
        super().__init__(options)
        self.template = vlm_prompts.read_template(
            options.prompt, ["policy", "categories"], vlm_prompts.LLAVAGUARD
        )

    def opinions(self, pictures: Sequence[Image.Image], contents: Mapping[str, str]) -> list[Opinion]:
        """One opinion per picture, in the judge's words.

        Raises:
            ValueError: an answer is not the JSON that was asked for.
        """
        prompt = vlm_prompts.llavaguard_prompt(self.template, contents)
        answers, _ = self.write(pictures, prompt, self.options.max_new_tokens)
        opinions = []
        for answer in answers:
            said = vlm_prompts.parse_assessment(answer, contents)
            scores = {UNSAFE: float(said.unsafe)}
            scores |= {name: float(said.unsafe and name == said.category) for name in contents}
            opinions.append(Opinion(scores, said.rationale))
        return opinions
