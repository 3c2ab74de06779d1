"""The contract of commands of ``sld``."""

# ruff: noqa: D102  (the name of a test is its documentation)

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import typer

from sldcore.contributions import Command
from sldcore.testing.contracts.base import UNKNOWN_OPTION, Contract, require


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code, and what it printed."""

    code: Any
    printed: str


class CommandContract(Contract):
    """For :class:`sldcore.contributions.Command`. Only ``--help`` and a wrong option are tried: nothing is carried out."""

    kind = Command

    def make(self) -> Any:
        """A new command."""
        return self.subject.create()

    def use(self, made: Any) -> int:
        """Ask it for help."""
        _run(made, "--help")
        return 1

    def test_it_is_a_typer_app_or_a_click_command(self) -> None:
        made = self.make()
        is_one = isinstance(made, typer.Typer) or (hasattr(made, "main") and hasattr(made, "make_context"))
        require(is_one, f"the factory gave {type(made).__name__}, not a typer.Typer or a click command")

    def test_it_explains_itself(self) -> None:
        ended = _run(self.make(), "--help")
        require(ended.code == 0, f"--help exits with {ended.code}: {ended.printed}")
        require(ended.printed.strip(), "--help prints nothing")

    def test_a_wrong_option_is_a_message_and_exit_code_2(self) -> None:
        ended = _run(self.make(), f"--{UNKNOWN_OPTION}")
        require(ended.code == 2, f"a wrong option exits with {ended.code}, not 2: {ended.printed}")
        require(ended.printed.strip(), "a wrong option prints no message")

    def test_it_can_be_made_twice(self) -> None:
        one, two = _run(self.make(), "--help"), _run(self.make(), "--help")
        require(one == two, "made a second time the command explains itself otherwise")


def _run(made: Any, *arguments: str) -> Ended:
    """Run the command as ``sld`` would, in this process."""
    command = typer.main.get_command(made) if isinstance(made, typer.Typer) else made
    printed = StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            command.main(list(arguments), prog_name="sld", standalone_mode=True)
    except SystemExit as end:
        return Ended(0 if end.code is None else end.code, printed.getvalue())
    return Ended(0, printed.getvalue())
