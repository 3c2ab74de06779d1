"""Text encoders and tokenizers in miniature: CLIP, T5, BERT and ChatGLM, random weights, a small vocabulary."""

from __future__ import annotations

import warnings
from functools import cache
from tempfile import NamedTemporaryFile
from typing import Any
from unittest import mock

import tiny_pipelines
import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from sldcore.concepts import load_pack

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit.script, in Kolors' text encoder
    from diffusers.pipelines import kolors
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig
    from diffusers.pipelines.pag.pipeline_pag_kolors import KolorsPAGPipeline  # noqa: F401  (it imports that, too)

WIDTH = 32
T5_WIDTH = 64  # as wide as two CLIP encoders together, which SD3 pads to it
PACK = load_pack("inappropriate")
TEXTS = (*tiny_pipelines.PROMPTS, PACK.whole().text, *(concept.text for concept in PACK.concepts))
WORDS = tuple(
    sorted({word for text in TEXTS for word in text.replace(",", " , ").replace("-", " - ").lower().split()})
)


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's."""
    return tiny_pipelines.tokenizer()


def _clip_config(width: int) -> CLIPTextConfig:
    words = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def _louder_words(model: Any, by: float = 20.0) -> Any:
    """Words matter more than positions, as in a trained model."""
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(by)
    return model.eval()


@cache
def clip(seed: int = 10) -> CLIPTextModel:
    """Hidden states [B, 77, 32]."""
    torch.manual_seed(seed)
    return _louder_words(CLIPTextModel(_clip_config(WIDTH)))


@cache
def clip_projected(seed: int = 11) -> CLIPTextModelWithProjection:
    """Hidden states [B, 77, 32] and a pooled state [B, 32]."""
    torch.manual_seed(seed)
    model = _louder_words(CLIPTextModelWithProjection(_clip_config(WIDTH)))
    with torch.no_grad():
        model.text_projection.weight.mul_(20)
    return model


@cache
def t5_tokenizer() -> T5Tokenizer:
    """Words are tokens, unknown ones are letters."""
    letters = "abcdefghijklmnopqrstuvwxyz,.-"
    pieces = ["▁", *(f"▁{word}" for word in WORDS), *(word for word in WORDS if len(word) > 1), *letters]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -float(len(pieces[0])) - 1 / len(piece)) for piece in dict.fromkeys(pieces)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, additional_special_tokens=[], model_max_length=512)


@cache
def t5() -> T5EncoderModel:
    """Hidden states [B, L, 64]."""
    torch.manual_seed(12)
    config = T5Config(
        vocab_size=len(t5_tokenizer()), d_model=T5_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=4
    )
    return T5EncoderModel(config).eval()


@cache
def bert_tokenizer() -> BertTokenizer:
    """Words and letters are tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz,.-"
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *(f"##{each}" for each in letters),
    ]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return BertTokenizer(vocab=vocabulary, model_max_length=77)


@cache
def bert() -> BertModel:
    """Hidden states [B, 77, 32]."""
    torch.manual_seed(13)
    config = BertConfig(
        vocab_size=len(bert_tokenizer()),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    return _louder_words(BertModel(config))


class Pieces:
    """What ChatGLMTokenizer asks of sentencepiece, which tests do without: words are pieces."""

    def __init__(self, model_path: str) -> None:
        self.pieces = ["<unk>", "<s>", "</s>", *WORDS]
        self.bos_id, self.eos_id, self.pad_id = 1, 2, 0
        self.special_tokens = {
            token: len(self.pieces) + index
            for index, token in enumerate(("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"))
        }
        self.n_words = len(self.pieces) + len(self.special_tokens)

    def tokenize(self, text: str, encode_special_tokens: bool = False) -> list[str]:
        return text.replace(",", " , ").replace("-", " - ").lower().split()

    def convert_token_to_id(self, token: str) -> int:
        known = self.special_tokens | {piece: index for index, piece in enumerate(self.pieces)}
        return known.get(token, 0)

    def convert_id_to_token(self, index: int) -> str:
        return [*self.pieces, *self.special_tokens][index]

    def decode_tokens(self, tokens: list[str]) -> str:
        return " ".join(tokens)


class ChatGLMTokenizerOfWords(kolors.ChatGLMTokenizer):
    """Kolors' own tokenizer over :class:`Pieces`."""

    def __init__(self, vocab_file: str, **options: Any) -> None:
        with mock.patch("diffusers.pipelines.kolors.tokenizer.SPTokenizer", Pieces):
            super().__init__(vocab_file, **options)

    def __deepcopy__(self, memo: Any) -> ChatGLMTokenizerOfWords:
        return self


@cache
def chatglm_tokenizer() -> Any:
    """Pads on the left."""
    with NamedTemporaryFile() as empty:
        return ChatGLMTokenizerOfWords(empty.name)


@cache
def chatglm() -> Any:
    """Hidden states [L, B, 32]."""
    torch.manual_seed(14)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=chatglm_tokenizer().vocab_size,
        hidden_size=WIDTH,
        ffn_hidden_size=32,
        kv_channels=8,
        num_attention_heads=4,
        seq_length=256,
        original_rope=True,
    )
    model = kolors.ChatGLMModel(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(std=weight.shape[-1] ** -0.5)
    return model.eval()
