"""``sld plugins new``: a plugin to start from, rendered from the files in ``sldcore/plugin_template``."""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import Annotated, Final

import typer

from sldcore.catalogue import current
from sldcore.contributions import ConceptProvider
from sldcore.errors import PluginError

TEMPLATE: Final = Path(__file__).parent.parent / "plugin_template"
SUFFIX: Final = ".tmpl"
PREFIX: Final = "sld-"
LONGEST: Final = 60

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_PLACEHOLDER: Final = re.compile(r"\{\{(name|package|short|title|author)\}\}")


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the distribution, such as my-concepts.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder in which the plugin's own folder is made.")
    ] = Path(),
    title: Annotated[str, typer.Option("--title", help="One line; made from the name if left out.")] = "",
    author: Annotated[str, typer.Option("--author", help="Who is named in pyproject.toml.")] = "",
) -> None:
    """Make a plugin to start from: a concept pack, a window, a manifest and contract tests.

    The name is kept as given. What the plugin contributes is named after it, without a leading "sld-".
    """
    check_name(name)
    files = render(name, title, author)
    folder = write_plugin(out / name, files)
    package = _package(name)
    typer.echo(f"made {folder} ({len(files)} files). Next:")
    typer.echo(f"  cd {folder}")
    typer.echo("  pip install -e '.[test]'   # now `sld plugins list` shows it")
    typer.echo("  pytest                     # the contracts that every plugin must keep")
    typer.echo(f"Then edit src/{package}/concepts.yaml and src/{package}/__init__.py; README.md says how.")


def check_name(name: str) -> None:
    """Refuse names that pip, Python or a policy could not tell from others.

    Raises:
        PluginError: the name is malformed, or taken by a Python package or by a concept pack of the core.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        raise PluginError(
            f"'{name:.80}' cannot be the name of a plugin; use lower-case letters and digits, with '-' between words, at most "
            f"{LONGEST} characters, such as 'my-concepts'"
        )
    package, short = _package(name), _short(name)
    if keyword.iskeyword(package) or find_spec(package) is not None:
        raise PluginError(
            f"'{package}' is a name that Python has already, so a plugin called '{name}' could not be imported; choose "
            f"another name, such as '{name}-concepts'"
        )
    if short in {entry.contribution.name for entry in current().core_entries(ConceptProvider)}:
        raise PluginError(
            f"sldcore has a concept pack '{short}' itself, and a plugin cannot take its name; choose another name, such as "
            f"'{name}-more'"
        )


def render(name: str, title: str = "", author: str = "") -> dict[str, str]:
    """The plugin's files as text, by path relative to its folder.

    Raises:
        PluginError: ``title`` or ``author`` is not one line of plain text.
    """
    values = {
        "name": name,
        "package": _package(name),
        "short": _short(name),
        "title": _plain("title", title or _short(name).replace("-", " ").capitalize()),
        "author": _plain("author", author or f"The authors of {name}"),
    }
    paths = sorted(path for path in TEMPLATE.rglob(f"*{SUFFIX}") if path.is_file())
    return {
        path.relative_to(TEMPLATE).as_posix().removesuffix(SUFFIX).replace("PACKAGE", values["package"]): (
            _PLACEHOLDER.sub(lambda found: values[found[1]], path.read_text("utf-8"))
        )
        for path in paths
    }


def write_plugin(folder: Path, files: dict[str, str]) -> Path:
    """Write the files into ``folder``, which appears in one piece or not at all.

    Raises:
        PluginError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise PluginError(
            f"'{folder}' exists already and is left as it is; choose another name, or another --out"
        )
    hidden = folder.with_name(f".{folder.name}.{token_hex(4)}")
    try:
        for path, text in files.items():
            file = hidden / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8", newline="\n")
        return hidden.rename(folder)
    except OSError as problem:
        raise PluginError(
            f"cannot make '{folder}': {problem.strerror or problem}; choose another --out"
        ) from None
    finally:
        rmtree(hidden, ignore_errors=True)  # is not there any more if all went well


def _package(name: str) -> str:
    return name.replace("-", "_")


def _short(name: str) -> str:
    return name.removeprefix(PREFIX)


def _plain(what: str, text: str) -> str:
    """``text``, if it means the same inside quotes of TOML, YAML and Python."""
    plain = text.strip()
    if not plain or not plain.isprintable() or any(mark in plain for mark in '"\\'):
        raise PluginError(f'{what} must be one line of text without " and \\, got {text!r:.80}')
    return plain
