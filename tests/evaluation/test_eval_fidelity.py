"""FID and KID: closed forms and brute force on arrays; the extractor with random weights where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg

from sldcore.errors import ConfigurationError, ModelError
from sldcore.evaluation.fidelity import (
    fid,
    frechet_distance,
    inception_features,
    kernel_distance,
    kid,
)

RANDOM = np.random.default_rng(0)
MIXED = RANDOM.normal(size=(60, 5)) @ RANDOM.normal(size=(5, 5))
OTHERS = RANDOM.normal(size=(80, 5)) @ RANDOM.normal(size=(5, 5)) + 0.5


def exactly(values: np.ndarray, mean: float, deviation: float) -> np.ndarray:
    return (values - values.mean()) / values.std(ddof=1) * deviation + mean


def test_the_frechet_distance_of_numbers_is_that_of_their_means_and_deviations() -> None:
    values = np.random.default_rng(1).normal(size=50)
    a, b = exactly(values, 1.0, 2.0)[:, None], exactly(values[::-1], 4.0, 0.5)[:, None]
    assert frechet_distance(a, b) == pytest.approx((4 - 1) ** 2 + (2 - 0.5) ** 2)


def test_the_frechet_distance_is_that_of_a_matrix_root() -> None:
    first, second = np.cov(MIXED, rowvar=False), np.cov(OTHERS, rowvar=False)
    apart = MIXED.mean(0) - OTHERS.mean(0)
    expected = apart @ apart + np.trace(first + second - 2 * np.real(linalg.sqrtm(first @ second)))
    assert frechet_distance(MIXED, OTHERS) == pytest.approx(expected)
    assert frechet_distance(OTHERS, MIXED) == pytest.approx(expected)


def test_equal_sets_have_no_frechet_distance_even_with_fewer_pictures_than_features() -> None:
    few = np.random.default_rng(2).normal(size=(10, 40))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)


def test_the_kernel_distance_is_that_of_all_pairs() -> None:
    a, b = MIXED[:7], OTHERS[:7]

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    expected = np.mean([kernel(a[i], a[j]) + kernel(b[i], b[j]) for i, j in pairs])
    expected -= 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b, subsets=3) == pytest.approx((expected, 0))


def test_the_kernel_distance_of_one_distribution_has_no_bias() -> None:
    random = np.random.default_rng(3)
    found = [
        kernel_distance(random.normal(size=(20, 4)), random.normal(size=(20, 4)), subsets=1).mean
        for _ in range(400)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20
    assert min(found) < 0


def test_the_kernel_distance_over_subsets_is_repeatable_and_near_that_of_all() -> None:
    whole = kernel_distance(MIXED, OTHERS[:60], subsets=1)
    drawn = kernel_distance(MIXED, OTHERS, subsets=300, size=30)
    assert drawn == kernel_distance(MIXED, OTHERS, subsets=300, size=30)
    assert drawn.sd > 0
    assert drawn.mean == pytest.approx(whole.mean, rel=0.3)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (MIXED, OTHERS[:, :4]),
        (MIXED[:1], OTHERS),
        (MIXED[0], OTHERS[0]),
        (MIXED, np.where(OTHERS > 1, np.nan, OTHERS)),
    ],
)
def test_features_that_make_no_sense_are_refused(measure: Any, a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ConfigurationError, match="features must be"):
        measure(a, b)


def test_kid_without_subsets_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1 subset"):
        kernel_distance(MIXED, OTHERS, subsets=0)


def test_fid_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ConfigurationError, match=r"FID and KID needs? .*pip install 'sldcore\[fidelity\]'"):
        fid([], [], path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    extractors = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractors, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(extractors.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = extractors.FeatureExtractorInceptionV3("made", ["2048"])
    for weight in network.state_dict().values():
        if weight.ndim == 4:  # the default is so small that nothing of the picture would be left at the end
            torch.nn.init.kaiming_normal_(weight)
    torch.save(network.state_dict(), path)
    return path


def noise(number: int, size: tuple[int, int] = (40, 32)) -> list[np.ndarray]:
    return [
        np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        for seed in range(number)
    ]


def test_features_are_those_of_the_extractor_one_by_one(weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(weights))
    some = [*noise(2), *noise(1, size=(30, 50))]
    found = inception_features(some, weights, batch_size=2)
    (expected,) = network(torch.tensor(some[2]).permute(2, 0, 1)[None])
    assert found.shape == (3, 2048)
    assert found[2] == pytest.approx(expected[0].numpy(), rel=1e-3, abs=1e-5)
    assert inception_features(some[:2], weights) == pytest.approx(found[:2], rel=1e-3, abs=1e-5)


def test_fid_and_kid_of_a_set_with_itself_are_next_to_nothing(weights: Path) -> None:
    dark = [picture // 8 for picture in noise(4)]
    assert fid(noise(4), noise(4), weights) == pytest.approx(0, abs=1e-4)
    assert fid(noise(4), dark, weights) > 1e-3
    assert kid(noise(4), dark, weights).mean > kid(noise(4), noise(4), weights).mean


def test_weights_of_another_network_are_refused(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="not those of FID's InceptionV3"):
        inception_features(noise(1), path)


@pytest.mark.usefixtures("weights")
def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ModelError, match="cannot read weights"):
        inception_features(noise(1), path)
