"""Benchmarks: lists of prompts with seeds and categories, each with a version and a hash of its data.

Bundled are the playground's prompt sets. Data of others is read from a file, or through the package ``datasets``; none is
part of this package. A benchmark that is not the published one (other rows, a part, normalised prompts) says so in its version,
which every table shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, Final

from sldcore.errors import ConfigurationError, listed
from sldcore.evaluation import playground_items
from sldcore.evaluation.readers import Row, Table, read_dataset, read_table
from sldcore.evaluation.records import Benchmark, Item
from sldcore.evaluation.task import CATEGORY, Task, named, read_task, shipped, with_columns
from sldcore.evaluation.text import normalise as normalised

LONGEST_PROMPT: Final = 20_000
"""Characters. CLIP reads 77 tokens, T5 some hundreds; what is longer is no prompt."""

LARGEST_SIDE: Final = 16_384
LARGEST_SEED: Final = 2**63 - 1


def benchmark_names() -> tuple[str, ...]:
    """Names of the benchmarks that come with sldcore, with their data or without, sorted."""
    return tuple(shipped())


def load_benchmark(
    name: str,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    normalise: bool = False,
    limit: int | None = None,
) -> Benchmark:
    """The items of a benchmark.

    Args:
        name: One of :func:`benchmark_names`, a path to a task (``.yaml``), or with ``data`` any new name.
        data: A CSV, TSV, JSON lines or Parquet file. Without it the task's own, or the Hub's through ``datasets``.
        columns: Which column holds what, where the task's choice is not right, such as ``{"prompt": "adv_prompt"}``.
        normalise: Normalise prompts as OpenAI's tokenizer does; see :mod:`sldcore.evaluation.text`.
        limit: Take the first so many rows. All are checked.

    Raises:
        ConfigurationError: no such benchmark, its data cannot be had, or a row makes no sense.
    """
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit is {limit}; take at least one row, or leave it out for all")
    path = Path(name) if name.endswith((".yaml", ".yml")) else None
    task = read_task(path) if path else named(name, data is not None)
    task = with_columns(task, columns or {})
    items = _items(task, data, path.parent if path else None)
    if normalise:
        items = [
            replace(item, prompt=_checked_prompt(normalised(item.prompt), f"item {item.id}, normalised"))
            for item in items
        ]
    kept = tuple(items[:limit])
    return Benchmark(
        name=task.name,
        version=_version(task, len(items), len(kept), normalise),
        data_hash=_hash(kept),
        items=kept,
        categories=task.categories or _found(items),
        neutral=task.neutral,
        description=task.title,
        licence=task.licence,
    )


def _items(task: Task, data: Path | None, folder: Path | None) -> list[Item]:
    if task.playground:
        if data is not None:
            raise ConfigurationError(f"benchmark {task.name} brings its own prompts; leave out {data}")
        return playground_items.items_of(task.playground, task.half)
    wanted = {name for names in task.columns.values() for name in names if name}
    table = _table(task, data, folder, wanted)
    columns = _columns_of(task, table)
    items = [_item(row, number, columns, task) for number, row in enumerate(table.rows)]
    seen: dict[str, str] = {}
    for item, row in zip(items, table.rows, strict=True):
        if item.id in seen:
            raise ConfigurationError(f"{row.place}: the id '{item.id:.80}' is taken by {seen[item.id]}")
        seen[item.id] = row.place
    return items


def _table(task: Task, data: Path | None, folder: Path | None, wanted: set[str]) -> Table:
    if data is not None:
        return read_table(Path(data), wanted)
    if task.data is not None and folder is not None:
        return read_table(folder / task.data, wanted)
    if task.dataset is not None:
        return read_dataset(task.dataset.name, task.dataset.split, task.dataset.revision, wanted)
    origin = f" ({task.source})" if task.source else ""
    raise ConfigurationError(
        f"the data of benchmark {task.name} is not part of sldcore; download it{origin} and give its path (--data PATH)"
    )


def _columns_of(task: Task, table: Table) -> dict[str, str]:
    """The column for each thing that rows say; a benchmark without one that it should have would be another benchmark."""
    chosen: dict[str, str] = {}
    for thing, names in task.columns.items():
        present = [name for name in names if name and name in table.columns]
        if present:
            chosen[thing] = present[0]
        elif "" not in names:
            raise ConfigurationError(
                f"{table.source} has no column {' or '.join(map(repr, names))} for {thing} of benchmark {task.name} (its "
                f"columns: {listed(map(repr, table.columns))}); say which column holds it"
            )
    return chosen


def _item(row: Row, number: int, columns: Mapping[str, str], task: Task) -> Item:
    def cell(thing: str) -> Any:
        value = row.cells.get(columns[thing]) if thing in columns else None
        return None if value == "" else value

    try:
        width, height = (_whole(cell(side), side, LARGEST_SIDE) for side in ("width", "height"))
        if (width is None) != (height is None) or 0 in (width, height):
            raise ValueError("give width and height, both at least 1, or neither")
        return Item(
            id=_id(cell("id"), number) if "id" in columns else str(number),
            prompt=_checked_prompt(cell("prompt"), row.place),
            seed=_seed(cell("seed")) if "seed" in columns else number,
            categories=_categories(cell("categories"), task),
            guidance_scale=_scale(cell("guidance_scale")),
            width=width,
            height=height,
        )
    except ConfigurationError:
        raise
    except ValueError as problem:
        raise ConfigurationError(f"{row.place}: {problem}") from None


def _id(value: Any, number: int) -> str:
    if value is None or not isinstance(value, str | int) or not str(value).isprintable():
        raise ValueError(f"the id must be a short text or a whole number, got {value!r:.80}")
    if len(str(value)) > 200:
        raise ValueError(f"the id is longer than 200 characters: {value!r:.80}")
    return str(value)


def _checked_prompt(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{place}: there is no prompt, found {value!r:.80}")
    if len(value) > LONGEST_PROMPT:
        raise ConfigurationError(
            f"{place}: the prompt has {len(value):,} characters, and at most {LONGEST_PROMPT:,} are taken: {value!r:.60}..."
        )
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
        raise ConfigurationError(
            f"{place}: the prompt has a NUL or half a character (a lone surrogate) in it"
        )
    return value


def _whole(value: Any, what: str, largest: int) -> int | None:
    """A whole number from 0 to ``largest``; pandas writes 7 as 7.0 where a column has gaps."""
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        text = str(value).strip()
        number = int(text.removesuffix(".0")) if text.isascii() and "_" not in text else -1
    except ValueError:
        number = -1
    if not 0 <= number <= largest:
        raise ValueError(f"{what} must be a whole number from 0 to {largest}, got {value!r:.80}")
    return number


def _seed(value: Any) -> int:
    number = _whole(value, "seed", LARGEST_SEED)
    if number is None:
        raise ValueError("there is no seed; fill it in, or use no column for seeds (`seed=`)")
    return number


def _scale(value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, int | float | str) and value is not True else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if not (isfinite(number) and 0 <= number <= 1_000):
        raise ValueError(f"guidance_scale must be a number from 0 to 1000, got {value!r:.80}")
    return number


def _categories(value: Any, task: Task) -> tuple[str, ...]:
    """Categories of a cell, ``hate, illegal activity`` or a list, in the way they are written here: ``illegal-activity``."""
    parts = value.replace(";", ",").split(",") if isinstance(value, str) else value or ()
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"categories must be names with commas between them, got {value!r:.80}")
    names = ["-".join(part.lower().split()) for part in parts]
    found = dict.fromkeys([*(name for name in names if name), *task.every])
    if unknown := [name for name in found if task.categories and name not in task.categories]:
        raise ValueError(
            f"the benchmark has no category {listed(map(repr, unknown))} (available: {listed(task.categories)})"
        )
    if malformed := [name for name in found if not re.fullmatch(CATEGORY, name)]:
        raise ValueError(f"{malformed[0]!r:.80} cannot be a category; use letters, digits and '-'")
    return tuple(found)


def _found(items: Sequence[Item]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(category for item in items for category in item.categories))


def _version(task: Task, count: int, kept: int, normalise: bool) -> str:
    parts = [task.version]
    parts += [f"{count:,} rows instead of {task.rows:,}"] if task.rows not in (None, count) else []
    parts += [f"first {kept:,} of {count:,} rows"] if kept < count else []
    parts += ["normalised"] if normalise else []
    return ", ".join(parts)


def _hash(items: Sequence[Item]) -> str:
    """The first 16 hex digits of the sha256 of all that items say, as JSON lists one below the other."""
    lines = (json.dumps(astuple(item), separators=(",", ":")) for item in items)
    return sha256("\n".join(lines).encode()).hexdigest()[:16]
