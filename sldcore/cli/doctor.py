"""``sld doctor``: what is installed, what it runs on, which models are usable, and what to install."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Final

import typer

from sldcore import __version__

REQUIRED: Final = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "pydantic")
OPTIONAL: Final = {
    "accelerate": ("offloading and fast loading of large models", "pip install accelerate"),
    "peft": ("LoRA weights", "pip install 'sldcore[lora]'"),
    "scipy": ("the LMS scheduler", "pip install scipy"),
    "gguf": ("weights in GGUF files", "pip install 'sldcore[gguf]'"),
    "matplotlib": ("the plots of `sld generate --compare`", "pip install matplotlib"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """An optional package: its version if installed, what it is for, and how to get it."""

    name: str
    version: str | None
    purpose: str
    install: str


@dataclass(frozen=True, slots=True)
class Device:
    """Something that a model can run on; memory in GiB where it can be told."""

    name: str
    description: str
    memory_gib: float | None
    free_gib: float | None


@dataclass(frozen=True, slots=True)
class Model:
    """A model on this machine, and why it cannot be used if so."""

    name: str
    usable: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that ``sld doctor`` reports."""

    sldcore: str
    python: str
    system: str
    versions: dict[str, str | None]
    optional: tuple[Part, ...]
    devices: tuple[Device, ...]
    models: tuple[Model, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The commands that install what is missing."""
        required = [name for name, found in self.versions.items() if found is None]
        commands = [f"pip install {' '.join(required)}"] if required else []
        return (*commands, *(part.install for part in self.optional if part.version is None))


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report versions, devices, usable models, and what to install.

    Exit code 1 if a required package is missing or the playground model cannot be used.
    """
    findings = examine()
    if as_json:
        typer.echo(json.dumps({**asdict(findings), "missing": findings.missing}, indent=2))
    else:
        _print(findings)
    if None in findings.versions.values() or not all(model.usable for model in findings.models[:1]):
        raise typer.Exit(1)


def examine() -> Findings:
    """Look at this machine. Imports torch if it is there, and loads the playground model."""
    versions = {name: _installed(name) for name in REQUIRED}
    complete = None not in versions.values()
    return Findings(
        sldcore=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        versions=versions,
        optional=tuple(Part(name, _installed(name), *about) for name, about in OPTIONAL.items()),
        devices=_devices() if versions["torch"] is not None else (),
        models=(_playground(complete), *(_cached_models() if complete else ())),
    )


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> tuple[Device, ...]:
    import torch

    total, free = _host_memory()
    devices = [
        Device(
            "cpu",
            f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
            total,
            free,
        )
    ]
    for index in range(torch.cuda.device_count()):
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        devices.append(Device(f"cuda:{index}", name, _gib(total_bytes), _gib(free_bytes)))
    if torch.backends.mps.is_available():
        devices.append(Device("mps", "Apple GPU, memory shared with the CPU", total, free))
    return tuple(devices)


def _host_memory() -> tuple[float | None, float | None]:
    if not hasattr(os, "sysconf"):
        return None, None
    pages = {
        name: os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES") if name in os.sysconf_names
    }
    size = os.sysconf("SC_PAGE_SIZE")
    total, free = (pages.get(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    return (_gib(total * size) if total else None), (_gib(free * size) if free else None)


def _gib(size: int) -> float:
    return round(size / 2**30, 1)


def _playground(complete: bool) -> Model:
    """Load the embedded model: only that shows that it can be used."""
    if not complete:
        return Model("playground", False, "required packages are missing")
    from sldcore.loading import load_pipeline

    try:
        pipe = load_pipeline("playground", device="cpu")
    except Exception as problem:  # whatever it is, reporting it is this command's purpose
        return Model("playground", False, f"{type(problem).__name__}: {problem}")
    return Model("playground", True, f"{type(pipe).__name__}, the embedded toy model")


def _cached_models() -> tuple[Model, ...]:
    """Diffusers pipelines in the Hugging Face cache; nothing is downloaded."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from sldcore.errors import ConfigurationError
    from sldcore.loading.index import INDEX, MODULAR_INDEX, read_index

    try:
        repositories = sorted(scan_cache_dir().repos, key=lambda repository: repository.repo_id)
    except CacheNotFound:
        return ()
    found = []
    for repository in repositories:
        if repository.repo_type != "model":
            continue
        folders = [
            file.file_path.parent
            for revision in repository.revisions
            for file in revision.files
            if file.file_name in (INDEX, MODULAR_INDEX)
        ]
        if not folders:
            continue
        try:
            index = read_index(folders[0])
            index.check()
        except ConfigurationError as problem:
            detail = str(problem).partition(". Supported classes")[0]
            found.append(Model(repository.repo_id, False, detail))
        else:
            detail = f"{index.class_name}, in the Hugging Face cache"
            found.append(Model(repository.repo_id, True, detail))
    return tuple(found)


def _print(findings: Findings) -> None:
    echo = typer.echo
    echo(f"sldcore {findings.sldcore}, Python {findings.python} ({sys.executable}), {findings.system}")
    echo("\npackages")
    for name, found in findings.versions.items():
        echo(f"  {name:<14}{found or 'MISSING'}")
    echo("\noptional parts")
    for part in findings.optional:
        echo(f"  {part.name:<14}{part.version or 'not installed'} ({part.purpose})")
    echo("\ndevices")
    for device in findings.devices:
        memory = f", {device.memory_gib} GiB" if device.memory_gib is not None else ""
        memory += f", {device.free_gib} GiB free" if device.free_gib is not None else ""
        echo(f"  {device.name:<14}{device.description}{memory}")
    echo("\nmodels")
    for model in findings.models:
        echo(f"  {model.name:<14}{'usable' if model.usable else 'NOT USABLE'}: {model.detail}")
    if findings.missing:
        echo("\nto install what is missing")
        for command in findings.missing:
            echo(f"  {command}")
