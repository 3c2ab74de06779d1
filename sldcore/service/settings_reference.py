"""The configuration reference as Markdown, made from the models themselves; ``docs/configuration.md`` is its output."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sldcore.service.rights.keys import Key, KeyLimits
from sldcore.service.settings import (
    PREFIX,
    AuditSettings,
    LimitSettings,
    ModelSettings,
    ServiceSettings,
)

EXAMPLE: Final = """\
host: 127.0.0.1          # a reverse proxy in front does TLS
port: 8000
models:
  playground:
    source: playground
    steps: 50
    min_steps: 20
    max_steps: 60
policies:                # the names that clients use
  standard: medium-noise
  strict: max-noise
default_policy: standard
floor: standard          # nobody gets less
keys: keys.yaml          # made by `sld keys new`
limits:
  queue: 64
  deadline: 60
audit:
  path: audit.sqlite
  secret_file: audit.secret
"""

KEYS_EXAMPLE: Final = """\
keys:
  - id: web-shop
    sha256: abababababababababababababababababababababababababababababababab
    created: 2026-01-31T12:00:00Z
    expires: 2027-01-31
    policies: [strict]
    limits: {requests_per_minute: 60, pictures_per_minute: 120}
  - id: night-shift
    sha256: cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd
    created: 2026-01-31T12:00:00Z
    operator: true
    inline: true
"""

HEAD: Final = """\
# Configuration of the service

Made from the settings' own model by `make configuration`; do not edit it by hand.

A setting comes from, in rising order of weight: what is built in, a YAML file (`sld serve --config FILE`), an environment variable, a
flag. Variables of nested settings have `__` between the parts; those for lists and mappings are JSON. `sld serve --print-config` prints
what all of this comes to. Policies and models that a variable or flag names are added to the file's. What is unknown, wrong or
contradictory is an error before anything starts, and so is a policy that is weaker than the floor it is to be used under.

Relative paths in a file are relative to its folder, those of flags and variables to the working directory. A complete file:

```yaml
{example}```

Without `keys`, the service listens on loopback addresses only and lets everybody there use all named policies and models.

A policy whose window is counted in steps, such as `medium`, leaves little of a run that is only a little longer than its warm-up. Where
requests may say how many steps they want, use the presets with `-noise`, or set `min_steps`.
"""

KEYS_HEAD: Final = """\
## The file of keys

`sld keys new ID --file keys.yaml` makes a key, prints it once and writes its hash into the file; `sld keys list` and `sld keys revoke` do
what they say. The service sees a changed file at its next request; a file that it cannot use leaves the keys as they were, and the log
says so. Only the owner may be able to write the file.

```yaml
{example}```

With `inline`, a request may bring a policy. Guidance by `sld`, concepts of packs, thresholds and actions are free in it as far as the
floors allow (`sld policy compare` says what is weaker than what). Filters, marks, step hooks, schedulers and other guidance methods are
those of the named policies, with the same options: options that are left out are filled in. Files, plugins, addresses, further models
and concepts in one's own words are refused.
"""


def markdown() -> str:
    """The whole reference."""
    parts = [
        HEAD.format(example=EXAMPLE),
        "## Settings\n",
        _table(ServiceSettings, ()),
        "## models.NAME\n\n" + f"{_summary(ModelSettings)}\n",
        _table(ModelSettings, ("models", "NAME")),
        "## limits\n\n" + f"{_summary(LimitSettings)}\n",
        _table(LimitSettings, ("limits",)),
        "## audit\n\n" + f"{_summary(AuditSettings)}\n",
        _table(AuditSettings, ("audit",)),
        KEYS_HEAD.format(example=KEYS_EXAMPLE),
        _key_table(Key, ""),
        "### limits\n\n" + f"{_summary(KeyLimits)}\n",
        _key_table(KeyLimits, "limits."),
    ]
    return "\n".join(parts).rstrip() + "\n"


def flag_of(path: tuple[str, ...]) -> str | None:
    """The flag of ``sld serve`` for a setting; None if it has none."""
    flags = {("models",): "--model", ("policies",): "--policy", ("audit", "path"): "--audit"}
    if path in flags:
        return flags[path]
    if path[0] == "models" or path in (("limits",), ("audit",)):
        return None
    return "--" + "-".join(path[1:] if path[0] == "limits" else path).replace("_", "-")


def settings_paths() -> Iterator[tuple[str, ...]]:
    """Every setting that has a flag."""
    nested: dict[str, type[BaseModel]] = {"limits": LimitSettings, "audit": AuditSettings}
    for name in ServiceSettings.model_fields:
        if name in nested:
            yield from ((name, inner) for inner in nested[name].model_fields)
        else:
            yield (name,)


def _table(model: type[BaseModel], above: tuple[str, ...]) -> str:
    flagged = above[:1] != ("models",)
    head = ["name", *(["flag"] if flagged else []), "variable", "type", "default", "meaning"]
    rows = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, field in model.model_fields.items():
        path = (*above, name)
        nested = _is_nested(field.annotation)
        flag = flag_of(path)
        cells = [
            f"[`{name}`](#{name})" if nested else f"`{name}`",
            *([f"`{flag}`" if flag else ""] if flagged else []),
            f"`{PREFIX}{'__'.join(path).upper()}`",
            type_of(field),
            "see below" if nested else _default(field),
            field.description or _summary(field.annotation),
        ]
        rows.append(" | ".join(cells))
    return "\n".join(f"| {row} |" for row in rows) + "\n"


def _key_table(model: type[BaseModel], above: str) -> str:
    rows = ["name | type | default | meaning", "--- | --- | --- | ---"]
    for name, field in model.model_fields.items():
        nested = _is_nested(field.annotation)
        meaning = field.description or _summary(field.annotation)
        rows.append(
            f"`{above}{name}` | {type_of(field)} | {'see below' if nested else _default(field)} | {meaning}"
        )
    return "\n".join(f"| {row} |" for row in rows) + "\n"


def _is_nested(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _summary(model: Any) -> str:
    """What a model's docstring says, in one line."""
    return " ".join((model.__doc__ or "").split()).replace("``", "`")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, dict):
        return "`" + ", ".join(f"{name}: {_plain(each)}" for name, each in value.items()) + "`"
    if value is None or value == ():
        return ""
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, ModelSettings):
        return f"{{source: {value.source}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, Path) else f"{value}"


def type_of(field: FieldInfo) -> str:
    """The type of a setting in words, with its bounds."""
    return _type(field.annotation) + _bounds(field.metadata)


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    words = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        Path: "path",
        datetime: "time",
    }
    if annotation in words:
        return words[annotation]
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin is tuple:
        return f"list of {_type(inner[0])}s"
    if origin is dict:
        return f"mapping of names to {'settings' if _is_nested(inner[1]) else f'{_type(inner[1])}s'}"
    if origin in (Union, UnionType):
        return " or ".join(_type(each) for each in inner if each is not NoneType)
    if origin is not None and hasattr(annotation, "__metadata__"):
        return "name" if get_args(annotation)[0] is str else "time"
    return "settings" if _is_nested(annotation) else getattr(annotation, "__name__", str(annotation))


def _bounds(metadata: list[Any]) -> str:
    low = next((f"from {each.ge}" for each in metadata if isinstance(each, Ge)), "")
    low = next((f"above {each.gt}" for each in metadata if isinstance(each, Gt)), low)
    high = next((f"up to {each.le}" for each in metadata if isinstance(each, Le)), "")
    bounds = " ".join(filter(None, (low, high)))
    return f", {bounds}" if bounds else ""
