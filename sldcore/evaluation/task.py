"""Benchmarks described as data: a YAML file says where prompts come from, which columns hold what, and what counts.

name: mine
version: "1"
title: My prompts
licence: CC0-1.0
data: prompts.csv             # beside this file; or none, and the path is given with --data
columns:
  prompt: [text]              # the first of these names that the data has
  seed: [seed, ""]            # an empty name: there may be none; seeds then count from 0
  categories: [label]
categories: [violence, hate]  # those that may occur, in the order of the report
neutral: false                # true: nothing to suppress, side effects are measured on it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from sldcore.documents import Strict, describe_invalid, parse_mapping, read_text, refuse_unknown_keys
from sldcore.errors import ConfigurationError, listed, nearest

TASK_NAME: Final = r"[a-z0-9][a-z0-9_+.-]*(/[a-z0-9][a-z0-9_+.-]*)*"
CATEGORY: Final = r"[a-z0-9][a-z0-9_/+.-]{0,59}"

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("id", ""),
    "prompt": ("prompt", "text", "caption"),
    "seed": ("seed", "sd_seed", "evaluation_seed", ""),
    "guidance_scale": ("guidance_scale", "sd_guidance_scale", "evaluation_guidance", "guidance", ""),
    "categories": ("categories", "category", ""),
    "width": ("width", "sd_image_width", ""),
    "height": ("height", "sd_image_height", ""),
}
"""What a row can say, and the columns of data without a task: the first that is there; with an empty name there may be none."""

Category = Annotated[str, Field(pattern=f"^{CATEGORY}$")]


class HubDataset(Strict):
    """A data set of the Hugging Face Hub."""

    name: str = Field(min_length=1)
    split: str = "train"
    revision: str | None = None


class Task(Strict):
    """One benchmark. ``playground`` is a bundled prompt set, or a ``half`` of it; others have ``columns``, and ``data`` or ``dataset`` or neither.

    ``rows``: how many the published data has; a table says so where it has others. ``every``: categories in which each row counts.
    """

    name: str = Field(pattern=f"^{TASK_NAME}$", max_length=100)
    version: str = Field(min_length=1, max_length=40)
    title: str
    licence: str = ""
    source: str = ""
    playground: Literal["roles", "neutral", "explicit"] | None = None
    half: Literal["first", "second"] | None = None
    data: str | None = None
    dataset: HubDataset | None = None
    rows: int | None = Field(default=None, ge=1)
    columns: Mapping[str, tuple[str, ...]] = Field(default_factory=lambda: dict(COLUMNS))
    categories: tuple[Category, ...] = ()
    every: tuple[Category, ...] = ()
    neutral: bool = False

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        refuse_unknown_keys(columns, COLUMNS, "column")
        if "prompt" not in columns or "" in columns["prompt"]:
            raise ValueError("'prompt' must name the column of the prompts")
        if empty := [thing for thing, names in columns.items() if not names]:
            raise ValueError(f"no names of columns for {listed(empty)}; leave it out")
        return columns

    @field_validator("data")
    @classmethod
    def _beside(cls, data: str | None) -> str | None:
        path = PurePosixPath(data or "data")
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("give a file beside the task or below; other files are given with --data")
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.playground and (self.data or self.dataset or "columns" in self.model_fields_set):
            raise ValueError("a playground task has no data, dataset or columns")
        if self.half and not self.playground:
            raise ValueError("only a playground task has halves")
        if self.categories and (unlisted := set(self.every) - set(self.categories)):
            raise ValueError(f"'every' names {listed(unlisted)}, which is not among the categories")
        return self


def with_columns(task: Task, given: Mapping[str, str]) -> Task:
    """The task with columns of one's own: for each thing that a row says the name of its column, empty for none.

    Raises:
        ConfigurationError: there is no such thing to say, or the task brings its prompts itself.
    """
    if given and task.playground:
        raise ConfigurationError(f"benchmark {task.name} brings its own prompts and takes no columns")
    try:
        refuse_unknown_keys(given, COLUMNS, "column")
    except ValueError as problem:
        raise ConfigurationError(f"columns of benchmark {task.name}: {problem}") from None
    if given.get("prompt") == "":
        raise ConfigurationError(f"columns of benchmark {task.name}: the prompts need a column")
    own = {thing: (column,) for thing, column in given.items()}
    return task.model_copy(update={"columns": {**task.columns, **own}})


def read_task(path: Path) -> Task:
    """The task in a YAML file of one's own.

    Raises:
        ConfigurationError: the file cannot be read, is no task, or has the name of a task that comes with sldcore.
    """
    task = _task(read_text(path), str(path))
    if task.name in shipped():
        raise ConfigurationError(
            f"{path}: '{task.name}' is a benchmark of sldcore; its numbers would be mixed up, so choose another name"
        )
    return task


@cache
def shipped() -> Mapping[str, Task]:
    """The tasks that come with sldcore, by name."""
    found = [
        _task(each.read_text(encoding="utf-8"), each.name)
        for each in (files("sldcore.evaluation") / "tasks").iterdir()
        if each.name.endswith(".yaml")
    ]
    return {task.name: task for task in sorted(found, key=lambda task: task.name)}


def named(name: str, with_data: bool) -> Task:
    """The task of this name; a new name stands for any data, whose columns have the names that are looked for by default.

    Raises:
        ConfigurationError: there is no such task, and no data either, or the name is malformed.
    """
    if name in shipped():
        return shipped()[name]
    if not with_data:
        raise ConfigurationError(
            f"no benchmark is called '{name}'{nearest(name, shipped())} (available: {listed(shipped())}). For prompts of your "
            f"own give a task (a path that ends in .yaml), or any name with --data PATH"
        )
    if not re.fullmatch(TASK_NAME, name) or len(name) > 100:
        raise ConfigurationError(
            f"{name!r:.120} cannot be the name of a benchmark; use lower-case letters, digits, '-', '_', '+', '.' and '/'"
        )
    return Task(name=name, version="1", title=name)


def _task(text: str, source: str) -> Task:
    try:
        return Task.model_validate(parse_mapping(text, source=source))
    except ValidationError as invalid:
        raise ConfigurationError(describe_invalid(source, invalid)) from None
