"""``sld policy``: look at policies, check them, and get their schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sldcore.catalogue import using
from sldcore.cli.output import Json, print_json
from sldcore.concepts import UsedConcept, resolve
from sldcore.errors import PolicyError, listed, nearest
from sldcore.policy import Preset, SafetyPolicy
from sldcore.resolution import catalogue_for, check_policies

app = typer.Typer(no_args_is_help=True, help="Show, validate and describe safety policies.")


def find_policy(name_or_path: str) -> SafetyPolicy:
    """A preset by its name, or else a policy file by its path.

    Raises:
        PolicyError: It is neither.
    """
    presets = [preset.value for preset in Preset]
    if name_or_path in presets:
        return SafetyPolicy.preset(name_or_path)
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return SafetyPolicy.load(path)
    raise PolicyError(
        f"'{name_or_path}' is neither a preset nor a file{nearest(name_or_path, presets)} (presets: {listed(presets)}; "
        "a policy file ends in .yaml)"
    )


@app.command()
def show(
    policy: Annotated[str, typer.Argument(metavar="NAME_OR_FILE", help="A preset or a YAML file.")],
    as_json: Json = False,
) -> None:
    """Print a policy, its digest and the concept texts that it resolves to.

    The output is itself a policy file: `sld policy show medium > mine.yaml` is a start for your own.
    """
    found = find_policy(policy)
    check_policies([found])
    with using(catalogue_for([found])):
        concepts = resolve(found.concepts)
    if as_json:
        content = {
            "policy": found.model_dump(mode="json"),
            "digest": found.digest,
            "concepts": [_described(each) for each in concepts],
        }
        print_json(content)
        return
    typer.echo(found.dump(), nl=False)
    typer.echo(f"# digest: {found.digest}")
    for each in concepts:
        factors = {"weight": each.concept.weight, "strength": each.concept.strength}
        named = ", ".join(f"{name} {value:g}" for name, value in factors.items() if value != 1)
        typer.echo(f"# {each.concept.id}{f' ({named})' if named else ''}: {each.concept.text}")


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Policy files.")],
    as_json: Json = False,
) -> None:
    """Check policy files: their form, and that everything they name can be had and takes its options.

    Stops at the first one that is wrong, with exit code 2.
    """
    valid = []
    for file in files:
        policy = SafetyPolicy.load(file)
        check_policies([policy])
        valid.append({"file": str(file), "name": policy.name, "digest": policy.digest})
    if as_json:
        print_json(valid)
        return
    for each in valid:
        typer.echo(f"{each['file']}: valid, policy '{each['name']}', digest {each['digest']}")


@app.command()
def schema() -> None:
    """Print the JSON schema of policy files, for editors."""
    print_json(SafetyPolicy.json_schema())


def _described(used: UsedConcept) -> dict[str, Any]:
    concept = used.concept
    window = None if used.window is None else used.window.model_dump(mode="json")
    return {
        "id": concept.id,
        "text": concept.text,
        "weight": concept.weight,
        "strength": concept.strength,
        "window": window,
    }
