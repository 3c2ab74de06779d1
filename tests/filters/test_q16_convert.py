"""Converting the original Q16 prompts without executing them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from sldcore.errors import ModelError
from sldcore.filters import q16_convert
from sldcore.filters.q16_convert import convert, read_array

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PROMPTS = np.random.default_rng(0).normal(size=(2, 768)).astype(np.float16)


class Touch:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def written(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_protocol_and_float_type_are_read(
    tmp_path: Path, protocol: int, kind: str, order: Any
) -> None:
    array = np.asarray(PROMPTS.astype(kind), order=order)
    target = tmp_path / "q16.safetensors"
    assert convert(written(tmp_path / "prompts.p", array, protocol), target) == (2, 768)
    tensors = load_file(target)
    assert list(tensors) == ["prompts"]
    np.testing.assert_array_equal(tensors["prompts"], PROMPTS.astype(np.float32))


def test_arrays_of_older_numpy_are_read(tmp_path: Path) -> None:
    """In 2022 it called its modules otherwise."""
    content = pickle.dumps(PROMPTS, 3)
    assert b"numpy._core" in content
    (tmp_path / "prompts.p").write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    np.testing.assert_array_equal(read_array(tmp_path / "prompts.p"), PROMPTS.astype(np.float32))


def test_the_command_of_the_docstring_works(tmp_path: Path) -> None:
    written(tmp_path / "prompts.p", PROMPTS)
    (line,) = (line for line in (q16_convert.__doc__ or "").splitlines() if "python -c" in line)
    code = line.split('"')[1]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert load_file(tmp_path / "q16.safetensors")["prompts"].shape == (2, 768)


def test_no_class_is_looked_up_and_torch_is_not_loaded(tmp_path: Path) -> None:
    written(tmp_path / "prompts.p", PROMPTS)
    code = (
        "import sys\n"
        "from sldcore.filters.q16_convert import convert\n"
        "sys.addaudithook(lambda event, _: sys.exit('looked up') if event == 'pickle.find_class' else None)\n"
        "convert('prompts.p', 'q16.safetensors')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "wrap", [lambda it: it, lambda it: [it], lambda it: (PROMPTS, it), lambda it: np.array([it])]
)
def test_what_a_pickle_asks_to_run_is_not_run(tmp_path: Path, protocol: int, wrap: Any) -> None:
    ran = tmp_path / "ran"
    path = written(tmp_path / "prompts.p", wrap(Touch(ran)), protocol)
    with pytest.raises(ModelError, match="Nothing in it was executed"):
        convert(path, tmp_path / "q16.safetensors")
    assert not ran.exists()
    assert not (tmp_path / "q16.safetensors").exists()


@pytest.mark.parametrize(
    "value",
    [
        [0.1, 0.2],
        {"prompts": PROMPTS},
        (PROMPTS, PROMPTS),
        "prompts",
        1.5,
        None,
        np.float32(1),
        np.arange(8).reshape(2, 4),
        np.array(["a", "b"]),
        np.array([None, None]),
        np.zeros((2, 4), np.complex64),
        np.zeros(2, [("a", "<f4")]),
        np.ma.masked_array(PROMPTS, mask=PROMPTS > 0),
        Path("prompts"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_anything_but_an_array_of_floats_is_refused(tmp_path: Path, value: object, protocol: int) -> None:
    with pytest.raises(ModelError, match="is not a pickled array of floats"):
        read_array(written(tmp_path / "prompts.p", value, protocol))


@pytest.mark.parametrize(
    "program",
    [
        b"cbuiltins\neval\n(S'1/0'\ntR.",
        b"cnumpy\nndarray\n)R.",
        b"cnumpy\nndarray\n.",
        b"cnumpy\ndtype\n(S'f4'\ntR.",
        b"c_codecs\nencode\n(S'a'\nS'rot13'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntRI5\nb.",
        b"Np4294967295\n.",
        b"N.trailing",
        b"",
        b".",
    ],
)
def test_programs_that_misuse_what_arrays_need_are_refused(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "prompts.p").write_bytes(program)
    with pytest.raises(ModelError, match="is not a pickled array of floats"):
        read_array(tmp_path / "prompts.p")


@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_a_damaged_file_gives_an_array_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, patch: bytes
) -> None:
    content = bytearray(pickle.dumps(PROMPTS[:, :4], 2))
    content[place : place + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "damaged.p"
    path.write_bytes(content)
    with suppress(ModelError):
        assert read_array(path).dtype == np.float32


@pytest.mark.parametrize("shape", [(768,), (3, 768), (2, 0), (1, 2, 768)])
def test_anything_but_two_prompts_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = written(tmp_path / "prompts.p", np.zeros(shape, np.float32))
    with pytest.raises(ModelError, match="Q16 has two prompts"):
        convert(path, tmp_path / "q16.safetensors")


def test_prompts_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "prompts.p", np.full((2, 4), np.inf))
    with pytest.raises(ModelError, match="not finite"):
        convert(path, tmp_path / "q16.safetensors")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "prompts.p", np.zeros((2, 1 << 17)))
    with pytest.raises(ModelError, match="more than 1,048,576 bytes"):
        read_array(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*prompts.p: No such file"):
        read_array(tmp_path / "prompts.p")


def test_a_target_that_says_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must end in .safetensors"):
        convert(written(tmp_path / "prompts.p", PROMPTS), tmp_path / "q16.p")
