"""Documents on disk: YAML in through a strict, safe loader, checked by strict models, and files out in one piece.

YAML comes from people who may not be trusted with more than data. So the loader knows plain data only, refuses
anchors and aliases (a few bytes of which can expand to gigabytes) and duplicate keys (of which YAML keeps the last,
silently), and reads no more than one mebibyte.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from sldcore.errors import ConfigurationError, listed, nearest

SIZE_LIMIT: Final = 1 << 20
"""The largest document that is read, in bytes: 1 MiB."""

DEPTH_LIMIT: Final = 32
"""The deepest nesting of mappings and lists that is read."""


_UNKNOWN_KEY: Final = "unknown_key"


class Strict(BaseModel):
    """A frozen part of a document that refuses unknown keys and says which known one is nearest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            try:
                refuse_unknown_keys(data, cls.model_fields, "key")
            except ValueError as problem:
                unknown = [key for key in data if key not in cls.model_fields]
                context = {"message": str(problem), "keys": unknown}
                raise PydanticCustomError(_UNKNOWN_KEY, "{message}", context) from None
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
        place, message = _field(problem["loc"]), _message(problem)
        lines.append(f"{place}: {message}" if place else message)
    return f"{source}: " + "; ".join(lines)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a document: the line, counted from 1, the path of the field, and what is wrong."""

    line: int
    field: str
    message: str


def find_problems(
    text: str, model: type[BaseModel], context: Mapping[str, Any] | None = None
) -> tuple[Problem, ...]:
    """Everything that keeps YAML text from being a ``model``, by line; ``context`` is pydantic's."""
    try:
        document: Any = _parse(text)
    except _Unreadable as unreadable:
        return (Problem(unreadable.line, "", unreadable.message),)
    root = yaml.compose(text, Loader=_StrictLoader)
    problems: set[Problem] = set()
    while True:  # unknown keys hide what else is wrong beside them, so they are noted and left out
        try:
            model.model_validate(document, context=dict(context or {}))
            break
        except ValidationError as invalid:
            errors = invalid.errors(include_url=False)
        cut = document
        for error in errors:
            for key in error.get("ctx", {}).get("keys", ()):
                loc = (*error["loc"], key)
                problems.add(Problem(_line(root, loc), _field(loc), _message(error)))
                cut = _without(cut, loc)
        if cut == document:
            problems |= {Problem(_line(root, e["loc"]), _field(e["loc"]), _message(e)) for e in errors}
            break
        document = cut
    return tuple(sorted(problems, key=lambda problem: (problem.line, problem.field, problem.message)))


def _line(node: yaml.Node | None, loc: Sequence[str | int]) -> int:
    mark = node.start_mark if node is not None else None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == part), None)
            key, node = pair or (None, None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            key = node = node.value[part]
        else:
            break
        if key is None:
            break
        mark = key.start_mark
    return mark.line + 1 if mark is not None else 1


def _without(document: Any, loc: Sequence[str | int]) -> Any:
    """A copy of a document that lacks one key."""
    first, *rest = loc
    if isinstance(document, list):
        return [_without(part, rest) if index == first else part for index, part in enumerate(document)]
    if not isinstance(document, dict):
        return document
    if not rest:
        return {key: value for key, value in document.items() if key != first}
    return {key: _without(value, rest) if key == first else value for key, value in document.items()}


def _field(loc: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in loc)


def _message(problem: Any) -> str:
    message: str = problem["msg"].removeprefix("Value error, ")
    if problem["type"] not in ("value_error", "missing", _UNKNOWN_KEY):
        message += f", got {problem['input']!r:.80}"
    return message


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

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if any("\ud800" <= character <= "\udfff" for character in value):
            problem = "half a character (a lone surrogate) is not allowed"
            raise _Refused(problem=problem, problem_mark=node.start_mark)
        return value

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
    try:
        return _parse(text)
    except _Unreadable as unreadable:
        raise error(f"{source}: {unreadable}") from None


class _Unreadable(Exception):
    """Text that is not a document, and where; line 0 if it is not one line's fault."""

    def __init__(self, message: str, line: int = 1, place: str = "") -> None:
        super().__init__(f"{place}{message}")
        self.message = message
        self.line = line


def _parse(text: str) -> dict[str, Any]:
    size = len(text.encode("utf-8", errors="replace"))
    if size > SIZE_LIMIT:
        raise _Unreadable(_too_large(size))
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as problem:
        raise _unreadable(problem) from None
    except (
        ValueError,
        OverflowError,
    ) as problem:  # PyYAML lets through what datetime and int say about "2024-99-99"
        raise _Unreadable(f"a value that cannot be read: {problem}") from None
    if not isinstance(document, dict):
        kind = "nothing" if document is None else f"a {type(document).__name__}"
        raise _Unreadable(f"expected a mapping of keys to values (`key: value` lines), found {kind}")
    return document


def read_text(path: str | os.PathLike[str], *, error: type[ConfigurationError] = ConfigurationError) -> str:
    """Read a UTF-8 file of at most ``SIZE_LIMIT`` bytes, with or without byte order mark.

    Raises:
        ConfigurationError: As ``error``: the file cannot be read, is too large, or is not UTF-8.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(
            f"cannot read {os.fspath(path)}: {getattr(problem, 'strerror', None) or problem}"
        ) from None
    if len(content) > SIZE_LIMIT:
        raise error(f"{os.fspath(path)}: {_too_large(Path(path).stat().st_size)}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise error(f"{os.fspath(path)}, line {line}: not UTF-8 text; save the file as UTF-8") from None


def read_mapping(
    path: str | os.PathLike[str], *, error: type[ConfigurationError] = ConfigurationError
) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigurationError: As ``error``: as ``read_text`` and ``parse_mapping`` say.
    """
    return parse_mapping(read_text(path, error=error), source=os.fspath(path), error=error)


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


def _too_large(size: int) -> str:
    return f"{size:,} bytes, and at most {SIZE_LIMIT:,} are read; is this the right file?"


def _unreadable(problem: yaml.YAMLError) -> _Unreadable:
    mark = getattr(problem, "problem_mark", None) or getattr(problem, "context_mark", None)
    reason = getattr(problem, "problem", None) or getattr(problem, "reason", None) or str(problem)
    if mark is None:
        return _Unreadable(reason)
    return _Unreadable(reason, mark.line + 1, f"line {mark.line + 1}, column {mark.column + 1}: ")
