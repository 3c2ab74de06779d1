"""``sld playground``: train the embedded toy model anew, and look at the world it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

INTERRUPTED: Final = 130

app = typer.Typer(no_args_is_help=True, help="The embedded toy model: train it, look at its world.")


@app.command("train")
def train_command(
    out: Annotated[Path, typer.Option(help="Folder for the trained pipeline; must not exist.")],
    work: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints. [default: OUT with '.work' appended]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides everything that is random.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps only: checks that training works.")
    ] = False,
) -> None:
    """Train the playground model; allow an hour and a half on two idle cores.

    Ctrl-C stops it; the same command goes on from the last checkpoint. The weights appear in OUT when all is done.

    Exit codes: 0 done; 2 bad input, nothing written; 130 interrupted.
    """
    from transformers.utils.logging import disable_progress_bar

    from sldcore.playground.stages import Settings
    from sldcore.playground.training import train

    disable_progress_bar()  # saving a model would draw one across ours

    settings = Settings.quick(seed) if quick else Settings(seed=seed)
    folder = work or out.with_name(out.name + ".work")
    console = Console()
    try:
        with _Reporter(console) as reporter:
            log = train(out, folder, settings, reporter.report)
    except KeyboardInterrupt:
        _say(console, f"Interrupted: checkpoints stay in {folder}; run the same command again to go on.")
        raise typer.Exit(INTERRUPTED) from None
    console.print(_summary(log))
    _say(console, f"The model is in {out}; {folder} is no longer needed.")


@app.command("show")
def show_command(
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Which pictures are drawn.")] = 0,
) -> None:
    """Draw the playground's world on one sheet: subjects, roles, glyphs, and samples with captions."""
    from sldcore.errors import ConfigurationError
    from sldcore.playground.sheet import world_sheet
    from sldcore.provenance import save_png

    if out.suffix.lower() != ".png":
        raise ConfigurationError(f"{out} is not a PNG file name; end it in .png")
    save_png(world_sheet(seed), out)
    _say(Console(), f"The world is drawn in {out}")


class _Reporter:
    """Bars in a terminal; elsewhere (logs, pipes) ten plain lines per stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> _Reporter:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def report(self, stage: str, step: int, steps: int, loss: float) -> None:
        shown = f"loss {loss:.4f}" if loss else ""
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=steps, loss=shown)
            self._bars.update(self._tasks[stage], completed=step, loss=shown)
        elif step * 10 // steps != (step - 1) * 10 // steps:
            _say(self._console, f"{stage} {step}/{steps} {shown}".rstrip())


def _summary(log: dict[str, Any]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("measured")
    table.add_column("value", justify="right")
    for name, value in log.items():
        if isinstance(value, dict) and name != "settings":
            for part, number in value.items():
                table.add_row(escape(f"{name.replace('_', ' ')}: {part}"), str(number))
        elif name != "settings":
            table.add_row(escape(name.replace("_", " ")), str(value))
    return table


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)
