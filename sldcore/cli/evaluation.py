"""``sld eval``: what a policy does on a benchmark, measured; each stage goes on where it stopped."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from sldcore.cli.evaluation_options import (
    Against,
    Clip,
    Detectors,
    Device,
    Inception,
    Lpips,
    LpipsNetwork,
    References,
    Retry,
    Run,
    check_against,
    columns_of,
    detectors_of,
)
from sldcore.cli.evaluation_output import clean_exit, comparisons, outlook_table, progress, say
from sldcore.cli.output import Json, print_json
from sldcore.errors import ConfigurationError

if TYPE_CHECKING:
    from sldcore.evaluation.run_folder import Evaluation

REPORT: Final = "report"
"""The folder of the report, in the run's."""

app = typer.Typer(no_args_is_help=True, help="Measure what policies do on benchmarks.")


@app.command("run")
def run_command(
    benchmarks: Annotated[
        list[str],
        typer.Argument(metavar="BENCHMARK...", help="playground/roles, i2p, ..., or a task file (.yaml)."),
    ],
    policies: Annotated[
        list[str],
        typer.Option(help="Presets, policy files and 'negative', with commas between. Repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that was stopped goes on there.")],
    model: Annotated[
        str, typer.Option(help="'playground', a diffusers folder, a .safetensors checkpoint, or a hub id.")
    ] = "playground",
    detectors: Detectors = None,
    data: Annotated[
        Path | None, typer.Option(help="CSV, TSV, JSONL or Parquet file of a benchmark that is not bundled.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT=NAME", help="Which column holds prompt, seed, ... Repeatable."),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Clean up prompts as OpenAI's tokenizer does.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Pictures per item.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="For items that bring none.", show_default="the pipeline's; playground 4"),
    ] = None,
    fixed_guidance: Annotated[
        bool, typer.Option("--fixed-guidance", help="The run's guidance scale for all items.")
    ] = False,
    negative_prompt: Annotated[
        str | None, typer.Option(help="For the method 'negative'.", show_default="the default concept's text")
    ] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Pixels, for items that bring none.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Pixels, for items that bring none.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures of a call.", show_default="8; playground 30")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="the best there is")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16.", show_default="fits the device")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine, one per device.")] = 1,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Make part I of N only, such as 1/4.")
    ] = None,
    ray: Annotated[int, typer.Option(min=0, help="Actors on a Ray cluster, each with a pipeline.")] = 0,
    ray_address: Annotated[
        str | None, typer.Option(help="Address of the cluster.", show_default="one on this machine")
    ] = None,
    lpips: Lpips = None,
    lpips_network: LpipsNetwork = "vgg",
    clip: Clip = None,
    inception: Inception = None,
    references: References = None,
    against: Against = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is to be done and what it costs; write nothing.")
    ] = False,
    retry_errors: Retry = False,
) -> None:
    """Generate, score and report, from wherever the folder has got to.

    Under torchrun each process makes its part. Parts and shards that
    are not the last to finish leave the report to `sld eval report`.

    Exit codes: 0 done; 1 a failure while running; 2 bad input; 130
    interrupted. Whatever stops a run, the same command goes on from there.
    """
    from sldcore.evaluation import Networks, running
    from sldcore.evaluation.outlook import outlook
    from sldcore.evaluation.run_folder import RunFolder
    from sldcore.evaluation.workers import Share, device_for

    messages = Console(stderr=True)
    with clean_exit(messages, out):
        spread = running.Spread(shard, processes, ray, ray_address)
        share = Share.of(shard)
        spread.check(share)
        check_against(against)
        plan = running.plan_of(
            benchmarks, policies, model=model, data=data, columns=columns_of(column), normalise=normalise,
            limit=limit, images=images, steps=steps, guidance_scale=guidance_scale,
            own_guidance=not fixed_guidance, width=width, height=height, negative_prompt=negative_prompt,
            batch_size=batch_size, device=device, dtype=dtype,
        )  # fmt: skip
        if share.warning:
            say(messages, "warning", share.warning)
        if dry_run:
            Console().print(outlook_table(plan, outlook(RunFolder(out), plan, share)), highlight=False)
            return
        own = device_for(device, share.local_rank) if share.world > 1 else device
        networks = Networks(lpips, lpips_network, clip, inception, references, own)
        with progress(messages) as told:
            evaluation = running.run_plan(
                plan, out, detectors_of(detectors), spread, told, retry_errors, device, networks
            )
        _conclude(evaluation, messages, against)


@app.command("score")
def score_command(
    run: Run,
    detectors: Annotated[
        list[str] | None, typer.Option("--detectors", help="Conventions or filters, with commas between.")
    ] = None,
    lpips: Lpips = None,
    lpips_network: LpipsNetwork = "vgg",
    clip: Clip = None,
    inception: Inception = None,
    references: References = None,
    device: Device = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Score part I of N only, such as 1/4.")
    ] = None,
    retry_errors: Retry = False,
) -> None:
    """Score the pictures of a run with further detectors and networks; what is there already is left alone."""
    from sldcore.evaluation import Networks, measure
    from sldcore.evaluation.run_folder import RunFolder
    from sldcore.evaluation.scoring import detectors_named, score_samples
    from sldcore.evaluation.workers import Share

    messages, folder, share = Console(stderr=True), RunFolder(run), Share.of(shard)
    networks = Networks(lpips, lpips_network, clip, inception, references, device)
    if not detectors and not networks:
        raise ConfigurationError(
            "say what to score with: --detectors NAME, --lpips FILE, --clip FOLDER or --inception FILE"
        )
    with clean_exit(messages, run):
        folder.describe()
        found = detectors_named(detectors or [])
        with progress(messages) as told:
            if networks:
                measure(run, networks, shard, told, retry_errors)
            for detector in found:
                stage = f"scoring with {detector.name}"
                part = share.part(folder.samples())
                score_samples(folder, detector, part, share.worker, retry_errors, partial(told, stage))


@app.command("report")
def report_command(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report.", show_default="RUN/report")
    ] = None,
    lpips: Lpips = None,
    lpips_network: LpipsNetwork = "vgg",
    clip: Clip = None,
    inception: Inception = None,
    references: References = None,
    device: Device = None,
    against: Against = None,
) -> None:
    """Print the tables of a run, and write report.html, report.md, report.tex and samples.csv.

    What networks are asked for is measured first, as far as `sld eval
    score` has not done it.
    """
    from sldcore.evaluation import Networks, measure
    from sldcore.evaluation.run_folder import RunFolder

    messages = Console(stderr=True)
    networks = Networks(lpips, lpips_network, clip, inception, references, device)
    with clean_exit(messages, run):
        check_against(against)
        if networks:
            with progress(messages) as told:
                measure(run, networks, progress=told)
        _report(RunFolder(run).evaluation(), out or run / REPORT, against)


@app.command("compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    baseline: Annotated[
        str, typer.Option(help="With one run, the method that the others are compared with.")
    ] = "off",
    as_json: Json = False,
) -> None:
    """Compare runs picture by picture: each method of the first with the same of the others.

    With one run, its methods with the baseline. P-values are McNemar's,
    corrected for the number of comparisons (Holm).
    """
    from sldcore.evaluation.comparing import compare
    from sldcore.evaluation.run_folder import RunFolder

    found = compare([RunFolder(run).evaluation() for run in runs], baseline)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    Console().print(comparisons(found))
    for differing in dict.fromkeys(each.differing for each in found if each.differing):
        say(
            Console(stderr=True),
            "warning",
            f"the runs differ in more than their policies: {', '.join(differing)}",
        )


@app.command("merge")
def merge_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the whole run.")],
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders with parts of it.")],
) -> None:
    """Join shards that were made on machines which share no disk; pictures are copied."""
    from sldcore.evaluation.merging import merge

    messages = Console(stderr=True)
    with clean_exit(messages, out):
        evaluation = merge(out, runs).evaluation()
        messages.print(
            f"{len(evaluation.samples)} of {evaluation.expected} samples in {out}", highlight=False
        )


def _conclude(evaluation: Evaluation, messages: Console, against: str | None) -> None:
    if evaluation.missing > 0:
        text = f"{evaluation.missing} of {evaluation.expected} samples are still to be made, by other shards or processes"
        messages.print(
            f"{text}; `sld eval report {evaluation.folder}` when they are there",
            highlight=False,
            soft_wrap=True,
        )
    elif not (evaluation.scores or evaluation.measurements or evaluation.distances):
        messages.print(
            f"all pictures are there; `sld eval score {evaluation.folder} --detectors NAME` scores them",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    elif evaluation.unscored:
        messages.print(
            f"{evaluation.unscored} scores are still to be given, by other shards or processes or by `sld eval score`; "
            f"`sld eval report {evaluation.folder}` when they are there",
            highlight=False,
            soft_wrap=True,
        )
    else:
        _report(evaluation, evaluation.folder / REPORT, against)


def _report(evaluation: Evaluation, out: Path, against: str | None) -> None:
    from sldcore.evaluation import report

    report(evaluation, out, against).show(Console())
    Console().print(f"in {escape(str(out))}", highlight=False, soft_wrap=True)
