"""What the operator of the service decides: one model, read from a file, the environment and flags, in rising order of weight.

Relative paths in a file are relative to the file's folder. Environment variables are ``SLD_SERVE_`` and the name, with ``__`` between the
parts of nested names (``SLD_SERVE_LIMITS__QUEUE=64``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(_Part):
    """A model that clients may name, and what they may ask of it."""

    source: str = Field(
        "playground", description="'playground', a diffusers folder, a .safetensors file, or a hub id."
    )
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps; the best there is by default.")
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="Number format; fits the device by default."
    )
    steps: int = Field(50, ge=1, le=1000, description="Denoising steps where a request does not say.")
    max_steps: int = Field(100, ge=1, le=1000, description="The most steps that a request may ask for.")
    guidance_scale: float | None = Field(
        None, gt=1, description="Classifier-free guidance; the pipeline's (playground: 4) by default."
    )
    sizes: tuple[str, ...] = Field(
        (),
        description="WIDTHxHEIGHT that requests may ask for, the first by default; the model's own only, if empty.",
    )


class LimitSettings(_Part):
    """Limits for everybody; a key may have tighter ones."""

    queue: int = Field(64, ge=1, description="Pictures and reviews that may wait, at most.")
    batch: int = Field(8, ge=1, description="Pictures that are denoised together, at most.")
    batch_wait: float = Field(
        0.02, ge=0, le=10, description="Seconds that the first of a batch waits for others."
    )
    deadline: float = Field(120.0, gt=0, description="Seconds that a request may take, queue included.")
    filter_grace: float = Field(
        60.0,
        gt=0,
        description="Seconds without a sign of life after which a busy worker counts as hung and is replaced.",
    )
    drain: float = Field(
        60.0, ge=0, description="Seconds to finish what was taken, when the service is told to stop."
    )
    body_bytes: int = Field(16 * 2**20, ge=1024, description="Largest request body.")
    prompt_characters: int = Field(4000, ge=1, description="Longest prompt.")
    pictures: int = Field(8, ge=1, le=128, description="Largest n of a request.")
    review_inputs: int = Field(32, ge=1, description="Most texts and pictures of one moderation.")
    review_pixels: int = Field(2**24, ge=1, description="Most pixels of a picture to review.")


class AuditSettings(_Part):
    """Where each picture and review is recorded. Without a record nothing is answered."""

    path: Path = Field(Path("audit.sqlite"), description="The file.")
    format: Literal["sqlite", "jsonl"] = Field("sqlite", description="A database, or lines of JSON.")
    secret_file: Path | None = Field(
        None, description="A file with a secret: prompt hashes are salted and the chain is keyed with it."
    )
    plain_prompts: bool = Field(False, description="Also record prompts as they are.")


class ServiceSettings(BaseSettings):
    """Everything about a service.

    Policies are names that clients use, each for a preset or a policy file. Without ``keys`` the service answers on loopback
    addresses only, to everybody, within the default policy.
    """

    model_config = SettingsConfigDict(
        env_prefix="SLD_SERVE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    models: dict[Name, ModelSettings] = Field(
        default_factory=lambda: {"playground": ModelSettings()},
        min_length=1,
        description="Models by the names that clients use; the first is the default.",
    )
    policies: dict[Name, str] = Field(
        default_factory=lambda: {"medium": "medium"},
        min_length=1,
        description="Policies by the names that clients use: a preset, or a policy file.",
    )
    default_policy: Name | None = Field(
        None, description="Where neither request nor key names one; the first by default."
    )
    floor: Name | None = Field(
        None,
        description="The policy that every request must be at least as strict as, beside its key's own floor.",
    )
    keys: Path | None = Field(None, description="The file of API keys, made by `sld keys new`.")
    workers: int = Field(1, ge=1, le=64, description="Worker processes, for each device.")
    ray: bool = Field(False, description="Workers are replicas of a Ray Serve application.")
    docs: bool = Field(True, description="Serve the API's description at /docs and /openapi.json.")
    page: bool = Field(True, description="Serve the page at /.")
    log_prompts: bool = Field(False, description="Write prompts into the log.")
    limits: LimitSettings = Field(default_factory=LimitSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
