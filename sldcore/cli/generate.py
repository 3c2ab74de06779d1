"""``sld generate``: pictures under a policy, each with an account of what happened to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from rich.console import Console
from rich.markup import escape

from sldcore.cli.generation_account import file_of, table, why_guided, why_withheld
from sldcore.cli.generation_request import (
    DEFAULT_FPS,
    PLAYGROUND,
    Request,
    check_guidance,
    check_place,
    pipeline_arguments,
    plan_pictures,
    read_policies,
)
from sldcore.cli.generation_run import RESULT_FILE, Progressing, generate_pictures, take_stock
from sldcore.policy import Preset

ALL_WITHHELD: Final = 3
INTERRUPTED: Final = 130


def generate(
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT...", help="What to show; quote each prompt.")
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Preset ({', '.join(Preset)}) or YAML file; one for all prompts, or one per prompt.",
            show_default="medium",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="'playground' (the embedded toy), a diffusers folder, a .safetensors checkpoint, or a hub id."
        ),
    ] = PLAYGROUND,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of each prompt's first picture; further ones count up.")
    ] = 0,
    num_images: Annotated[int, typer.Option(min=1, help="Pictures per prompt.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="Strength of classifier-free guidance, whatever the pipeline calls it (true_cfg_scale).",
            show_default="the pipeline's; playground 4",
        ),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What plain guidance steers away from.")] = None,
    width: Annotated[
        int | None, typer.Option(min=8, help="Pixels, a multiple of 8.", show_default="the model's")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=8, help="Pixels, a multiple of 8.", show_default="the model's")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of a video.", show_default="the pipeline's")
    ] = None,
    fps: Annotated[
        int, typer.Option(min=1, max=120, help="Frames per second in the file of a video.")
    ] = DEFAULT_FPS,
    out: Annotated[Path, typer.Option(help="Folder for pictures and result.json.")] = Path("out"),
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also unguided pictures of the same seeds: a comparison strip and curves for each.",
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that are denoised together.")] = 4,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="the best there is")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Number format.", show_default="fits the device"),
    ] = None,
    offload: Annotated[
        Literal["none", "model", "sequential", "group"],
        typer.Option(
            help="What diffusers keeps in the CPU's memory until it is needed: slower, less GPU memory."
        ),
    ] = "none",
    vae_slicing: Annotated[
        bool, typer.Option("--vae-slicing", help="Decode the pictures of a batch one by one.")
    ] = False,
    vae_tiling: Annotated[bool, typer.Option("--vae-tiling", help="Decode large pictures in tiles.")] = False,
    transformer: Annotated[
        Path | None,
        typer.Option(
            help="The denoiser's weights in one file, .gguf or .safetensors, instead of the model's."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="For a checkpoint in one file: a diffusers folder with its configs and tokenizers."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that the model brings. Read it first."),
    ] = False,
    audit: Annotated[
        Path | None,
        typer.Option(help="Append one line per picture to this log (JSONL, prompts hashed)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Skip pictures that are there already, made from the same request."),
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the result document, and nothing else, to stdout.")
    ] = False,
) -> None:
    """Generate pictures under a safety policy.

    Writes NNNN-SEED.png with metadata, and result.json. Of a video, NNNN-SEED.webp
    and the frame in the middle as the picture. With --compare also
    NNNN-SEED-compare.png: unguided, guided, difference, where guidance acted;
    NNNN-SEED-unguided.png, NNNN-SEED-difference.png: two of these alone;
    NNNN-SEED-curves.png: norm of the safety term and relevance at each step.
    Where a policy has a gate, the output says why guidance acted on a picture,
    and result.json what was seen at each probe.

    Exit codes:
    0 done
    1 a failure while running
    2 bad input, nothing written
    3 every picture was withheld
    130 interrupted: finished pictures stay, --resume goes on
    """
    messages = Console(stderr=True)
    done = Progressing()
    with _clean_exit(messages, done, out):
        arguments = pipeline_arguments(
            model, steps, guidance_scale, negative_prompt, width, height, num_frames
        )
        loading = {
            "offload": offload, "vae_slicing": vae_slicing, "vae_tiling": vae_tiling,
            "transformer": transformer, "config": config, "trust_remote_code": trust_remote_code,
        }  # fmt: skip
        policies = read_policies(policy or [Preset.MEDIUM.value], len(prompts))
        pictures = plan_pictures(prompts, policies, seed, num_images, compare)
        check_place(model, device, out, loading)
        check_guidance(policies, arguments.get("guidance_scale"))
        request = Request(pictures, model, arguments, out, batch_size, device, dtype, audit, loading, fps)
        _adopt(done, take_stock(request, resume=resume, overwrite=overwrite))
        generate_pictures(request, done, messages)
    _report(done, out, messages, json_output)


@contextmanager
def _clean_exit(messages: Console, done: Progressing, out: Path) -> Iterator[None]:
    """One message and an exit code for what ``sld`` itself does not handle: a full disk, Ctrl-C."""
    try:
        yield
    except OSError as problem:
        _say(messages, "error", str(problem))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        kept = (
            f"{len(done.pictures)} finished pictures stay in {out}"
            if done.pictures
            else "no picture was finished"
        )
        _say(messages, "interrupted", f"{kept}; the same command with --resume goes on from here")
        raise typer.Exit(INTERRUPTED) from None


def _say(messages: Console, kind: str, text: str) -> None:
    messages.print(f"[bold red]{kind}:[/] {escape(text)}", highlight=False, soft_wrap=True)


def _adopt(done: Progressing, found: Progressing) -> None:
    done.pictures.update(found.pictures)
    done.provenance.update(found.provenance)


def _report(done: Progressing, out: Path, messages: Console, json_output: bool) -> None:
    from sldcore.provenance import json_text

    document = done.document()
    pictures = document["pictures"]
    if json_output:
        typer.echo(json_text(document, indent=2))
    else:
        console = Console()
        console.print(table(pictures))
        for picture in pictures:
            if reason := why_guided(picture):
                line = f"{file_of(picture)}: guidance {reason}"
                console.print(escape(line), highlight=False, soft_wrap=True)
        console.print(f"in {escape(str(out))}, with {RESULT_FILE}", highlight=False, soft_wrap=True)
    for picture in pictures:
        if picture["withheld"]:
            _say(messages, f"withheld {file_of(picture)}", why_withheld(picture))
    if all(picture["withheld"] for picture in pictures):
        raise typer.Exit(ALL_WITHHELD)
