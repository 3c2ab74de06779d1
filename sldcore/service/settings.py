"""What the operator of the service decides: one model, read from a file, the environment and flags, in rising order of weight.

Relative paths in a file are relative to the file's folder. Environment variables are ``SLD_SERVE_`` and the name, with ``__`` between the
parts of nested names (``SLD_SERVE_LIMITS__QUEUE=64``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from sldcore.documents import Strict, refuse_unknown_keys
from sldcore.errors import listed, nearest

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
PREFIX: Final = "SLD_SERVE_"
LARGEST_SIDE: Final = 16384

_BELOW: Final[ContextVar[Mapping[str, Any] | None]] = ContextVar("sldcore_service_settings", default=None)


@contextmanager
def below(content: Mapping[str, Any]) -> Iterator[None]:
    """Settings that are made inside the ``with`` block take from ``content`` what neither arguments nor environment say."""
    token = _BELOW.set(content)
    try:
        yield
    finally:
        _BELOW.reset(token)


def size_of(text: str) -> tuple[int, int]:
    """Width and height of ``WIDTHxHEIGHT``, in pixels.

    Raises:
        ValueError: it is something else.
    """
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and len(side) <= 5 for side in sides):
        raise ValueError(f"'{text}' is no size; write WIDTHxHEIGHT in pixels, such as 512x512")
    width, height = map(int, sides)
    if not (8 <= width <= LARGEST_SIDE and 8 <= height <= LARGEST_SIDE):
        raise ValueError(f"'{text}' is no size: sides are 8 to {LARGEST_SIDE} pixels")
    return width, height


def is_loopback(host: str) -> bool:
    """Whether a service on this address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class ModelSettings(Strict):
    """A model that clients may name, and what they may ask of it."""

    source: str = Field(
        "playground", description="'playground', a diffusers folder, a .safetensors file, or a hub id."
    )
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps; the best there is by default.")
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="Number format; fits the device by default."
    )
    steps: int = Field(50, ge=1, le=1000, description="Denoising steps where a request does not say.")
    min_steps: int = Field(
        1,
        ge=1,
        le=1000,
        description="The fewest steps that a request may ask for. A warm-up in steps leaves little of a short run: use policies "
        "with windows in noise level or fraction, or say here how short a run may be.",
    )
    max_steps: int = Field(100, ge=1, le=1000, description="The most steps that a request may ask for.")
    guidance_scale: float | None = Field(
        None, gt=1, description="Classifier-free guidance; the pipeline's (playground: 4) by default."
    )
    sizes: tuple[str, ...] = Field(
        (),
        description="WIDTHxHEIGHT that requests may ask for, the first by default; the model's own only, if empty.",
    )

    @field_validator("sizes")
    @classmethod
    def _are_sizes(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for size in sizes:
            size_of(size)
        return sizes

    @model_validator(mode="after")
    def _steps_in_order(self) -> Self:
        if not self.min_steps <= self.steps <= self.max_steps:
            raise ValueError(
                f"steps ({self.steps}) must be between min_steps ({self.min_steps}) and max_steps ({self.max_steps})"
            )
        return self


class LimitSettings(Strict):
    """Limits for everybody; a key may have tighter ones."""

    queue: int = Field(64, ge=1, description="Pictures and reviews that may wait, at most.")
    key_queue: int | None = Field(
        None,
        ge=1,
        description="Pictures and reviews of one key that may wait, at most; three quarters of the queue by default. Where there are no "
        "keys, all of it.",
    )
    batch: int = Field(8, ge=1, description="Pictures that are denoised together, at most.")
    batch_wait: float = Field(
        0.02,
        ge=0,
        le=10,
        description="Seconds that the first of a batch waits for others, at most; one client alone never waits.",
    )
    deadline: float = Field(120.0, gt=0, description="Seconds that a request may take, queue included.")
    filter_grace: float = Field(
        180.0,
        gt=0,
        description="Seconds without a sign of life after which a busy worker counts as hung and is replaced; should be longer than "
        "the time limit of any filter (120 by default), which otherwise ends the worker and not the filter.",
    )
    drain: float = Field(
        60.0, ge=0, description="Seconds to finish what was taken, when the service is told to stop."
    )
    body_bytes: int = Field(16 * 2**20, ge=1024, description="Largest request body.")
    prompt_characters: int = Field(4000, ge=1, description="Longest prompt.")
    pictures: int = Field(8, ge=1, le=128, description="Largest n of a request.")
    review_inputs: int = Field(32, ge=1, description="Most texts and pictures of one moderation.")
    review_pixels: int = Field(2**24, ge=1, description="Most pixels of a picture to review.")

    @property
    def client_queue(self) -> int:
        """How many jobs of one key may wait."""
        return min(self.queue, self.key_queue or max(1, 3 * self.queue // 4))


class AuditSettings(Strict):
    """Where each picture and review is recorded. Without a record nothing is answered."""

    path: Path = Field(Path("audit.sqlite"), description="The file.")
    format: Literal["sqlite", "jsonl"] = Field("sqlite", description="A database, or lines of JSON.")
    secret_file: Path | None = Field(
        None, description="A file with a secret: prompt hashes are salted and the chain is keyed with it."
    )
    plain_prompts: bool = Field(False, description="Also record prompts as they are.")


class ServiceSettings(BaseSettings):
    """Everything about a service.

    Policies are names that clients use, each for a preset or a policy file. Without ``keys`` the service listens on loopback
    addresses only, and lets everybody there use the named policies.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
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
    ray: bool = Field(False, description="Workers are replicas of Ray Serve applications.")
    ray_address: str | None = Field(
        None,
        description="Of the Ray cluster to join, which this machine must belong to: auto, or HOST:PORT. Without one, Ray is started on "
        "this machine, for nobody else.",
    )
    docs: bool = Field(True, description="Serve the API's description at /docs and /openapi.json.")
    public_url: str | None = Field(
        None,
        description="The service's address as clients see it, such as https://pictures.example.org behind a proxy; addresses of "
        "pictures begin with it. What a request says of itself by default.",
    )
    page: bool = Field(True, description="Serve the page at /.")
    log_prompts: bool = Field(False, description="Write prompts into the log.")
    limits: LimitSettings = Field(default_factory=LimitSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then what :func:`below` gives."""
        content = InitSettingsSource(settings_cls, dict(_BELOW.get() or {}))
        return init_settings, env_settings, content

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            refuse_unknown_keys(data, cls.model_fields, "setting")
        return data

    @field_validator("public_url")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        if address is not None and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", address):
            raise ValueError(
                "expected the service's address as clients see it, such as https://pictures.example.org"
            )
        return address if address is None else address.rstrip("/")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("default_policy", "floor"):
            policy = getattr(self, name)
            if policy is not None and policy not in self.policies:
                raise ValueError(
                    f"{name} is '{policy}', which is none of the policies{nearest(policy, self.policies)} "
                    f"(available: {listed(self.policies)})"
                )
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(
                f"host is '{self.host}', where others can reach the service, and there are no keys; make some with "
                "`sld keys new ID --file keys.yaml` and set keys, or use host 127.0.0.1"
            )
        return self
