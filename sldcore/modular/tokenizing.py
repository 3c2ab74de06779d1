"""How many tokens of a text a pipeline's text block takes, found by watching its tokenizers at work.

Every architecture has templates, cleaning and limits of its own. The text block is run once with a probe; what it hands to
its tokenizers, with which limit, tells how any other text is counted, without running the text encoder again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sldcore.errors import UnsupportedPipelineError

PROBE: Final = "quixotry"
_OF_THE_RESULT: Final = ("padding", "truncation", "max_length", "return_tensors", "return_overflowing_tokens")


@dataclass(frozen=True, slots=True)
class Tokenizing:
    """One call of a tokenizer with the probe in it, and the most tokens that it leaves."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    limit: int

    def count(self, text: str) -> int:
        """Tokens with ``text`` in the place of the probe, nothing cut off."""
        args = [_put(value, text) for value in self.args]
        kwargs = {name: _put(value, text) for name, value in self.kwargs.items()}
        return len(_ids(self.call(*args, **kwargs)))


class Watched:
    """Stands in for a tokenizer and notes what cuts text off."""

    def __init__(self, tokenizer: Any, seen: list[Tokenizing]) -> None:
        self._tokenizer = tokenizer
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the tokenizer's; noted."""
        self._note(self._tokenizer, args, kwargs)
        return self._tokenizer(*args, **kwargs)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """As the tokenizer's; noted where it makes tokens."""
        if kwargs.get("tokenize", True):
            self._note(self._tokenizer.apply_chat_template, args, kwargs)
        return self._tokenizer.apply_chat_template(*args, **kwargs)

    def _note(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if kwargs.get("truncation") and _holds_probe([args, kwargs]):
            limit = int(kwargs.get("max_length") or self._tokenizer.model_max_length)
            plain = {name: value for name, value in kwargs.items() if name not in _OF_THE_RESULT}
            self._seen.append(Tokenizing(call, args, plain, limit))


class Watching:
    """A pipeline as its text block sees it, with watched tokenizers; nothing of the pipeline itself changes."""

    def __init__(self, pipe: Any) -> None:
        vars(self)["_pipe"] = pipe
        vars(self)["seen"] = []
        vars(self)["_watched"] = {
            name: Watched(part, self.seen)
            for name, part in pipe.components.items()
            if part is not None and name.startswith("tokenizer")
        }

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(vars(self)["_pipe"])

    def __getattr__(self, name: str) -> Any:
        watched = vars(self)["_watched"]
        return watched[name] if name in watched else getattr(vars(self)["_pipe"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_pipe"], name, value)


class Window:
    """What a text block takes of a text.

    Args:
        seen: how the probe was tokenized.
        kept: tokens of the text itself that are kept after encoding, None if all.

    Raises:
        UnsupportedPipelineError: nothing was seen, so that text might be cut off unnoticed.
    """

    def __init__(self, seen: list[Tokenizing], kept: int | None, name: str) -> None:
        if not seen:
            raise UnsupportedPipelineError(
                f"the text block of {name} was not seen to hand its prompt to a tokenizer with a limit, so it cannot be "
                f"told how long a concept may be"
            )
        self._calls = seen
        self._limits = [
            each.limit if kept is None else min(each.limit, each.count("") + kept) for each in seen
        ]
        self.size = min(self._limits)

    def count(self, text: str) -> int:
        """Tokens of ``text``; where several tokenizers read it, as if all had the window of the narrowest."""
        counts = [
            each.count(text) - (limit - self.size)
            for each, limit in zip(self._calls, self._limits, strict=True)
        ]
        return max(*counts, 0)


def _put(value: Any, text: str) -> Any:
    """``value`` with ``text`` in place of the probe, at any depth."""
    if isinstance(value, str):
        return value.replace(PROBE, text)
    if isinstance(value, Mapping):
        return {name: _put(item, text) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_put(item, text) for item in value)
    return value


def _holds_probe(value: Any) -> bool:
    if isinstance(value, str):
        return PROBE in value
    if isinstance(value, Mapping):
        return any(_holds_probe(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_holds_probe(item) for item in value)


def _ids(result: Any) -> Any:
    """The token ids of the one text in what a tokenizer returns."""
    ids = result["input_ids"] if isinstance(result, Mapping) or hasattr(result, "keys") else result
    return ids[0] if len(ids) and isinstance(ids[0], list | tuple) else ids
