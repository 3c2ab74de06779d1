"""What the engine must know about a kind of pipeline: the protocol, and a base class with what most kinds share.

A denoiser call has *parts*: groups of B rows, unconditional, conditional, and sometimes more (perturbed-attention
guidance). Most pipelines evaluate them together, in one call; some call the denoiser *apart*, once for each part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, runtime_checkable

from sldcore.errors import ConceptError
from sldcore.families.noise import schedule_of
from sldcore.types import Schedule

if TYPE_CHECKING:
    from torch import Tensor, nn

UNCOND: Final = "uncond"
COND: Final = "cond"
NO_CUT: Final = 1_000_000
"""Window of an encoder that cuts nothing off."""
FRAMES: Final = ("num_frames", "video_length")
"""What pipelines call the number of frames."""


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a call encodes its prompts, and so its concepts: arguments of ``encode_prompt`` that are not its defaults."""

    given: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> TextOptions:
        """Options from arguments; lists are kept as tuples."""
        return cls(tuple(sorted((name, _frozen(value)) for name, value in arguments.items())))

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.given}


NO_OPTIONS: Final = TextOptions()


class Family(Protocol):
    """One kind of pipeline whose denoiser makes an unconditional and a conditional prediction."""

    name: str
    latents_argument: str
    """The denoiser's argument that holds the latents [rows, ...]."""
    text_arguments: tuple[str, ...]
    """The denoiser's arguments that hold text and are swapped in a concept row; ``a.b`` is key b of argument a."""
    listed_arguments: tuple[str, ...]
    """The denoiser's arguments that are lists with one entry per row."""
    shared_arguments: tuple[str, ...]
    """The denoiser's arguments that all rows share, though they may happen to be as long as there are rows."""
    apart: bool
    """True if the denoiser is called once for each part, False if it is called with all of them."""
    guidance_argument: str
    """The pipeline's argument that is the scale of classifier-free guidance."""
    needs_negative_prompt: bool
    """True if the pipeline guides only where it is given a negative prompt, be it an empty one."""

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """The modules that predict noise; several if a run goes from one to the next."""
        ...

    def parts(self, pipe: Any, encoded: Mapping[str, Any]) -> tuple[str, ...]:
        """During a call: the parts in their order, ``uncond`` and ``cond`` among them; none without guidance.

        ``encoded`` are the arguments of the call's own ``encode_prompt``.
        """
        ...

    def schedule(self, pipe: Any) -> Schedule:
        """During a call, before the first step: the denoiser calls to come. Synchronises once.

        Raises:
            GuidanceError: the scheduler's noise levels cannot be told.
        """
        ...

    def noise_schedule(self, scheduler: Any, calls: int) -> Schedule:
        """The last ``calls`` denoiser calls of a scheduler whose timesteps are set.

        Raises:
            GuidanceError: the scheduler's noise levels cannot be told.
        """
        ...

    def window(self, pipe: Any, options: TextOptions) -> int:
        """Tokens that the text encoder takes, begin and end included; of several encoders, the narrowest."""
        ...

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """Tokens of ``text`` by the pipeline's own tokenizers, begin and end included, nothing cut off.

        Of several encoders, the one that ``text`` fills most.
        """
        ...

    def text_options(self, pipe: Any, encoded: Mapping[str, Any]) -> TextOptions:
        """How text is encoded by an ``encode_prompt`` that was called with these arguments."""
        ...

    def options_of_call(self, pipe: Any, arguments: Mapping[str, Any]) -> TextOptions:
        """How a call of the pipeline with these arguments is going to encode text."""
        ...

    def encode(self, pipe: Any, texts: Sequence[str], options: TextOptions) -> list[Mapping[str, Tensor]]:
        """For each text, the text arguments of a row that is guided by it as by a prompt, [1, ...] each."""
        ...

    def encoder_state(self, pipe: Any) -> tuple[Any, ...]:
        """Something that changes when ``encode`` would give another result for the same text."""
        ...

    def placed(self, texts: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Concept texts [R, ...] as a denoiser call with these arguments takes them."""
        ...

    def rows_per_sample(self, arguments: Mapping[str, Any]) -> int:
        """How many rows the denoiser's other tensors have for each row of latents: frames of some video models, else 1."""
        ...

    def spatial_map(self, strength: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """``strength`` [R, ...] in the latents' layout as maps [R, H, W]; ``arguments`` are a denoiser call's."""
        ...

    def is_aside(self, arguments: Mapping[str, Any]) -> bool:
        """Is a denoiser call with these arguments none of a step's parts, but one beside them that needs no guidance?"""
        ...

    def concepts_apart(self, pipe: Any) -> bool:
        """During a call: must concept rows be evaluated in a call of their own, because the parts' call takes no others?"""
        ...

    def around_concepts(self, pipe: Any) -> Any:
        """A context manager around that call of their own."""
        ...

    def picture_size(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width, in pixels, of the pictures that a call asks for."""
        ...

    def frames(self, pipe: Any, arguments: Mapping[str, Any]) -> int | None:
        """How many frames a call asks for; None if it makes pictures."""
        ...


@runtime_checkable
class EncodesTokens(Protocol):
    """A family that can put vectors in place of words, as concept embeddings of kind ``tokens`` need."""

    def encode_tokens(
        self, pipe: Any, prefix: str, vectors: Tensor, options: TextOptions
    ) -> Mapping[str, Tensor]:
        """Text arguments [1, ...] for ``prefix`` and then ``vectors`` [n, D] where n words would stand.

        Pipeline and tokenizer stay as they are.

        Raises:
            ConceptError: another width than the text encoder's, or more vectors than it has room for.
        """
        ...


@runtime_checkable
class EncodesVectors(Protocol):
    """A family whose text encoder also gives one vector for a whole text."""

    def text_vectors(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """One vector per text, [len(texts), D]."""
        ...


@dataclass(frozen=True, slots=True)
class TextSpace:
    """Vectors of texts in the space of one text encoder, and where that encoder's states go.

    ``vectors`` [n, D] belong to columns ``columns`` (first, and one behind the last: D of them) of the denoiser's text
    ``argument``. ``tokens`` are the positions of a prompt's own tokens in it (first, and one behind the last; the begin token
    is in front of them and the end token behind); None where the argument holds one vector for the whole prompt.
    """

    argument: str
    columns: tuple[int, int]
    vectors: Tensor
    tokens: tuple[int, int] | None


@runtime_checkable
class MasksTokens(Protocol):
    """A family that can say what a prompt is without one of its tokens, as SAFREE needs.

    Both methods give the same spaces in the same order, and leave pipeline and tokenizers as they are. A text's vector is
    the state of its end token, in the layer that the denoiser is given.
    """

    def text_spaces(self, pipe: Any, texts: Sequence[str], options: TextOptions) -> tuple[TextSpace, ...]:
        """One vector for each of ``texts``; their tokens are not told apart.

        Raises:
            GuidanceError: the pipeline has not the text encoders that the family is made for.
        """
        ...

    def masked_spaces(
        self, pipe: Any, prompts: Mapping[str, str], options: TextOptions
    ) -> tuple[TextSpace, ...]:
        """One vector for each token of a prompt: that of the prompt with a meaningless token in its place.

        What the pipeline cuts off is not a token of the prompt. ``prompts`` are the ``prompt`` arguments of
        ``encode_prompt`` that are texts: the prompt, and for pipelines with several encoders perhaps one for the others.

        Raises:
            GuidanceError: as :meth:`text_spaces`.
        """
        ...


class DiffusersFamily:
    """What most families share; a subclass sets the attributes and says what ``encode_prompt`` returns.

    Attributes:
        denoiser_names: attributes of the pipeline that hold its denoisers; those that are None are left out.
        order: the parts as the denoiser is called with, or one after the other.
        tokenizers: attribute of a tokenizer to the window of its encoder; None for the tokenizer's own
            ``model_max_length``, a name for the argument of ``encode_prompt`` that says it.
        option_names: arguments of ``encode_prompt`` that change what a text is encoded to.
        sign: -1 if the denoiser predicts the opposite of what the scheduler is handed.
    """

    name: str = ""
    denoiser_names: ClassVar[tuple[str, ...]] = ("transformer",)
    latents_argument: str = "hidden_states"
    text_arguments: tuple[str, ...] = ("encoder_hidden_states",)
    listed_arguments: tuple[str, ...] = ()
    shared_arguments: tuple[str, ...] = ("image_rotary_emb",)
    apart: bool = False
    guidance_argument: str = "guidance_scale"
    needs_negative_prompt: bool = False
    order: ClassVar[tuple[str, ...]] = (UNCOND, COND)
    tokenizers: ClassVar[Mapping[str, int | str | None]] = {"tokenizer": None}
    option_names: ClassVar[tuple[str, ...]] = ("max_sequence_length", "lora_scale")
    sign: ClassVar[int] = 1

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Those of ``denoiser_names`` that the pipeline has."""
        found = (getattr(pipe, name, None) for name in self.denoiser_names)
        return tuple(module for module in found if module is not None)

    def parts(self, pipe: Any, encoded: Mapping[str, Any]) -> tuple[str, ...]:
        """``order`` if the pipeline says that it guides, by its property or by what it told ``encode_prompt``.

        Pipelines that call the denoiser apart, and do not say, are taken to guide: a call that is missing is noticed.
        """
        guides = getattr(pipe, "do_classifier_free_guidance", encoded.get("do_classifier_free_guidance"))
        if guides is None:
            guides = self.apart
        return self.order if guides else ()

    def schedule(self, pipe: Any) -> Schedule:
        """The last ``num_timesteps`` of the scheduler's timesteps: what starts from a picture skips the first."""
        calls = getattr(pipe, "num_timesteps", None) or len(pipe.scheduler.timesteps)
        scale = getattr(pipe, "guidance_scale", None) if self.guidance_argument == "guidance_scale" else None
        schedule = self.noise_schedule(pipe.scheduler, calls)
        return replace(schedule, guidance_scale=None if scale is None else float(scale))

    def noise_schedule(self, scheduler: Any, calls: int) -> Schedule:
        """By the scheduler's prediction type and ``sign``."""
        return schedule_of(scheduler, calls, self.sign)

    def window(self, pipe: Any, options: TextOptions) -> int:
        """The narrowest of ``tokenizers``.

        Raises:
            ConceptError: the pipeline has no text encoder.
        """
        parts = {name: part for name, part in pipe.components.items() if part is not None}
        windows = self._windows(pipe, options)
        if not windows or not any(name.startswith("text_encoder") for name in parts):
            raise ConceptError(
                f"this {type(pipe).__name__} has no text encoder or no tokenizer, and concepts are encoded by them; keep them "
                f"loaded until guard() is entered or the engine has run, then drop them if you must"
            )
        return min(windows.values())

    def count_tokens(self, pipe: Any, text: str, options: TextOptions = NO_OPTIONS) -> int:
        """Tokens without truncation; an encoder that is wider than the narrowest counts for less by the difference."""
        windows = self._windows(pipe, options)
        narrowest = min(windows.values())
        counts = [self.tokens_of(pipe, name, text) - (width - narrowest) for name, width in windows.items()]
        return max(max(counts), 0)

    def tokens_of(self, pipe: Any, tokenizer: str, text: str) -> int:
        """Tokens of ``text`` by one tokenizer, with the special ones that it adds."""
        return len(getattr(pipe, tokenizer)(text, truncation=False, verbose=False).input_ids)

    def text_options(self, pipe: Any, encoded: Mapping[str, Any]) -> TextOptions:
        """Those of ``option_names`` that are not what ``encode_prompt`` does by itself."""
        own = signature(encode_prompt_of(pipe)).parameters
        return TextOptions.of(
            {
                name: encoded[name]
                for name in self.option_names
                if name in own and name in encoded and encoded[name] != own[name].default
            }
        )

    def options_of_call(self, pipe: Any, arguments: Mapping[str, Any]) -> TextOptions:
        """By the names that a call's arguments and those of ``encode_prompt`` share, and a LoRA scale wherever it is."""
        outer = signature(type(pipe).__call__).parameters
        given = {name: each.default for name, each in outer.items() if each.default is not Parameter.empty}
        return self.text_options(pipe, {**given, "lora_scale": _lora_scale(arguments), **arguments})

    def encode(self, pipe: Any, texts: Sequence[str], options: TextOptions) -> list[Mapping[str, Tensor]]:
        """Each text alone."""
        import torch

        with torch.no_grad():
            return [self.encode_one(pipe, text, options) for text in texts]

    def encode_one(self, pipe: Any, text: str, options: TextOptions) -> Mapping[str, Tensor]:
        """The text arguments for one text, [1, ...] each; :meth:`encoded` asks the pipeline.

        This is for families with one text argument, the first thing that ``encode_prompt`` returns.
        """
        (name,) = self.text_arguments
        return {name: self.encoded(pipe, text, options)[0]}

    def encoded(self, pipe: Any, text: str, options: TextOptions, **more: Any) -> Any:
        """What the pipeline's own ``encode_prompt`` returns for ``text`` as a prompt, one row and no unconditional part.

        ``more`` are arguments that only this family's ``encode_prompt`` has.
        """
        wanted = {
            "device": pipe._execution_device,
            "num_images_per_prompt": 1,
            "num_videos_per_prompt": 1,
            "do_classifier_free_guidance": False,
            **options.arguments(),
            **more,
        }
        encode = encode_prompt_of(pipe)
        taken = signature(encode).parameters
        return encode(text, **{name: value for name, value in wanted.items() if name in taken})

    def encoder_state(self, pipe: Any) -> tuple[Any, ...]:
        """Identity and state of every text encoder and tokenizer of the pipeline."""
        return tuple(
            state
            for name, part in sorted(pipe.components.items())
            if part is not None and name.startswith(("text_encoder", "tokenizer"))
            for state in _state_of(part)
        )

    def placed(self, texts: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """As they are encoded."""
        return texts

    def rows_per_sample(self, arguments: Mapping[str, Any]) -> int:
        """One."""
        return 1

    def spatial_map(self, strength: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """The mean over all but rows, height and width, which come last; packed latents need a method of their own."""
        return strength.mean(tuple(range(1, strength.ndim - 2)))

    def is_aside(self, arguments: Mapping[str, Any]) -> bool:
        """None is."""
        return False

    def concepts_apart(self, pipe: Any) -> bool:
        """Never."""
        return False

    @contextmanager
    def around_concepts(self, pipe: Any) -> Iterator[None]:
        """Nothing to do."""
        yield

    def picture_size(self, pipe: Any, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """What the call says, else what the denoiser was made for."""
        side = getattr(getattr(self.denoisers(pipe)[0], "config", None), "sample_size", None) or 64
        sides = side if isinstance(side, list | tuple) else (side, side)
        factor = (
            getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "vae_scale_factor_spatial", None) or 8
        )
        height, width = (
            arguments.get(name) or own * factor for name, own in zip(("height", "width"), sides, strict=True)
        )
        return int(height), int(width)

    def frames(self, pipe: Any, arguments: Mapping[str, Any]) -> int | None:
        """What the call says or its default; of a video to start from, its own number."""
        taken = signature(type(pipe).__call__).parameters
        for name in FRAMES:
            if name in taken:
                asked = arguments.get(name, taken[name].default)
                return asked if isinstance(asked, int) and asked > 0 else 1
        if "video" in taken:
            video: Any = arguments.get("video")
            return len(video) or 1 if hasattr(video, "__len__") else 1
        return None

    def _windows(self, pipe: Any, options: TextOptions) -> dict[str, int]:
        """Window of each tokenizer that the pipeline has."""
        given = options.arguments()
        windows = {}
        for name, window in self.tokenizers.items():
            tokenizer = getattr(pipe, name, None)
            if tokenizer is None:
                continue
            if isinstance(window, str):
                window = given.get(window, signature(encode_prompt_of(pipe)).parameters[window].default)
            windows[name] = int(tokenizer.model_max_length if window is None else window)
        return windows


def encode_prompt_of(pipe: Any) -> Any:
    """The pipeline's ``encode_prompt`` itself, or what its owner put there; not a session that listens to it."""
    return getattr(pipe.encode_prompt, "sldcore_original", pipe.encode_prompt)


def _lora_scale(arguments: Mapping[str, Any]) -> float | None:
    """The scale of LoRA in a call's arguments, under whatever name."""
    for name in ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"):
        scale = (arguments.get(name) or {}).get("scale")
        if scale is not None:
            return float(scale)
    return None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _state_of(part: Any) -> tuple[Any, ...]:
    """Identity, type, place and in-place version of every weight, LoRA in use; the size of a vocabulary.

    LoRA is scaled, switched off and fused without the weights' versions telling.
    """
    if not hasattr(part, "parameters"):
        return (id(part), len(part))
    weights = tuple((id(w), w.dtype, w.device, w._version) for w in part.parameters())
    lora = tuple(
        (*layer.scaling.items(), *layer.active_adapters, *layer.merged_adapters, layer.disable_adapters)
        for layer in part.modules()
        if hasattr(layer, "merged_adapters") and hasattr(layer, "scaling")
    )
    return (id(part), hash(weights), hash(lora))
