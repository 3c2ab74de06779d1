"""Where settings come from: a YAML file, the environment and flags, in rising order of weight, with one clear message for errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from sldcore.documents import describe_invalid, read_mapping, read_text
from sldcore.errors import ConfigurationError, listed, nearest
from sldcore.policy import Preset
from sldcore.service.settings import PREFIX, ServiceSettings, below

NESTED: Final = "__"
PATHS: Final = (("keys",), ("audit", "path"), ("audit", "secret_file"))
"""Settings that name a file."""


def read_settings(file: Path | None, flags: Mapping[str, Any]) -> ServiceSettings:
    """The settings of a service.

    Args:
        file: A YAML file; relative paths in it are relative to its folder.
        flags: What the command line says, by the settings' names, nested like the file; None stands for nothing said. Of
            mappings such as ``policies`` only the entries that are named take the place of the file's.

    Raises:
        ConfigurationError: a file that cannot be read, an unknown name, a value that is not allowed, or settings that
            contradict each other.
    """
    _refuse_unknown_variables(os.environ)
    content = _from_file(file) if file is not None else {}
    said = _said(flags)
    source = f"settings ({file})" if file is not None else "settings"
    try:
        with below(content):
            settings = ServiceSettings(**said)
    except ValidationError as invalid:
        raise ConfigurationError(describe_invalid(source, invalid)) from None
    except SettingsError as problem:  # a variable that should be JSON and is not
        raise ConfigurationError(
            f'{source}: {problem}; a variable for a list or mapping is JSON, such as {PREFIX}POLICIES=\'{{"a": "max"}}\''
        ) from None
    if settings.keys is not None:
        read_text(settings.keys, error=_NoKeys)
    return settings


class _NoKeys(ConfigurationError):
    """The file of keys cannot be read."""

    def __init__(self, message: str) -> None:
        super().__init__(f"keys: {message}; `sld keys new ID --file FILE` makes such a file")


def _from_file(file: Path) -> dict[str, Any]:
    content = read_mapping(file)
    folder = file.parent.resolve()
    for path in PATHS:
        _change(content, path, lambda text: str(folder / text))
    _change(content, ("policies",), lambda policies: _each(policies, lambda text: _policy_file(folder, text)))
    _change(content, ("models",), lambda models: _each(models, lambda model: _model(folder, model)))
    return content


def _change(content: Any, path: tuple[str, ...], change: Any) -> None:
    """Change one value of a document, if it is there and of a form that can be changed; validation says what is not."""
    for name in path[:-1]:
        content = content.get(name) if isinstance(content, dict) else None
    if isinstance(content, dict) and isinstance(content.get(path[-1]), str | dict):
        content[path[-1]] = change(content[path[-1]])


def _each(values: Any, change: Any) -> Any:
    return {name: change(value) for name, value in values.items()} if isinstance(values, dict) else values


def _policy_file(folder: Path, text: Any) -> Any:
    presets = [preset.value for preset in Preset]
    return str(folder / text) if isinstance(text, str) and text not in presets else text


def _model(folder: Path, model: Any) -> Any:
    """A model whose source is a folder or file beside the settings; any other source is left as it is, such as a hub id."""
    source = model.get("source") if isinstance(model, dict) else None
    if isinstance(source, str) and source != "playground" and (folder / source).exists():
        return {**model, "source": str(folder / source)}
    return model


def _said(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What flags say, without those that say nothing."""
    nested = {name: _said(value) if isinstance(value, Mapping) else value for name, value in flags.items()}
    return {name: value for name, value in nested.items() if value is not None and value != {}}


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    """Refuse variables that look like settings and are none: a slip of the pen must not leave a limit as it is.

    Raises:
        ConfigurationError: there is one.
    """
    for name in environment:
        if name.upper().startswith(PREFIX):
            parts = name[len(PREFIX) :].lower().split(NESTED)
            _follow(name, parts, ServiceSettings, PREFIX)


def _follow(variable: str, parts: list[str], model: type[BaseModel], above: str) -> None:
    names = {f"{above}{name.upper()}": field.annotation for name, field in model.model_fields.items()}
    part = f"{above}{parts[0].upper()}"
    if part not in names:
        raise ConfigurationError(
            f"unknown variable {variable}{nearest(part, names)} (available: {listed(names)})"
        )
    inner, further = _part_of(names[part]), parts[1:]
    if inner is not None and get_origin(names[part]) is dict:
        further = further[1:]  # which is a name that the operator chose
    if further and inner is not None:
        _follow(variable, further, inner, f"{variable.upper().removesuffix(NESTED.join(further).upper())}")
    elif further and get_origin(names[part]) is not dict:
        raise ConfigurationError(f"unknown variable {variable}: {part} has no parts")


def _part_of(annotation: Any) -> type[BaseModel] | None:
    """The model that a setting is, or that the values of a mapping are."""
    return next((each for each in _types(annotation) if issubclass(each, BaseModel)), None)


def _types(annotation: Any) -> Iterator[type]:
    if get_origin(annotation) in (dict, Union, UnionType):
        for each in get_args(annotation):
            yield from _types(each)
    elif isinstance(annotation, type):
        yield annotation
