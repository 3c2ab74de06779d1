"""Text and picture encoders of video pipelines in miniature: real classes, random weights."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import tiny_image_texts as texts
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = texts.T5_WIDTH


def awake(model: nn.Module, seed: int, louder: float = 1.0, names: tuple[str, ...] = ()) -> Any:
    """All weights random, those whose name has one of ``names`` ``louder``, so that texts tell and outputs stay moderate."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5
                by = louder if any(each in name for each in names) else 1.0
                weight.copy_(noise * (0.3 if name == "proj_out.weight" else by))
            else:
                noise = 0.05 * torch.randn(weight.shape, generator=generator)
                weight.copy_(noise + (0.0 if name.endswith("bias") else 1.0))
    return model.eval()


@cache
def umt5() -> UMT5EncoderModel:
    """Hidden states [B, L, 64]."""
    torch.manual_seed(30)
    words = texts.t5_tokenizer()
    config = UMT5Config(
        vocab_size=len(words),
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
    )
    return UMT5EncoderModel(config).eval()


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'][0]['text'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


SPECIAL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>")


def template_words() -> tuple[str, ...]:
    """The words of HunyuanVideo's template, each a token."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    text = DEFAULT_PROMPT_TEMPLATE["template"].lower()
    for special in SPECIAL:
        text = text.replace(special, " ")
    return tuple(sorted({*re.findall("[a-z]+", text), "assistant"}))


@cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words, marks and ends of lines are tokens; no token begins or ends a text.

    HunyuanVideo's template has as many in front of a text as by Llama's own, 95.
    """
    marks = (".", ",", ":", "-", "{", "}", "1", "2", "3", "4", "5", "\n")
    pieces = ("<unk>", "<pad>", *SPECIAL, *marks, *texts.WORDS, *template_words())
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|[^a-z ]"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT,
        model_max_length=512,
        padding_side="right",
    )


@cache
def llama() -> LlamaModel:
    """Hidden states [B, L, 32]."""
    torch.manual_seed(31)
    config = LlamaConfig(
        vocab_size=len(word_tokenizer()),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=word_tokenizer().pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )
    return awake(LlamaModel(config), 31)


@cache
def qwen() -> Qwen2VLForConditionalGeneration:
    """Hidden states [B, L, 32]."""
    torch.manual_seed(32)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(word_tokenizer()),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "pad_token_id": word_tokenizer().pad_token_id,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
    )
    return awake(Qwen2VLForConditionalGeneration(config), 32)


@cache
def vision() -> CLIPVisionModelWithProjection:
    """What a picture looks like, [B, L, 16]."""
    torch.manual_seed(33)
    config = CLIPVisionConfig(
        hidden_size=16,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        intermediate_size=16,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config).eval()


def vision_processor() -> CLIPImageProcessor:
    """Pictures as the vision encoder takes them."""
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def t5_parts() -> dict[str, Any]:
    """Tokenizer and text encoder."""
    return {"tokenizer": texts.t5_tokenizer(), "text_encoder": texts.t5()}
