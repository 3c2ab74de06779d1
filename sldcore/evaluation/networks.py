"""Measuring networks for a run, by the paths of their weights: LPIPS, CLIP score, FID and KID.

Everything is looked up and loaded before anything is measured, so that what is missing is said first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sldcore.errors import ConfigurationError, listed
from sldcore.evaluation.fidelity import Inception
from sldcore.evaluation.measure_folder import CLIP, FID, LPIPS
from sldcore.evaluation.measuring import Measure, measure_samples
from sldcore.evaluation.pairing import UNGUIDED
from sldcore.evaluation.perceptual import NETWORKS, ClipScore, Lpips
from sldcore.evaluation.records import Sample
from sldcore.evaluation.run_folder import Evaluation, RunFolder
from sldcore.evaluation.set_distances import Extractor, References, measure_sets, references_in
from sldcore.evaluation.workers import Share

Progress = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True)
class Networks:
    """What to measure pictures with; what is None is not measured.

    Attributes:
        lpips: Weights of torchvision's network for LPIPS, safetensors or a state dict.
        lpips_network: Which network these are: ``vgg`` or ``alex``.
        clip: Folder with a CLIP model, tokenizer and preprocessor.
        inception: Weights of FID's InceptionV3, for FID and KID.
        references: Folder of pictures for FID and KID, in place of the unguided ones of the same prompts.
        device: Where networks run; None for the best there is.
    """

    lpips: Path | str | None = None
    lpips_network: str = "vgg"
    clip: Path | str | None = None
    inception: Path | str | None = None
    references: Path | str | None = None
    device: str | None = None

    def __bool__(self) -> bool:
        """Whether anything is to be measured."""
        return any(part is not None for part in (self.lpips, self.clip, self.inception, self.references))

    def load(self, methods: Iterable[str]) -> Loaded:
        """The networks, loaded, for a run with these methods.

        Raises:
            ConfigurationError: a path does not exist, a library is missing, or the run has nothing to compare with.
            ModelError: weights cannot be read, or are those of another network.
        """
        self._check(tuple(methods))
        measures = [each for each in (self._lpips(), self._clip()) if each]
        references = None if self.references is None else references_in(Path(self.references))
        if self.inception is None:
            return Loaded(tuple(measures))
        return Loaded(
            tuple(measures), Inception(self.inception, self.device), _hash(Path(self.inception)), references
        )

    def _check(self, methods: Sequence[str]) -> None:
        wanted = {
            "LPIPS": (self.lpips, False, f"the weights of torchvision's {self.lpips_network} network"),
            "CLIP score": (self.clip, True, "a folder with a CLIP model, as save_pretrained writes it"),
            "FID and KID": (self.inception, False, "the weights of FID's InceptionV3 (inception-2015-12-05)"),
            "FID and KID to references": (self.references, True, "a folder of pictures"),
        }
        for what, (path, folder, content) in wanted.items():
            if path is not None and not (Path(path).is_dir() if folder else Path(path).is_file()):
                raise ConfigurationError(
                    f"asked to measure {what}, but {path} is no {'folder' if folder else 'file'}; give {content}"
                )
        if self.lpips_network not in NETWORKS:
            raise ConfigurationError(
                f"unknown network '{self.lpips_network}' for LPIPS (available: {', '.join(NETWORKS)})"
            )
        if self.references is not None and self.inception is None:
            raise ConfigurationError(
                "reference pictures are for FID and KID: give the weights of FID's InceptionV3 too (--inception)"
            )
        paired = ["LPIPS"] if self.lpips is not None else []
        paired += ["FID and KID"] if self.inception is not None and self.references is None else []
        if paired and UNGUIDED not in methods:
            other = ", or give a folder of references" if paired[-1] == "FID and KID" else ""
            raise ConfigurationError(
                f"to measure {' and '.join(paired)}, pictures of policy '{UNGUIDED}' are needed, and the run has no such method (its "
                f"methods: {listed(methods)}); start it again with '{UNGUIDED}' among its policies{other}"
            )

    def _lpips(self) -> Measure | None:
        if self.lpips is None:
            return None
        network = Lpips(self.lpips, self.lpips_network, self.device)
        return Measure(LPIPS, network.version, _hash(Path(self.lpips)), True, _numbers(network.measure))

    def _clip(self) -> Measure | None:
        if self.clip is None:
            return None
        from sldcore.filters.local_models import weight_files, weights_hash

        network = ClipScore(self.clip, self.device)
        weights = weights_hash(weight_files(Path(self.clip)))
        return Measure(CLIP, network.version, weights, False, _numbers(network.measure))


@dataclass(frozen=True, slots=True)
class Loaded:
    """Networks that are ready: measures of single pictures, and what FID and KID need."""

    measures: tuple[Measure, ...] = ()
    inception: Extractor | None = None
    inception_weights: str = ""
    references: References | None = None

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.measures) or self.inception is not None

    def claim(self, folder: RunFolder) -> None:
        """Find out before any work whether the run has figures of other weights.

        Raises:
            ConfigurationError: it has.
        """
        for measure in self.measures:
            folder.measures.claim(measure.name, measure.identity)
        if self.inception is not None:
            folder.measures.claim(FID, {"version": self.inception.version, "weights": self.inception_weights})

    def measure(
        self,
        folder: RunFolder,
        samples: Sequence[Sample],
        worker: str = "measures",
        retry_errors: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Measure single pictures; see :func:`sldcore.evaluation.measuring.measure_samples`."""
        for each in self.measures:
            measure_samples(
                folder, each, samples, worker, retry_errors, _staged(progress, f"measuring {each.name}")
            )

    def measure_sets(
        self,
        folder: RunFolder,
        worker: str = "measures",
        retry_errors: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Measure FID and KID, if they were asked for; see :func:`sldcore.evaluation.set_distances.measure_sets`."""
        if self.inception is not None:
            told = _staged(progress, "measuring fid")
            measure_sets(
                folder, self.inception, self.inception_weights, self.references, worker, retry_errors, told
            )


def measure(
    run: Path | str,
    networks: Networks,
    shard: str | None = None,
    progress: Progress | None = None,
    retry_errors: bool = False,
) -> Evaluation:
    """Measure the pictures of a run with networks, as far as that has not been done, and return the run as it then stands.

    Args:
        run: The run's folder.
        networks: Which networks.
        shard: ``i/n`` measures part i of n of the pictures; FID and KID need all of them.
        progress: Told after every batch.
        retry_errors: Measure again where a network failed.

    Raises:
        ConfigurationError: there is no run, or something cannot be had.
        OSError: numbers cannot be written.
    """
    folder, share = RunFolder(Path(run)), Share.of(shard)
    if networks.inception is not None and share.shards * share.world > 1:
        raise ConfigurationError(
            "FID and KID need all pictures of a run; measure them without shards, when all pictures are there"
        )
    loaded = networks.load(each["name"] for each in folder.describe()["methods"])
    loaded.claim(folder)
    loaded.measure(folder, share.part(folder.samples()), share.worker, retry_errors, progress)
    loaded.measure_sets(folder, share.worker, retry_errors, progress)
    return folder.evaluation()


def _numbers(compute: Callable[..., Any]) -> Callable[[Sequence[Any], Sequence[Any]], Sequence[float]]:
    def numbers(pictures: Sequence[Any], against: Sequence[Any]) -> Sequence[float]:
        return [float(value) for value in compute(pictures, against)]

    return numbers


def _hash(path: Path) -> str:
    from sldcore.filters.local_models import weights_hash

    return weights_hash((path,))


def _staged(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(stage, done, total)
