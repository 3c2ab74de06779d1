"""The static manifest: what a plugin contributes, told without importing it.

A file ``sld-plugin.yaml`` in the folder of the plugin's top-level package:

    api: 1
    contributes:
      concept pack: [heights]
      window: [second-half]
    packs: [heights.yaml]

``packs`` are concept packs that are read as data. A plugin that contributes nothing else runs no code at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from sldcore.contributions import KINDS, ConceptProvider
from sldcore.documents import Strict, describe_invalid, read_mapping, refuse_unknown_keys
from sldcore.errors import PluginError, listed
from sldcore.plugins.records import describe
from sldcore.policy_parts import NAME

FILE_NAME: Final = "sld-plugin.yaml"
_KINDS: Final = {kind.kind: kind for kind in KINDS}

Name = Annotated[str, StringConstraints(pattern=NAME)]


class Manifest(Strict):
    """What a plugin says that it contributes, by kind, in which version of the contract, and which packs are data."""

    api: int = Field(strict=True)
    contributes: Mapping[str, tuple[Name, ...]] = Field(min_length=1)
    packs: tuple[str, ...] = ()

    @field_validator("contributes")
    @classmethod
    def _known_kinds(cls, given: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        refuse_unknown_keys(given, _KINDS, "kind")
        for kind, names in given.items():
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{kind}: given twice: {listed(twice)}")
        return {kind: tuple(sorted(given[kind])) for kind in _KINDS if given.get(kind)}

    @field_validator("packs")
    @classmethod
    def _inside(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for file in given:
            path = PurePosixPath(file)
            if path.is_absolute() or ".." in path.parts or "\\" in file or ":" in file:
                raise ValueError(f"'{file}' must lie in the plugin's own folder, without '..'")
            if path.suffix not in (".yaml", ".yml"):
                raise ValueError(f"'{file}' is not a .yaml file")
        return given

    @model_validator(mode="after")
    def _packs_are_named(self) -> Self:
        if len(self.packs) > len(self.contributes.get(ConceptProvider.kind, ())):
            raise ValueError(f"name each of the packs {listed(self.packs)} under contributes, concept pack")
        return self

    @property
    def data_only(self) -> bool:
        """Whether the packs are all that it contributes: then its module is never imported."""
        return set(self.contributes) == {ConceptProvider.kind} and len(self.packs) == len(
            self.contributes[ConceptProvider.kind]
        )


def manifest_folder(module: str) -> Path | None:
    """The folder of the top-level package of ``module`` if it holds a manifest. Imports nothing."""
    try:
        spec = find_spec(module.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return None  # loading it will say what is wrong
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    return next((Path(folder) for folder in folders if (Path(folder) / FILE_NAME).is_file()), None)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in ``folder``.

    Raises:
        PluginError: it cannot be read, or says something that makes no sense.
    """
    content = read_mapping(folder / FILE_NAME, error=PluginError)
    try:
        return Manifest.model_validate(content)
    except ValidationError as invalid:
        raise PluginError(describe_invalid(str(folder / FILE_NAME), invalid)) from None


def data_packs(folder: Path, manifest: Manifest) -> list[ConceptProvider]:
    """The concept packs that a manifest lists as files, read and checked.

    Raises:
        PluginError: a file lies elsewhere, or is no concept pack.
    """
    return [_data_pack(folder, file) for file in manifest.packs]


def _data_pack(folder: Path, file: str) -> ConceptProvider:
    from sldcore.concepts import load_pack

    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise PluginError(f"pack '{file}' is a link to outside of the plugin's folder {folder}")
    try:
        pack = load_pack(path)
    except Exception as problem:  # whatever is in the file, only this plugin is broken
        raise PluginError(f"pack '{file}': {describe(problem)}") from None
    return ConceptProvider(name=pack.id, description=pack.title, load=lambda: pack)
