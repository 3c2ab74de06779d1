"""What is asked for, fitted to the pipeline that was loaded: its own names for arguments, and what it does not take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Final

from sldcore.cli.generation_request import Picture, Request
from sldcore.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sldcore.families.base import Family

OPTIONS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "num_inference_steps": ("--steps", ("num_inference_steps",)),
    "guidance_scale": ("--guidance-scale", ()),
    "negative_prompt": ("--negative-prompt", ("negative_prompt",)),
    "width": ("--width", ("width",)),
    "height": ("--height", ("height",)),
    "num_frames": ("--num-frames", ("num_frames", "video_length")),
}
"""An argument of the request to its option and to what pipelines may call it; guidance is called what the family says."""

_FROM_PICTURES: Final = re.compile(
    r"Img2Img|Inpaint|ControlNet|Image(To|2)Video|Video(To|2)Video|Adapter|Upscale|Depth2Img|Pix2Pix|Edit|Control|VACE"
)


@dataclass(frozen=True, slots=True)
class Call:
    """The pipeline's own arguments, and whether it is going to make an unconditional prediction."""

    arguments: Mapping[str, Any]
    guided: bool


def fit(pipe: Any, family: Family, request: Request) -> Call:
    """The request's arguments under the names that the pipeline has for them.

    Raises:
        ConfigurationError: the pipeline does not take one of them, needs what a command line cannot give, or would not
            guide where a policy needs it.
    """
    taken = signature(getattr(pipe, "plain_call", type(pipe).__call__)).parameters
    _refuse_other_inputs(pipe, taken)
    own = {option: _own_name(option, family, taken) for option in OPTIONS}
    arguments: dict[str, Any] = {}
    for option, value in request.arguments.items():
        name = own[option]
        if name is None:
            able = ", ".join(OPTIONS[each][0] for each, found in own.items() if found is not None)
            raise ConfigurationError(
                f"a {type(pipe).__name__} takes no {OPTIONS[option][0]}; of these options it takes {able}"
            )
        arguments[name] = value
    guided = _guides(family, arguments, taken)
    if guided and family.needs_negative_prompt and "negative_prompt" in taken:
        arguments.setdefault("negative_prompt", "")
    if not guided:
        _refuse_to_do_nothing(request.pictures, family, arguments, taken)
    return Call(arguments, guided)


def _own_name(option: str, family: Family, taken: Mapping[str, Parameter]) -> str | None:
    names = OPTIONS[option][1] or (family.guidance_argument,)
    return next((name for name in names if name in taken), None)


def _guides(family: Family, arguments: Mapping[str, Any], taken: Mapping[str, Parameter]) -> bool:
    """Whether the strength of guidance is above 1; pipelines that do not tell theirs are taken to guide."""
    name = family.guidance_argument
    scale = arguments.get(name, taken[name].default if name in taken else None)
    return not isinstance(scale, int | float) or scale > 1


def _refuse_to_do_nothing(
    pictures: Sequence[Picture],
    family: Family,
    arguments: Mapping[str, Any],
    taken: Mapping[str, Parameter],
) -> None:
    guiding = [picture.policy.name for picture in pictures if picture.policy.guides]
    if guiding:
        name = family.guidance_argument
        scale = arguments.get(name, taken[name].default)
        raise ConfigurationError(
            f"this pipeline's {name} is {scale:g}, which turns classifier-free guidance off, and policy '{guiding[0]}' "
            "cannot act without it; give a --guidance-scale above 1, or --policy off"
        )


def _refuse_other_inputs(pipe: Any, taken: Mapping[str, Parameter]) -> None:
    required = [
        name
        for name, each in taken.items()
        if each.default is Parameter.empty
        and each.kind is Parameter.POSITIONAL_OR_KEYWORD
        and name not in ("self", "prompt")
    ]
    if required or _FROM_PICTURES.search(type(pipe).__name__):
        what = ", ".join(required) or "pictures"
        raise ConfigurationError(
            f"a {type(pipe).__name__} makes pictures from more than a prompt ({what}), which sld generate cannot give; call it "
            "in Python inside sldcore.guard or with SafetyEngine"
        )
