from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from sldcore.concepts import ConceptPack, load_pack
from sldcore.documents import to_yaml
from sldcore.embeddings import SIZE_LIMIT, PackEmbedding, read_embedding
from sldcore.errors import ConceptError

REFERENCE = {"file": "e.safetensors", "kind": "tokens", "family": "stable-diffusion", "width": 4}


def write_pack(folder: Path, **changes: object) -> Path:
    """A pack in ``folder`` with one concept, whose embedding is ``REFERENCE`` with changes."""
    folder.mkdir(exist_ok=True)
    path = folder / "mine.yaml"
    concept = {"id": "smoke", "text": "smoke", "embedding": {**REFERENCE, **changes}}
    path.write_text(
        to_yaml({"id": "mine", "version": "1", "title": "Mine", "licence": "MIT", "concepts": [concept]})
    )
    return path


def write_tensors(folder: Path, name: str = "e.safetensors", **tensors: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors or {"smoke": torch.arange(8.0).reshape(2, 4)}, folder / name)
    return folder / name


def test_an_embedding_lies_beside_its_pack_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_tensors(tmp_path, smoke=torch.arange(8.0).reshape(2, 4))
    embedding = load_pack(write_pack(tmp_path)).concept("smoke").embedding
    assert embedding is not None
    assert (embedding.kind, embedding.family, embedding.width) == ("tokens", "stable-diffusion", 4)
    assert read_embedding(embedding)["smoke"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_an_embedding_may_lie_in_a_folder_below(tmp_path: Path) -> None:
    write_tensors(tmp_path / "vectors")
    assert load_pack(write_pack(tmp_path, file="vectors/e.safetensors")).concept("smoke").embedding


@pytest.mark.parametrize(
    "file",
    [
        "../e.safetensors",
        "a/../../e.safetensors",
        "/e.safetensors",
        "..\\e.safetensors",
        "C:e.safetensors",
        "C:\\e.safetensors",
        "//host/share/e.safetensors",
    ],
)
def test_a_path_out_of_the_pack_s_folder_is_refused(tmp_path: Path, file: str) -> None:
    write_tensors(tmp_path)
    with pytest.raises(
        ConceptError, match=r"concepts\.0\.embedding: .*must be a path inside the pack's folder"
    ):
        load_pack(write_pack(tmp_path / "pack", file=file))


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
@pytest.mark.parametrize("through_a_folder", [True, False])
def test_a_link_out_of_the_pack_s_folder_is_refused(tmp_path: Path, through_a_folder: bool) -> None:
    outside = write_tensors(tmp_path / "outside")
    pack = write_pack(tmp_path / "pack", file="in/e.safetensors" if through_a_folder else "e.safetensors")
    if through_a_folder:
        (tmp_path / "pack" / "in").symlink_to(outside.parent)
    else:
        (tmp_path / "pack" / "e.safetensors").symlink_to(outside)
    with pytest.raises(ConceptError, match="is a link out of the pack's folder"):
        load_pack(pack)


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_to_itself_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "e.safetensors").symlink_to("e.safetensors")
    with pytest.raises(ConceptError, match=r"e\.safetensors"):
        load_pack(write_pack(tmp_path))


@pytest.mark.parametrize("file", ["e.pt", "e.bin", "E.CKPT", "e.pkl", "e.pth"])
def test_a_pickle_is_refused_with_the_reason_and_never_read(tmp_path: Path, file: str) -> None:
    with pytest.raises(ConceptError, match="is a pickle, which can run code when it is read; convert it"):
        load_pack(write_pack(tmp_path, file=file))


def test_a_pickle_under_another_name_is_not_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    (tmp_path / "e.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ConceptError, match="is not a safetensors file"):
        load_pack(write_pack(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match=r"there is no file 'e\.safetensors'; it must lie beside the pack"):
        load_pack(write_pack(tmp_path))


def test_a_name_with_a_nul_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConceptError, match="e\x00"):
        load_pack(write_pack(tmp_path, file="e\0.safetensors"))


def test_a_file_of_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "e.safetensors").open("wb") as file:
        file.truncate(SIZE_LIMIT + 1)
    with pytest.raises(ConceptError, match="larger than the 33,554,432 bytes"):
        load_pack(write_pack(tmp_path))


@pytest.mark.parametrize(
    ("changes", "tensors", "complaint"),
    [
        ({}, {"a": torch.ones(2, 5)}, "holds vectors of width 5, and the pack says width 4"),
        ({}, {"a": torch.ones(5)}, "holds vectors of width 5"),
        ({}, {"a": torch.ones(2, 4), "b": torch.ones(2, 4)}, r"one tensor of tokens .*found: a \[2, 4\], b"),
        ({}, {"a": torch.ones(1, 2, 4)}, r"one tensor of tokens \[n, width\].*found: a \[1, 2, 4\]"),
        ({}, {"a": torch.ones(0, 4)}, r"found: a \[0, 4\]"),
        (
            {},
            {"a": torch.ones(2, 4, dtype=torch.int32)},
            "'a' of 'e.safetensors' is I32; save it as one of BF16, F16",
        ),
        ({"kind": "hidden-states"}, {"a": torch.ones(4)}, r"hidden states \[L, width\]"),
        ({"kind": "hidden-states"}, {"a": torch.ones(3, 4), "b": torch.ones(3, 5)}, "vectors of width 5"),
        ({"width": 0}, {}, r"\.width: "),
        ({"width": "4"}, {}, r"\.width: "),
        ({"kind": "pooled"}, {}, r"\.kind: "),
        ({"file": "e.txt"}, {}, r"must be a \.safetensors file"),
        ({"famly": "sdxl"}, {}, r"unknown key 'famly'; did you mean 'family'"),
    ],
)
def test_an_embedding_that_is_not_what_the_pack_says_is_refused(
    tmp_path: Path, changes: dict[str, object], tensors: Mapping[str, torch.Tensor], complaint: str
) -> None:
    write_tensors(tmp_path, **tensors)
    with pytest.raises(ConceptError, match=rf"concepts\.0\.embedding.*?{complaint}"):
        load_pack(write_pack(tmp_path, **changes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_found_in_every_type(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    write_tensors(tmp_path, smoke=torch.tensor([[0, 1, 2, value]], dtype=dtype))
    with pytest.raises(ConceptError, match=r"'smoke' of 'e\.safetensors' holds NaN or Inf"):
        load_pack(write_pack(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_and_smallest_numbers_of_every_type_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    values = torch.tensor([[limits.max, limits.min, limits.tiny, -0.0]], dtype=dtype)
    write_tensors(tmp_path, smoke=values)
    embedding = load_pack(write_pack(tmp_path)).concept("smoke").embedding
    assert embedding is not None
    assert torch.equal(read_embedding(embedding)["smoke"], values)


def test_a_file_that_was_changed_after_its_pack_was_read_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path)
    embedding = load_pack(write_pack(tmp_path)).concept("smoke").embedding
    assert embedding is not None
    write_tensors(tmp_path, smoke=torch.zeros(2, 4))
    with pytest.raises(ConceptError, match=r"e\.safetensors has changed since its pack was read"):
        read_embedding(embedding)


def test_the_same_vectors_in_two_folders_are_the_same_embedding(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        write_tensors(tmp_path / name)
        found.append(load_pack(write_pack(tmp_path / name)).concept("smoke").embedding)
    assert found[0] == found[1]
    assert len(set(found)) == 1


def test_a_pack_that_no_file_holds_says_that_it_must_be_read_from_one() -> None:
    concept = {"id": "smoke", "text": "smoke", "embedding": REFERENCE}
    pack = ConceptPack.model_validate(
        {"id": "mine", "version": "1", "title": "Mine", "licence": "MIT", "concepts": [concept]}
    )
    assert ConceptPack.parse(pack.dump()) == pack
    with pytest.raises(ConceptError, match=r"the pack's folder is not known; read the pack from its file"):
        pack.concept("smoke")


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_file_name_is_a_path_inside_or_one_clear_error(name: str) -> None:
    folder = Path(__file__).parent
    reference = {**REFERENCE, "file": f"{name}.safetensors"}
    try:
        PackEmbedding.model_validate(reference)
    except ValueError as refused:
        assert "must be a" in str(refused)
    else:
        assert ".." not in Path(name).parts
        assert (folder / f"{name}.safetensors").is_relative_to(folder)
    with pytest.raises(ValueError, match="safetensors"):  # no such file
        PackEmbedding.model_validate(reference, context={"folder": folder})


@given(cut=st.integers(0, 200), junk=st.binary(max_size=16))
def test_any_damaged_file_is_one_clear_error_or_what_the_pack_says(
    cut: int, junk: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    content = save({"smoke": torch.arange(8.0).reshape(2, 4)})
    (folder / "e.safetensors").write_bytes(content[:cut] + junk + content[cut + len(junk) :])
    try:
        PackEmbedding.model_validate(REFERENCE, context={"folder": folder})
    except ValueError as refused:
        assert "e.safetensors" in str(refused)


def test_a_header_that_promises_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(ConceptError, match="is not a safetensors file"):
        load_pack(write_pack(tmp_path))
