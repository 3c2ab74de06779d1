"""What clients send: OpenAI's shapes, with our own fields beside theirs. Null is the same as leaving a field out.

Fields of OpenAI's that change nothing here are accepted and say so; those that would change the answer's meaning are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

MOST_SEED: Final = 2**32 - 1
IMAGES_BYTES: Final = 2**20
"""Largest body that asks for pictures: it holds a prompt and at most a policy."""

_IGNORED: Final = "Accepted and ignored: "
_UNSUPPORTED: Final = "Not supported: null only."

_POLICY: Final = Field(
    None,
    description="The name of a policy that the key may use, or an inline policy if the key may use such; the key's default policy "
    "if left out. A policy that is weaker than the floor is refused.",
    examples=["medium"],
)


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ImageRequest(_Asked):
    """Pictures to make of a prompt."""

    prompt: Annotated[str, Field(min_length=1, description="What the pictures show.")]
    model: str | None = Field(None, description="A model of /v1/models; the first if left out.")
    n: int | None = Field(None, ge=1, le=128, description="How many pictures; 1 if left out.")
    size: str | None = Field(
        None,
        pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$",
        description="WIDTHxHEIGHT, one of the model's; its first if left out or `auto`.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None,
        description="PNGs in base64 (if left out), or addresses from which they can be had for an hour.",
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None,
        ge=0,
        le=3,
        description="With `stream`: how many pictures of the way there to send, if the filters let them pass.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MOST_SEED,
        description="Seed of the first picture, each further one has the next; random ones if left out.",
    )
    steps: int | None = Field(
        None, ge=1, le=1000, description="Denoising steps; the model's if left out.", examples=[10]
    )
    policy: str | dict[str, Any] | None = _POLICY
    explain: bool | None = Field(
        None, description="Say more: verdicts, trace, curves, and a heat map of where guidance acted."
    )
    unguided: bool | None = Field(
        None, description="Also the picture of the same seed without guidance; for operators."
    )
    progress: bool | None = Field(None, description="With `stream`: an event for each step, too.")
    user: str | None = Field(None, description=_IGNORED + "the audit names the key.")
    safety_identifier: str | None = Field(None, description=_IGNORED + "the audit names the key.")
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = Field(
        None, description=_IGNORED + "`steps` decides."
    )
    style: Literal["vivid", "natural"] | None = Field(None, description=_IGNORED + "the prompt decides.")
    complexity: Literal["low", "medium", "high"] | None = Field(
        None, description=_IGNORED + "there is no planning."
    )
    moderation: Literal["low", "auto"] | None = Field(None, description=_IGNORED + "`policy` decides.")
    background: Literal["opaque", "auto"] | None = Field(
        None, description="`transparent` is not supported: pictures are opaque."
    )
    output_format: Literal["png"] | None = Field(None, description="Pictures are PNGs.")
    output_compression: int | None = Field(None, ge=0, le=100, description=_IGNORED + "PNGs lose nothing.")
    frame_count: None = Field(None, description=_UNSUPPORTED)
    frame_duration_ms: None = Field(None, description=_UNSUPPORTED)
    svg: None = Field(None, description=_UNSUPPORTED)


_TEXT_PART: Final = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string", "minLength": 1}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_IMAGE_PART: Final = {
    "type": "object",
    "properties": {
        "type": {"const": "image_url"},
        "image_url": {
            "type": "object",
            "properties": {"url": {"type": "string", "pattern": "^data:image/(png|jpe?g|webp);base64,"}},
            "required": ["url"],
            "additionalProperties": False,
        },
    },
    "required": ["type", "image_url"],
    "additionalProperties": False,
}
_INPUT: Final = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT_PART, _IMAGE_PART]}},
    ],
    "description": "A text, a list of texts (a result for each), or a list of parts (one result for all of them). Pictures are data "
    "URLs of PNG, JPEG or WebP with one frame; nothing is fetched from elsewhere.",
    "examples": ["a red knight on a meadow"],
}


class ModerationRequest(_Asked):
    """Texts and pictures to review."""

    input: Annotated[Any, WithJsonSchema(_INPUT)]
    model: str | None = Field(None, description="A model of /v1/models; the first if left out.")
    policy: str | dict[str, Any] | None = _POLICY


class Safety(BaseModel):
    """What safety did to a picture."""

    withheld: bool = Field(description="The picture is not what was generated, or there is none.")
    action: str = Field(description="none, flag, black, blur, pixelate, replace, drop or block.")
    flagged: bool
    unreviewed: bool = Field(
        False, description="Shown though a part of its review failed: the policy says so."
    )
    reason: str | None = Field(description="Why, in words; null if nothing was done.")
    policy: str
    policy_digest: str
    attempts: int
    verdicts: list[dict[str, Any]] | None = Field(None, description="With `explain`.")
    trace: list[dict[str, Any]] | None = Field(None, description="With `explain`: what each concept did.")
    probes: list[dict[str, Any]] | None = Field(None, description="With `explain`: what a gate saw.")
    rows: int | None = Field(None, description="With `explain`: denoiser rows evaluated.")
    plain_rows: int | None = Field(None, description="With `explain`: denoiser rows without guidance.")
    seconds: float | None = Field(None, description="With `explain`: how long it took, waiting left out.")
    heat_b64: str | None = Field(None, description="With `explain`: a PNG of where guidance acted.")
    curves: dict[str, Any] | None = Field(
        None, description="With `explain`: `norm` and `relevance` of each concept over the steps."
    )
    unguided_b64: str | None = Field(None, description="With `unguided`: null if it may not be shown.")


class Picture(BaseModel):
    """One picture of an answer, or why there is none."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    safety: Safety | None = Field(None, description="Null if there is an `error`.")
    error: dict[str, Any] | None = Field(None, description="Why this one could not be made, if it could not.")


class ImagesAnswer(BaseModel):
    """The pictures that were asked for, in the order of their seeds."""

    created: int
    data: list[Picture]
    background: str = "opaque"
    output_format: str = "png"
    size: str
    model: str


class ModerationResult(BaseModel):
    """What the policy's filters say of an input; the names of categories are theirs."""

    flagged: bool = Field(description="True also if something kept the input from being reviewed.")
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text", "image"]]]
    sld: dict[str, Any] = Field(
        description="`policy`, `policy_digest`; `inputs`, each with `type`, `action`, `flagged`, `reason`, `verdicts`; `errors`: what "
        "could not be reviewed, and why."
    )


class ModerationAnswer(BaseModel):
    """A result for each text, or one for all parts."""

    id: str
    model: str
    results: list[ModerationResult]
