"""The run behind ``sld generate``: what is asked for, what is there already, and making the rest.

Every batch is written before the next one starts, pictures last, and ``result.json`` after them. So whatever stops
a run, each picture in the folder is whole, and a later run can go on from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sldcore.cli.generation_call import Call, fit
from sldcore.cli.generation_files import write_files
from sldcore.cli.generation_request import Picture, Request
from sldcore.errors import ConfigurationError, listed
from sldcore.policy import SafetyPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from sldcore.engine import SafetyEngine
    from sldcore.types import Predictions, Result, Step

RESULT_FILE: Final = "result.json"


@dataclass(slots=True)
class Progressing:
    """How far a run is: the document of each finished picture by index, and where they came from."""

    pictures: dict[int, dict[str, Any]] = field(default_factory=dict)
    timesteps: Sequence[float] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As ``provenance.result_document``, over all batches."""
        from sldcore.provenance import FORMAT

        ordered = [self.pictures[index] for index in sorted(self.pictures)]
        return {
            "format": FORMAT, "pictures": ordered, "timesteps": self.timesteps, "provenance": self.provenance,
        }  # fmt: skip


def take_stock(request: Request, *, resume: bool, overwrite: bool) -> Progressing:
    """What the output folder holds of the request already; nothing unless ``resume``.

    Raises:
        ConfigurationError: A file of the request exists and would have to be replaced, without ``overwrite``.
    """
    done = Progressing()
    taken: list[str] = []
    earlier = _earlier_pictures(request.out / RESULT_FILE) if resume else {}
    for picture in request.pictures:
        named = [*picture.files.values(), picture.video]
        present = [name for name in named if (request.out / name).exists()]
        if not resume:
            taken += present
        elif picture.files["picture"] in present:
            account = _matching(request, picture)
            if account is None:
                taken.append(picture.files["picture"])
            elif account["picture"]["action"] != "block":
                name = picture.files["picture"]
                video = {"video": picture.video} if picture.video in present else {}
                bare = {
                    "files": {**video, **picture.files},
                    **account["picture"],
                    "plain_rows": None,
                    "trace": [],
                }
                entry = earlier.get(name, bare)
                if {*picture.files.values(), *entry["files"].values()} <= set(present):
                    done.pictures[picture.index] = entry
                done.provenance = _joined(done.provenance, account["provenance"])
    if not resume and (request.out / RESULT_FILE).exists():
        taken.append(RESULT_FILE)
    if taken and not overwrite:
        other = ", made from another request" if resume else ""
        resuming = "" if resume else "--resume to go on with an interrupted run, "
        hint = f"give {resuming}--overwrite to replace, or another --out"
        raise ConfigurationError(f"{request.out} already holds {_some(taken)}{other}; {hint}")
    return done


def generate_pictures(request: Request, done: Progressing, console: Console) -> None:
    """Make the pictures that are not done yet, and record them in ``done``; progress goes to ``console``.

    Raises:
        ConfigurationError: The model or the arguments cannot be used.
        SafetyFailure: A policy says ``on_error: raise``, and safety failed.
        OSError: A file cannot be written.
    """
    from sldcore.provenance import write_json

    missing = [picture for picture in request.pictures if picture.index not in done.pictures]
    if missing:
        pipe = _loaded(request, console)
        call = _fitted(pipe, request)
        with _progress(console, len(request.pictures), len(done.pictures)) as bar:
            engine = _engine(pipe, request, call, bar)
            for start in range(0, len(missing), request.batch_size):
                batch = missing[start : start + request.batch_size]
                _make(engine, request, call, batch, done, bar)
                write_json(request.out / RESULT_FILE, done.document())
                bar.finished(len(batch))
    write_json(request.out / RESULT_FILE, done.document())


class StepProgress:
    """A step hook that shows pictures and steps: two bars on a terminal, a line per batch elsewhere."""

    name = "progress"
    version = "1"

    def __init__(self, console: Console, bars: Progress, total: int, done: int) -> None:
        """Show ``done`` of ``total`` pictures."""
        self._console, self._bars, self._total, self._done = console, bars, total, done
        self._pictures = bars.add_task("pictures", total=total, completed=done)
        self._steps = bars.add_task("steps", total=None)

    def before_guidance(self, step: Step, predictions: Predictions) -> Predictions | None:
        """Observe nothing."""
        return None

    def after_guidance(self, step: Step, predictions: Predictions, guided: Tensor) -> Tensor | None:
        """Count the step."""
        self._bars.update(self._steps, total=step.total, completed=step.index + 1)
        return None

    def starts(self, what: str) -> None:
        """The denoising loop begins for another batch."""
        self._bars.update(self._steps, description=f"steps ({what})", completed=0)

    def finished(self, count: int) -> None:
        """So many more pictures are on disk."""
        self._done += count
        self._bars.update(self._pictures, completed=self._done)
        if not self._console.is_terminal:
            self._console.print(f"{self._done}/{self._total} pictures", highlight=False)


@contextmanager
def _progress(console: Console, total: int, done: int) -> Iterator[StepProgress]:
    columns = (
        TextColumn("{task.description:<17}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield StepProgress(console, bars, total, done)


def _loaded(request: Request, console: Console) -> Any:
    """The pipeline, without the libraries' own bars; those of downloads stay."""
    with console.status("loading torch and diffusers") as status:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()  # before diffusers: it speaks up about parts that are not needed
        transformers_logging.disable_progress_bar()

        from diffusers.utils import logging as diffusers_logging

        from sldcore.loading import load_pipeline

        diffusers_logging.disable_progress_bar()
        status.update(f"loading {escape(request.model)}")
        pipe = load_pipeline(request.model, device=request.device, dtype=request.dtype, **request.loading)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _fitted(pipe: Any, request: Request) -> Call:
    """The pipeline's arguments; what cannot work is found before the first batch, not at the batch that meets it."""
    from sldcore.families import family_of
    from sldcore.session import check_windows

    family = family_of(pipe)
    call = fit(pipe, family, request)
    policies = {picture.policy for picture in request.pictures}
    check_windows(pipe, family, policies, request.arguments["num_inference_steps"])
    return call


def _engine(pipe: Any, request: Request, call: Call, bar: StepProgress) -> SafetyEngine:
    from sldcore.engine import SafetyEngine

    # Without classifier-free guidance there are no predictions for a hook to see, and the engine refuses one.
    hooks = (bar,) if call.guided else ()
    audit = None
    if request.audit is not None:
        from sldcore.audit import AuditLog

        audit = AuditLog(request.audit)
    return SafetyEngine(pipe, request.pictures[0].policy, step_hooks=hooks, audit=audit)


def _make(
    engine: SafetyEngine, request: Request, call: Call, batch: Sequence[Picture], done: Progressing,
    bar: StepProgress,
) -> None:  # fmt: skip
    from sldcore.provenance import result_document

    guided = _generate(engine, call, batch, [picture.policy for picture in batch], bar, "guided")
    plain = guided
    if batch[0].compare and any(picture.policy.guides for picture in batch):
        without = [picture.policy.unguided for picture in batch]
        plain = _generate(engine, call, batch, without, bar, "unguided")
    provenance = {**guided.provenance, "request": request.key}
    document = result_document(guided, [picture.files for picture in batch])
    for sample, picture in enumerate(batch):
        entry = document["pictures"][sample]
        entry["files"] = write_files(engine, request, picture, sample, guided, plain, provenance)
        done.pictures[picture.index] = entry
    done.timesteps = document["timesteps"]
    done.provenance = _joined(done.provenance, provenance)


def _generate(
    engine: SafetyEngine, call: Call, batch: Sequence[Picture], policies: list[SafetyPolicy],
    bar: StepProgress, what: str,
) -> Result:  # fmt: skip
    bar.starts(what)
    prompts, seeds = [picture.prompt for picture in batch], [picture.seed for picture in batch]
    return engine.generate(prompts, seed=seeds, policies=policies, **call.arguments)


def _matching(request: Request, picture: Picture) -> dict[str, Any] | None:
    """The metadata of the picture's file if it is the picture asked for."""
    from sldcore.provenance import read_metadata

    account = read_metadata(request.out / picture.files["picture"])
    if account is None or account["provenance"].get("request") != request.key:
        return None
    asked = {"seed": picture.seed, "policy_digest": picture.policy.digest}
    made = account["picture"]
    return account if made["prompt"] == picture.prompt and made.get("asked") == asked else None


def _earlier_pictures(path: Path) -> dict[str, dict[str, Any]]:
    """The picture entries of an earlier ``result.json`` by file name; none if it cannot be read."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["pictures"]
        return {entry["files"]["picture"]: entry for entry in entries if "picture" in entry["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _joined(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    policies = {**earlier.get("policies", {}), **later.get("policies", {})}
    return {**later, "policies": policies}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return listed(names[:3]) + more
