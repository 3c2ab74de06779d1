"""Text encoders and tokenizers of transformer pipelines in miniature: random weights, a small vocabulary."""

from __future__ import annotations

from functools import cache
from typing import Any

import tiny_pipelines
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaConfig,
    GemmaModel,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from sldcore.concepts import load_pack

WIDTH = 32
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


@cache
def corpus() -> list[str]:
    """The words of prompts and concepts, one by one, so that no token learnt from them spans two."""
    pack = load_pack("inappropriate")
    texts = [*tiny_pipelines.PROMPTS, pack.whole().text, *(concept.text for concept in pack.concepts)]
    words = dict.fromkeys(word for text in texts for word in text.replace(",", " ").split())
    return [form for word in words for form in (word, f" {word}")] * 5


def _learnt(tokenizer: Any, size: int = 600) -> Any:
    return tokenizer.train_new_from_iterator(corpus(), vocab_size=size, show_progress=False)


def _beginning(tokenizer: Any, token: str) -> Any:
    """``tokenizer`` with ``token`` in front of every text."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.convert_tokens_to_ids(token))]
    )
    return tokenizer


@cache
def t5_tokenizer() -> T5Tokenizer:
    """No window of its own."""
    return _learnt(T5Tokenizer())


@cache
def gemma_tokenizer() -> GemmaTokenizer:
    """Begins with <bos>."""
    return _beginning(_learnt(GemmaTokenizer()), "<bos>")


@cache
def qwen_tokenizer() -> Qwen2Tokenizer:
    """With a chat template."""
    tokenizer = _learnt(Qwen2Tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """As of Llama 3 and GLM 4: byte pairs behind a token that begins a text."""
    pieces = _beginning(_learnt(Qwen2Tokenizer()), "<|endoftext|>").backend_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<|endoftext|>", eos_token="<|endoftext|>", model_max_length=512
    )


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """A window of 77."""
    return tiny_pipelines.tokenizer()


def _loud(model: nn.Module) -> Any:
    """Words that matter: embeddings of spread one."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "token_embedding.weight")):
                weight.normal_()
    return model.eval()


def _clip_config(positions: int) -> CLIPTextConfig:
    words = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        projection_dim=WIDTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


@cache
def clip() -> CLIPTextModel:
    """Pooled [B, 32]."""
    torch.manual_seed(31)
    return _loud(CLIPTextModel(_clip_config(77)))


@cache
def clip_projected(seed: int, positions: int = 77) -> CLIPTextModelWithProjection:
    """Projected [B, 32]."""
    torch.manual_seed(seed)
    return _loud(CLIPTextModelWithProjection(_clip_config(positions)))


@cache
def t5() -> T5EncoderModel:
    """States [B, L, 32]."""
    torch.manual_seed(32)
    config = T5Config(
        vocab_size=len(t5_tokenizer()), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=4
    )
    return T5EncoderModel(config).eval()


@cache
def umt5() -> UMT5EncoderModel:
    """States [B, L, 32]."""
    torch.manual_seed(33)
    config = UMT5Config(
        vocab_size=len(t5_tokenizer()), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=4
    )
    return UMT5EncoderModel(config).eval()


def _decoder(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


@cache
def gemma() -> GemmaModel:
    """States [B, L, 32]."""
    torch.manual_seed(34)
    return _loud(GemmaModel(GemmaConfig(**_decoder(gemma_tokenizer()), head_dim=8)))


@cache
def gemma2() -> Gemma2Model:
    """States [B, L, 32]."""
    torch.manual_seed(35)
    return _loud(Gemma2Model(Gemma2Config(**_decoder(gemma_tokenizer()), head_dim=8)))


@cache
def glm() -> GlmModel:
    """States [B, L, 32]."""
    torch.manual_seed(36)
    return _loud(GlmModel(GlmConfig(**_decoder(byte_tokenizer()), head_dim=8)))


@cache
def llama() -> LlamaForCausalLM:
    """States [B, L, 32] of each layer; attention that can tell its weights, as the pipeline asks."""
    torch.manual_seed(37)
    config = LlamaConfig(**_decoder(byte_tokenizer()), attn_implementation="eager")
    return _loud(LlamaForCausalLM(config))


@cache
def qwen3() -> Qwen3Model:
    """States [B, L, 32]."""
    torch.manual_seed(38)
    return _loud(Qwen3Model(Qwen3Config(**_decoder(qwen_tokenizer()), head_dim=8)))


@cache
def qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    """States [B, L, 32]; the part that sees pictures is as small as can be."""
    torch.manual_seed(39)
    rope = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config={**_decoder(qwen_tokenizer()), "rope_parameters": rope},
        vision_config={
            "depth": 1,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    return _loud(Qwen2_5_VLForConditionalGeneration(config))
