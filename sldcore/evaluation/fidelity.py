"""FID and KID: how far a set of pictures is from a set of others, by features of the Inception network.

The measures take features as plain arrays; ``inception_features`` makes them. FID is biased by the number of pictures and changes with resizing
and compression, so it compares only with figures of the same number of pictures, the same references and the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sldcore.errors import ConfigurationError
from sldcore.evaluation.estimates import Numbers
from sldcore.evaluation.network_weights import belonging, libraries, read_weights
from sldcore.evaluation.side_effects import pixels_of

LAYER: Final = "2048"


class KernelDistance(NamedTuple):
    """Mean and standard deviation of the squared kernel distance over subsets."""

    mean: float
    sd: float


def frechet_distance(features: ArrayLike, references: ArrayLike) -> float:
    """Fréchet distance of two normal distributions fitted to features, [N, D] and [M, D]; with Inception's this is FID.

    After Heusel et al. (NeurIPS 2017), with means mu and covariances S (divided by N - 1):

        |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^{1/2})

    Raises:
        ConfigurationError: no [N, D] of equal D with at least two rows each, or numbers that are not finite.
    """
    a, b = _tables(features, references)
    apart = a.mean(axis=0) - b.mean(axis=0)
    # With S1 = X'X and S2 = Y'Y, the eigenvalues of S1 S2 are the squared singular values of X Y', which are had to full precision, and
    # cheaply if there are fewer pictures than features. X is the triangle of a QR decomposition.
    first, second = _triangle(a), _triangle(b)
    shared = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return max(float(apart @ apart + (first**2).sum() + (second**2).sum() - 2 * shared), 0.0)


def _triangle(features: Numbers) -> Numbers:
    """R of [min(N, D), D] such that R'R is the covariance of the features."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    triangle: Any = np.linalg.qr(centred, mode="r")  # NumPy's annotations know the other modes only
    return np.asarray(triangle, dtype=np.float64)


def kernel_distance(
    features: ArrayLike, references: ArrayLike, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy of features, averaged over random subsets; with Inception's this is KID.

    After Bińkowski et al. (ICLR 2018): kernel (x·y / D + 1)^3, ``subsets`` times ``size`` rows of each set without replacement (all rows, if a
    set has fewer). It has no bias from the number of pictures, and can be negative. The sd is that over subsets.

    Raises:
        ConfigurationError: as for ``frechet_distance``, or ``subsets`` or ``size`` is too small.
    """
    a, b = _tables(features, references)
    if subsets < 1 or size < 2:
        raise ConfigurationError(f"KID needs at least 1 subset of 2 pictures, got {subsets} of {size}")
    random = np.random.default_rng(seed)
    take = min(size, len(a), len(b))
    found = [
        _discrepancy(*(x[random.choice(len(x), take, replace=False)] for x in (a, b))) for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(found)), float(np.std(found)))


def _discrepancy(a: Numbers, b: Numbers) -> float:
    def kernel(x: Numbers, y: Numbers) -> Numbers:
        table: Numbers = (x @ y.T / x.shape[1] + 1) ** 3
        return table

    m = len(a)
    within = sum((table.sum() - np.trace(table)) / (m * (m - 1)) for table in (kernel(a, a), kernel(b, b)))
    return float(within - 2 * kernel(a, b).mean())


def inception_features(
    pictures: Sequence[Any], weights: Path | str, device: str | None = "cpu", batch_size: int = 32
) -> Numbers:
    """Features of pictures for FID and KID, [N, 2048]: the last pooling layer of FID's InceptionV3, as torch-fidelity runs it.

    Pictures are resized to 299 x 299 bilinearly as TensorFlow 1 did, like the original FID. clean-fid resizes otherwise, and its figures differ.

    Args:
        pictures: Pillow images or uint8 [H, W, 3], [N].
        weights: ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity, or the same tensors as safetensors.
        device: Where the network runs; None for the best there is.
        batch_size: Pictures of one size that it sees at once.

    Raises:
        ConfigurationError: torch-fidelity is missing, or something is no picture.
        ModelError: the weights cannot be read or belong to another network.
    """
    return Inception(weights, device, batch_size).features(pictures)


class Inception:
    """FID's InceptionV3, loaded, for more than one set; see ``inception_features``.

    Raises:
        ConfigurationError: torch-fidelity is missing.
        ModelError: the weights cannot be read or belong to another network.
    """

    def __init__(self, weights: Path | str, device: str | None = "cpu", batch_size: int = 32) -> None:
        from sldcore.loading.placing import device_of

        self._device, self._batch_size = device_of(device), batch_size
        self._network = _inception(Path(weights)).to(self._device)
        self.version = f"torch-fidelity {version('torch-fidelity')}"

    def features(self, pictures: Iterable[Any]) -> Numbers:
        """Features, [N, 2048]; pictures are taken a batch at a time.

        Raises:
            ConfigurationError: something is no picture.
        """
        import torch

        rows: list[Numbers] = []
        left = iter(pictures)
        with torch.inference_mode():
            while some := [pixels_of(picture) for picture in islice(left, self._batch_size)]:
                alike = len({pixels.shape for pixels in some}) == 1
                for batch in [np.stack(some)] if alike else [pixels[None] for pixels in some]:
                    (found,) = self._network(torch.from_numpy(batch).permute(0, 3, 1, 2).to(self._device))
                    rows.append(found.double().cpu().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, int(LAYER)))


def _inception(weights: Path) -> Any:
    import torch

    (extractors,) = libraries("FID and KID", "torch_fidelity.feature_extractor_inceptionv3")
    tensors = read_weights(weights)
    # The class unpickles whatever its file holds, so it gets a file that was written here, from tensors alone.
    with TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        torch.save(tensors, path)
        with belonging(weights, "FID's InceptionV3"):
            return extractors.FeatureExtractorInceptionV3(
                "inception-v3", [LAYER], feature_extractor_weights_path=str(path)
            )


def fid(
    pictures: Sequence[Any], references: Sequence[Any], weights: Path | str, device: str = "cpu"
) -> float:
    """FID of two sets of pictures: ``frechet_distance`` of their ``inception_features``.

    Raises:
        ConfigurationError: as these two do.
        ModelError: the weights cannot be read or belong to another network.
    """
    return frechet_distance(
        inception_features(pictures, weights, device), inception_features(references, weights, device)
    )


def kid(
    pictures: Sequence[Any], references: Sequence[Any], weights: Path | str, device: str = "cpu"
) -> KernelDistance:
    """KID of two sets of pictures: ``kernel_distance`` of their ``inception_features``.

    Raises:
        ConfigurationError: as these two do.
        ModelError: the weights cannot be read or belong to another network.
    """
    return kernel_distance(
        inception_features(pictures, weights, device), inception_features(references, weights, device)
    )


def _tables(features: ArrayLike, references: ArrayLike) -> tuple[Numbers, Numbers]:
    a, b = np.asarray(features, dtype=np.float64), np.asarray(references, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ConfigurationError(
            f"features must be [N, D] and [M, D] with at least two rows each, got {list(a.shape)} and {list(b.shape)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ConfigurationError("features must be finite; the network gave NaN or infinity")
    return a, b
