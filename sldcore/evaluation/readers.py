"""Prompts of others, read from CSV, TSV, JSON lines and Parquet files, and from data sets of the Hugging Face Hub.

Files come from anywhere, so nothing in them is trusted: sizes are bounded, text is UTF-8 or refused, a row that has more or
fewer cells than the header is refused, and so is a name that is given twice. Every complaint names the line.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from sldcore.errors import ConfigurationError, listed

LARGEST_FILE: Final = 1 << 30
"""The largest file that is read, in bytes: 1 GiB. COCO's 30,000 captions have 3 MiB."""

MOST_ROWS: Final = 1_000_000

LONGEST_LINE: Final = 1 << 20
"""Characters of one JSON line; a CSV cell is bounded by Python's own limit of 131,072."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: where it stands, for messages, and its cells by column; text from CSV, plain data from the others."""

    place: str
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """``columns`` are all that the source has; rows hold at least the wanted ones."""

    source: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_table(path: Path, wanted: Collection[str]) -> Table:
    """All rows of a file with the columns in ``wanted``, as far as it has them.

    Raises:
        ConfigurationError: the file cannot be read, is too large, malformed or empty, or its kind is unknown.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(
            f"{path} is of no kind that can be read here (available: {listed(_READERS)}); convert it to one of these"
        )
    _require_size(path)
    try:
        table = reader(path, wanted)
    except OSError as problem:
        raise ConfigurationError(f"cannot read {path}: {problem.strerror or problem}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text; save the file as UTF-8") from None
    if not table.rows:
        raise ConfigurationError(f"{path} has no rows; is this the right file?")
    return table


def read_dataset(name: str, split: str, revision: str | None, wanted: Collection[str]) -> Table:
    """As :func:`read_table`, of a data set of the Hugging Face Hub, through the package ``datasets``.

    Raises:
        ConfigurationError: ``datasets`` is not installed, or the data set cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise ConfigurationError(
            f"data set {name} needs the package datasets, which is not installed; run `pip install 'sldcore[datasets]'`, or "
            f"download its file and give the path (--data PATH)"
        ) from None
    try:
        found = datasets.load_dataset(name, split=split, revision=revision)
        columns = tuple(str(column) for column in found.column_names)
        _require_rows(len(found), name)
        chosen = [column for column in columns if column in wanted]
        rows = tuple(
            Row(f"{name}, row {n}", dict(cells)) for n, cells in enumerate(found.select_columns(chosen), 1)
        )
    except ConfigurationError:
        raise
    except (
        Exception
    ) as problem:  # the network, a licence that was not accepted, a format: each has errors of its own
        raise ConfigurationError(
            f"data set {name} cannot be had: {type(problem).__name__}: {problem!s:.300}. Download its file and give the path "
            f"(--data PATH)"
        ) from problem
    return Table(name, columns, rows)


def _require_size(path: Path) -> None:
    try:
        found = path.stat()
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise ConfigurationError(
            f"cannot read {path}: {getattr(problem, 'strerror', None) or problem}"
        ) from None
    if not path.is_file():
        raise ConfigurationError(f"{path} is not a file; give the file with the prompts")
    if found.st_size > LARGEST_FILE:
        raise ConfigurationError(
            f"{path}: {found.st_size:,} bytes, and at most {LARGEST_FILE:,} are read; is this the right file?"
        )


def _require_rows(count: int, source: str) -> None:
    if count > MOST_ROWS:
        raise ConfigurationError(f"{source} has more than {MOST_ROWS:,} rows; give a part of it")


def _delimited(path: Path, wanted: Collection[str], delimiter: str) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            _require_unique(header, path)
            rows = tuple(_cells(reader, header, path))
        except csv.Error as problem:
            raise ConfigurationError(f"{path}, line {reader.line_num}: {problem}") from None
    return Table(str(path), tuple(header), rows)


def _require_unique(header: Sequence[str], path: Path) -> None:
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise ConfigurationError(f"{path}: the header names {listed(map(repr, twice))} more than once")


def _cells(reader: Any, header: Sequence[str], path: Path) -> Iterator[Row]:
    for number, cells in enumerate(filter(None, reader), 1):
        place = f"{path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise ConfigurationError(f"{place}: {len(cells)} cells, and the header has {len(header)}")
        _require_rows(number, str(path))
        yield Row(place, dict(zip(header, cells, strict=True)))


def _json_lines(path: Path, wanted: Collection[str]) -> Table:
    rows: list[Row] = []
    columns: dict[str, None] = {}
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), ""), 1):
            place = f"{path}, line {number}"
            if len(line) > LONGEST_LINE:
                raise ConfigurationError(f"{place}: longer than {LONGEST_LINE:,} characters")
            if line.strip():
                cells = _object(line, place)
                columns |= dict.fromkeys(cells)
                rows.append(Row(place, {name: cells[name] for name in cells if name in wanted}))
                _require_rows(len(rows), str(path))
    return Table(str(path), tuple(columns), tuple(rows))


def _object(line: str, place: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name is given twice")
        return dict(pairs)

    try:
        found = json.loads(line, object_pairs_hook=once)
    except (ValueError, RecursionError) as problem:
        raise ConfigurationError(f"{place}: not JSON: {problem}") from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{place}: expected an object of columns, found {type(found).__name__}")
    return found


def _parquet(path: Path, wanted: Collection[str]) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigurationError(
            f"{path}: Parquet files need pyarrow, which is not installed; run `pip install 'sldcore[datasets]'`, or convert "
            f"the file to CSV or JSON lines"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            _require_rows(file.metadata.num_rows, str(path))
            columns = tuple(file.schema_arrow.names)
            _require_unique(columns, path)
            found = file.read(columns=[name for name in columns if name in wanted]).to_pylist()
    except ArrowException as problem:
        raise ConfigurationError(f"{path} is not a Parquet file that can be read: {problem}") from None
    return Table(
        str(path), columns, tuple(Row(f"{path}, row {n}", cells) for n, cells in enumerate(found, 1))
    )


_READERS: Final[Mapping[str, Callable[[Path, Collection[str]], Table]]] = {
    ".csv": partial(_delimited, delimiter=","),
    ".tsv": partial(_delimited, delimiter="\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
