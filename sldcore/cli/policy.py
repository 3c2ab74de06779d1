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
from sldcore.strictness import weaker_where

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
    """Print a policy, its digest, and the texts of the concepts that guide it and that its gate looks for.

    The output is itself a policy file: `sld policy show medium > mine.yaml` is a start for your own.
    """
    found = find_policy(policy)
    check_policies([found])
    with using(catalogue_for([found])):
        concepts, probed = resolve(found.concepts), resolve(found.probed)
    if as_json:
        content = {
            "policy": found.model_dump(mode="json"),
            "digest": found.digest,
            "concepts": [_described(each) for each in concepts],
            "probed": [_described(each) for each in probed],
        }
        print_json(content)
        return
    typer.echo(found.dump(), nl=False)
    typer.echo(f"# digest: {found.digest}")
    for each in concepts:
        factors = {"weight": each.concept.weight, "strength": each.concept.strength}
        named = ", ".join(f"{name} {value:g}" for name, value in factors.items() if value != 1)
        typer.echo(f"# {each.concept.id}{f' ({named})' if named else ''}: {each.concept.text}")
    for each in probed:
        typer.echo(f"# looked for by the gate: {each.concept.id}: {each.concept.text}")
    if found.guidance is not None and found.guidance.gate is not None and not probed:
        typer.echo("# looked for by the gate: the same concepts")


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
def compare(
    policy: Annotated[str, typer.Argument(metavar="NAME_OR_FILE", help="A preset or a YAML file.")],
    floor: Annotated[str, typer.Argument(metavar="FLOOR", help="What it must be at least as strict as.")],
    as_json: Json = False,
) -> None:
    """Say whether a policy is at least as strict as another, and in what it is not.

    Exit code 0 if it is, 1 if it is weaker in something or cannot be compared.
    """
    own, other = find_policy(policy), find_policy(floor)
    check_policies([own, other])
    reasons = weaker_where(own, other)
    if as_json:
        print_json({"at_least_as_strict": not reasons, "weaker": list(reasons)})
    else:
        verdict = "weaker than" if reasons else "at least as strict as"
        typer.echo(f"'{own.name}' is {verdict} '{other.name}'")
        for reason in reasons:
            typer.echo(f"- {reason}")
    raise typer.Exit(1 if reasons else 0)


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
