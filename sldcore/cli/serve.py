"""``sld serve``: the HTTP service. Its flags are the settings of :mod:`sldcore.service.settings`, which are imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sldcore.documents import to_yaml
from sldcore.errors import ConfigurationError, listed

NEEDED: Final = ("fastapi", "prometheus_client", "pydantic_settings", "uvicorn")
"""What the extra ``serve`` brings."""

NOT_SAID: Final = "file, environment, or built in"


def require_extra(extra: str = "serve", packages: Sequence[str] = NEEDED) -> None:
    """Whether packages of an extra are installed.

    Raises:
        ConfigurationError: one is not; the message has the pip command.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"this needs {listed(missing)}, which the extra '{extra}' brings: pip install 'sldcore[{extra}]'"
        )


def _named(given: Sequence[str] | None, flag: str) -> dict[str, str]:
    """``NAME=WHAT`` by name; ``NAME`` alone stands for what is called so."""
    found: dict[str, str] = {}
    for each in given or ():
        name, equals, what = each.partition("=")
        if name in found:
            raise ConfigurationError(f"{flag} names '{name}' twice")
        if not name or (equals and not what):
            raise ConfigurationError(f"{flag} {each!r}: expected NAME=WHAT")
        found[name] = what or name
    return found


def _option(help_text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help_text, metavar=metavar, show_default=NOT_SAID)


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="A YAML file of settings.")
    ] = None,
    host: Annotated[str | None, _option("Address to listen on.")] = None,
    port: Annotated[int | None, _option("Port to listen on; 0 takes a free one.")] = None,
    model: Annotated[
        list[str] | None,
        _option("A model: playground, a folder, a file, or a hub id. Repeatable.", metavar="NAME=SOURCE"),
    ] = None,
    policy: Annotated[
        list[str] | None, _option("A policy: a preset or a file. Repeatable.", metavar="NAME=POLICY")
    ] = None,
    default_policy: Annotated[str | None, _option("Where neither request nor key names one.")] = None,
    floor: Annotated[str | None, _option("The policy that every request is at least as strict as.")] = None,
    keys: Annotated[Path | None, _option("The file of API keys; see `sld keys`.")] = None,
    workers: Annotated[int | None, _option("Worker processes for each device.")] = None,
    ray: Annotated[
        bool | None, _option("Workers are replicas of Ray Serve applications.", "--ray/--no-ray")
    ] = None,
    ray_address: Annotated[
        str | None, _option("Of the Ray cluster to join; Ray is started on this machine without.")
    ] = None,
    docs: Annotated[bool | None, _option("Serve the API's description at /docs.", "--docs/--no-docs")] = None,
    public_url: Annotated[str | None, _option("The service's address as clients see it.")] = None,
    page: Annotated[bool | None, _option("Serve the page at /.", "--page/--no-page")] = None,
    log_prompts: Annotated[
        bool | None, _option("Write prompts into the log.", "--log-prompts/--no-log-prompts")
    ] = None,
    queue: Annotated[int | None, _option("Pictures and reviews that may wait.")] = None,
    key_queue: Annotated[int | None, _option("Pictures and reviews of one key that may wait.")] = None,
    batch: Annotated[int | None, _option("Pictures that are denoised together.")] = None,
    batch_wait: Annotated[
        float | None, _option("Seconds that the first of a batch waits for others.")
    ] = None,
    deadline: Annotated[float | None, _option("Seconds that a request may take.")] = None,
    filter_grace: Annotated[
        float | None, _option("Seconds after which a silent worker counts as hung.")
    ] = None,
    drain: Annotated[float | None, _option("Seconds to finish what was taken at the end.")] = None,
    body_bytes: Annotated[int | None, _option("Largest request body.")] = None,
    prompt_characters: Annotated[int | None, _option("Longest prompt.")] = None,
    pictures: Annotated[int | None, _option("Largest n of a request.")] = None,
    review_inputs: Annotated[int | None, _option("Most texts and pictures of one moderation.")] = None,
    review_pixels: Annotated[int | None, _option("Most pixels of a picture to review.")] = None,
    audit: Annotated[Path | None, _option("The file of the audit.")] = None,
    audit_format: Annotated[str | None, _option("sqlite or jsonl.")] = None,
    audit_secret_file: Annotated[
        Path | None, _option("A secret that salts prompt hashes and keys the chain.")
    ] = None,
    audit_plain_prompts: Annotated[
        bool | None,
        _option("Also record prompts as they are.", "--audit-plain-prompts/--no-audit-plain-prompts"),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings as YAML and stop.")
    ] = False,
) -> None:
    """Serve pictures and reviews under policies over HTTP, in the shapes of OpenAI's API.

    Flags outweigh environment variables (SLD_SERVE_PORT, SLD_SERVE_LIMITS__QUEUE), and these the file; docs/configuration.md
    describes all settings. Policies and models that flags name are added to the file's.
    """
    require_extra()
    from sldcore.service.settings_sources import read_settings

    limits = {
        "queue": queue,
        "key_queue": key_queue,
        "batch": batch,
        "batch_wait": batch_wait,
        "deadline": deadline,
        "filter_grace": filter_grace,
        "drain": drain,
        "body_bytes": body_bytes,
        "prompt_characters": prompt_characters,
        "pictures": pictures,
        "review_inputs": review_inputs,
        "review_pixels": review_pixels,
    }
    record = {
        "path": audit,
        "format": audit_format,
        "secret_file": audit_secret_file,
        "plain_prompts": audit_plain_prompts,
    }
    flags = {
        "host": host,
        "port": port,
        "models": {name: {"source": source} for name, source in _named(model, "--model").items()},
        "policies": _named(policy, "--policy"),
        "default_policy": default_policy,
        "floor": floor,
        "keys": keys,
        "workers": workers,
        "ray": ray,
        "ray_address": ray_address,
        "docs": docs,
        "public_url": public_url,
        "page": page,
        "log_prompts": log_prompts,
        "limits": limits,
        "audit": record,
    }
    settings = read_settings(config, flags)
    if print_config:
        typer.echo(to_yaml(settings.model_dump(mode="json")), nl=False)
        return
    if settings.ray:
        require_extra("ray", ["ray"])
    from sldcore.service.server import serve as run

    run(settings)
