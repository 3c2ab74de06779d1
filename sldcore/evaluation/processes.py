"""Spreading a run over processes of one machine, each with a pipeline on its device.

A process that dies costs its own part: the others finish theirs, and the same command goes on from there.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from sldcore.errors import ConfigurationError
from sldcore.evaluation.planning import Batch, Plan
from sldcore.evaluation.run_folder import RunFolder
from sldcore.evaluation.workers import (
    Progress,
    WorkerError,
    device_for,
    make_here,
    require_same_place,
    without_items,
)


def make_in_processes(
    folder: RunFolder,
    plan: Plan,
    batches: Sequence[Batch],
    worker: str,
    device: str | None,
    processes: int,
    progress: Progress | None = None,
) -> None:
    """Make batches in processes of their own, each on its device; CUDA devices are dealt out in turn.

    Raises:
        WorkerError: a process died; the others finished their part.
        ConfigurationError: model or arguments cannot be used.
    """
    context = get_context("spawn")
    total, done = sum(len(batch.members) for batch in batches), 0
    running: dict[Connection, Any] = {}
    for number in range(min(processes, len(batches))):
        receiving, sending = context.Pipe(duplex=False)
        own = without_items(plan), list(batches[number::processes])
        name = f"{worker}-process-{number + 1}-of-{processes}"
        process = context.Process(
            target=_work,
            args=(folder, *own, name, device_for(device, number), sending),
            name=name,
            daemon=True,
        )
        process.start()
        sending.close()
        running[receiving] = process
    ends: list[str] = []
    refused: list[ConfigurationError] = []
    while running:
        for pipe in cast("list[Connection]", wait(list(running))):
            try:
                message = pipe.recv()
            except EOFError:
                process = running.pop(pipe)
                process.join()
                ends += [_end(process)] if process.exitcode else []
                continue
            if isinstance(message, int):
                done += message
                if progress is not None:
                    progress(done, total)
            elif isinstance(message, ConfigurationError):
                refused.append(message)
            else:
                ends.append(str(message))
    if refused:
        raise refused[0]
    if ends:
        raise WorkerError(f"{'; '.join(ends)}. What was made is kept; the same command goes on from there")


def _work(
    folder: RunFolder,
    plan: Plan,
    batches: Sequence[Batch],
    worker: str,
    device: str | None,
    sending: Connection,
) -> None:
    """What one process does; it tells of every batch, and of what stopped it."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is the parent's to handle, which then ends its children
    told = 0

    def progress(done: int, _: int) -> None:
        nonlocal told
        sending.send(done - told)
        told = done

    try:
        require_same_place(plan)
        make_here(folder, plan, batches, worker, device, progress)
    except ConfigurationError as problem:
        sending.send(problem)
    except BrokenPipeError:
        return  # the parent was killed, and whoever starts the run again starts other workers
    except OSError as problem:
        sending.send(f"worker {worker}: {problem}")


def _end(process: Any) -> str:
    code = process.exitcode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"worker {process.name} {how}"
