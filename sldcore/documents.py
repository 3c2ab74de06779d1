"""Documents on disk: YAML in through a strict, safe loader, checked by strict models, and files out in one piece.

YAML comes from people who may not be trusted with more than data. So the loader knows plain data only, refuses
anchors and aliases (a few bytes of which can expand to gigabytes) and duplicate keys (of which YAML keeps the last,
silently), and reads no more than one mebibyte.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sldcore.errors import ConfigurationError, listed, nearest

SIZE_LIMIT: Final = 1 << 20
"""The largest document that is read, in bytes: 1 MiB."""

DEPTH_LIMIT: Final = 32
"""The deepest nesting of mappings and lists that is read."""


class Strict(BaseModel):
    """A frozen part of a document that refuses unknown keys and says which known one is nearest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            refuse_unknown_keys(data, cls.model_fields, "key")
        return data


def refuse_unknown_keys(given: Mapping[Any, Any], known: Mapping[str, Any], what: str) -> None:
    """Raise ``ValueError`` naming the keys of ``given`` that are not ``known``, and the nearest known ones."""
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        named = ", ".join(f"unknown {what} '{key}'{nearest(key, known)}" for key in unknown)
        raise ValueError(f"{named} (available: {listed(known)})")


def describe_invalid(source: str, invalid: ValidationError) -> str:
    """Everything that is wrong in a document: the path of the field, what is allowed, and the value."""
    lines = []
    for problem in invalid.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] not in ("value_error", "missing"):
            message += f", got {problem['input']!r:.80}"
        lines.append(f"{place}: {message}" if place else message)
    return f"{source}: " + "; ".join(lines)


class _Refused(yaml.MarkedYAMLError):
    """YAML that the specification allows and this module does not."""


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader without anchors, aliases, merge keys and duplicate keys."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            kind = "an alias" if isinstance(event, yaml.AliasEvent) else "an anchor"
            raise _Refused(
                problem=f"{kind} is not allowed; write the value out", problem_mark=event.start_mark
            )
        if self._depth >= DEPTH_LIMIT:
            problem = f"nested more than {DEPTH_LIMIT} levels deep"
            raise _Refused(problem=problem, problem_mark=event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise _Refused(problem="a key must be a plain text", problem_mark=key.start_mark)
            if key.value in lines:
                problem = f"duplicate key '{key.value}', first given in line {lines[key.value]}"
                raise _Refused(problem=problem, problem_mark=key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


class _PlainDumper(yaml.SafeDumper):
    """PyYAML's safe dumper without anchors, and with unusual line breaks escaped."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes these as they are into single quotes, and reads them back as spaces.
        style = '"' if any(mark in data for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_PlainDumper.add_representer(str, _PlainDumper.represent_str)


def parse_mapping(
    text: str, *, source: str, error: type[ConfigurationError] = ConfigurationError
) -> dict[str, Any]:
    """Read YAML text whose top level is a mapping.

    Args:
        text: The document.
        source: What to call the document in messages: a path, or "policy".
        error: The class of error to raise.

    Raises:
        ConfigurationError: As ``error``: too large, not YAML, not plain data, duplicate keys, anchors or aliases, nested
            too deeply, or not a mapping. The message names source and line.
    """
    size = len(text.encode("utf-8", errors="replace"))
    if size > SIZE_LIMIT:
        raise error(_too_large(source, size))
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as problem:
        raise error(f"{source}: {_describe(problem)}") from None
    except ValueError as problem:  # PyYAML lets through what datetime and int say about "2024-99-99"
        raise error(f"{source}: a value that cannot be read: {problem}") from None
    if not isinstance(document, dict):
        kind = "nothing" if document is None else f"a {type(document).__name__}"
        raise error(f"{source}: expected a mapping of keys to values (`key: value` lines), found {kind}")
    return document


def read_mapping(
    path: str | os.PathLike[str], *, error: type[ConfigurationError] = ConfigurationError
) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigurationError: As ``error``: the file cannot be read, is not UTF-8, or as ``parse_mapping`` says.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except OSError as problem:
        raise error(f"cannot read {os.fspath(path)}: {problem.strerror or problem}") from None
    if len(content) > SIZE_LIMIT:
        raise error(_too_large(os.fspath(path), Path(path).stat().st_size))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(f"{os.fspath(path)}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    return parse_mapping(text, source=os.fspath(path), error=error)


def to_yaml(document: dict[str, Any]) -> str:
    """Plain data as YAML text that ``parse_mapping`` reads back equal; keys in the order given."""
    return yaml.dump(document, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=100)


def write_bytes_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that readers see either the old content or the new one, never a part of it.

    Missing folders are made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """``write_bytes_atomically`` for text, as UTF-8 and with the line ends it has."""
    write_bytes_atomically(path, text.encode())


def _too_large(source: str, size: int) -> str:
    return f"{source}: {size:,} bytes, and at most {SIZE_LIMIT:,} are read; is this the right file?"


def _describe(problem: yaml.YAMLError) -> str:
    mark = getattr(problem, "problem_mark", None) or getattr(problem, "context_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    reason = getattr(problem, "problem", None) or getattr(problem, "reason", None) or str(problem)
    return f"{place}{reason}"
