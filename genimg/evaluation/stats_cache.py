"""Statistics of a set of images in a file: the cache of real images, and what genimg-eval saves and takes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genimg.data.archives import FIRST, Header, headers_of, image_like
from genimg.errors import DataError
from genimg.evaluation.extractors.base import Extractor, sha256_of
from genimg.evaluation.feature_stats import Summary
from genimg.evaluation.gaussian import GaussianStatistics
from genimg.utils.environment import versions
from genimg.utils.files import atomically
from genimg.utils.verified_torch import load_verified

log = logging.getLogger(__name__)

_FORMAT = 4  # with spatial features; since 3, real images are chosen at random


@dataclass(frozen=True)
class SavedStatistics:
    """A summary with what it was made of.

    Attributes:
        summary: of the images.
        extractor: as ``Extractor.describe`` gave it; None where the file does not say.
        images: as ``ImageSet.describe`` gave it, and how many there were.
    """

    summary: Summary
    extractor: dict[str, Any] | None
    images: dict[str, Any]

    def write(self, path: Path) -> None:
        """The file appears whole or not at all."""
        state = {"format": _FORMAT, "extractor": self.extractor, "images": self.images, **self.summary.state_dict()}
        # Opened here, because torch.save's own errors are no OSErrors and name no file.
        with atomically(path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    @classmethod
    def read(cls, path: Path) -> SavedStatistics:
        """A file that ``write`` made, or another program's .npz: ``mu`` and ``sigma`` (as of pytorch-fid and ADM), or features.

        Raises:
            DataError: If there is none, or it is something else.
        """
        if not path.is_file():
            raise DataError(f"the statistics {path} do not exist")
        return _read_npz(path) if path.suffix == ".npz" else _read_own(path)

    def check_extractor(self, extractor: Extractor, path: Path, *, accept_unrecorded: bool) -> None:
        """Refuse statistics of other features than ``extractor``'s.

        Raises:
            DataError: For another extractor, or an unknown one that is not accepted.
        """
        own = extractor.describe()
        if self.extractor is None:
            if not accept_unrecorded:
                raise DataError(
                    f"the file {path} does not record which extractor made it, so a distance from it may be of unlike features",
                    f"if you know that it was {own['name']}, set accept_unrecorded=true",
                )
            log.warning("%s does not record its extractor: that it was %s is taken on your word", path, own["name"])
            return
        differing = [f"{key} {self.extractor.get(key)} there, {value} here" for key, value in own.items()
                     if self.extractor.get(key) != value]  # fmt: skip
        if differing:
            raise DataError(
                f"the file {path} was made with another extractor ({'; '.join(differing)}): distances between unlike features "
                "mean nothing; choose the evaluation it was made with, or make new statistics with save_statistics=FILE"
            )


def cache_path(
    folder: Path, fingerprint: str, count: int, extractor: Extractor, device: torch.device, *, selected: str | None = None
) -> Path:
    """The cache's file for these images, by a digest of everything that determines their features.

    Args:
        folder: Of caches.
        fingerprint: Of all images.
        count: Number of images that are taken.
        extractor, device: What makes features of them.
        selected: How they are chosen, as ``subsets.selection`` says; None where all of them are taken.
    """
    key = [
        _FORMAT,
        fingerprint,
        count,
        selected,
        extractor.describe(),
        device.type,
        # Of the arithmetic; of decoding and resizing; of Inception, CLIP and their preprocessing.
        *(versions()[package] for package in ("torch", "pillow", "torch-fidelity")),
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return folder / "statistics" / f"{digest}.pt"


def read_cache(path: Path) -> Summary | None:
    """None where there is nothing usable."""
    if not path.is_file():
        return None
    try:
        return _read_own(path).summary
    except ValueError as error:
        log.warning("the cached statistics %s cannot be read (%s) and are computed again", path, error)
        return None


def write_cache(path: Path, statistics: SavedStatistics) -> None:
    """A cache that cannot be written costs time, not the run."""
    try:
        statistics.write(path)
    except (OSError, RuntimeError) as error:
        log.warning(
            "the real statistics cannot be cached in %s (%s): set GENIMG_CACHE to a writable directory", path.parent, error
        )


def _read_own(path: Path) -> SavedStatistics:
    try:
        state = load_verified(path)
        if state["format"] != _FORMAT:
            raise ValueError(f"format {state['format']}, not {_FORMAT}: make it again with save_statistics=FILE")
        if not isinstance(state["extractor"], dict | None) or not isinstance(state["images"], dict):
            raise ValueError("what it says about its extractor or its images is of another type")
        return SavedStatistics(Summary.from_state_dict(state), state["extractor"], state["images"])
    except Exception as error:  # a file of another kind makes the unpickler raise nearly anything
        reason = str(error) if isinstance(error, ValueError) else "it is damaged, or of something else"
        raise DataError(f"the file {path} does not hold statistics of genimg ({reason})") from error


def holds_statistics(path: Path) -> bool:
    """Whether another program's .npz holds ``mu`` and ``sigma``, or features, a matrix ``arr_0`` of floats."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            headers = headers_of(archive)
    except Exception:  # damaged archives make NumPy and zlib raise nearly anything; the reader says what is wrong
        return False
    return {"mu", "sigma"} <= set(headers) or _holds_features(headers)


def holds_images(path: Path) -> bool:
    """Whether an .npz that ``holds_statistics`` has images beside them, as ADM's reference files do."""
    with np.load(path, allow_pickle=False) as archive:
        return bool(image_like(headers_of(archive)))


def _holds_features(headers: Mapping[str, Header]) -> bool:
    return FIRST in headers and len(headers[FIRST].shape) == 2 and headers[FIRST].dtype.kind == "f"


def _read_npz(path: Path) -> SavedStatistics:
    """``mu`` and ``sigma`` [D, D], and where they are there ``mu_s`` and ``sigma_s`` of the spatial features; else, or beside
    them, features ``arr_0`` [N, D].
    """
    features = None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if _holds_features(headers_of(arrays)):
                features = torch.from_numpy(np.asarray(arrays[FIRST], dtype=np.float32))
            if features is not None and "mu" not in arrays:
                moments = GaussianStatistics.of(features)
            else:
                moments = _moments(arrays, "mu", "sigma", path)
            spatial = _moments(arrays, "mu_s", "sigma_s", path) if "mu_s" in arrays else None
    except Exception as error:  # damaged archives make NumPy and zlib raise nearly anything
        if str(error).startswith(f"the file {path}"):
            raise
        raise DataError(
            f"the file {path} does not hold statistics: an .npz of them has mu [D] and sigma [D, D] ({error})"
        ) from error
    if features is not None and (features.shape[1] != len(moments.mean) or not bool(torch.isfinite(features).all())):
        raise DataError(f"the file {path} does not hold statistics: {FIRST} is {tuple(features.shape)} and mu "
                        f"({len(moments.mean)},), or not finite")  # fmt: skip
    count = None if features is None or "mu" in arrays else len(features)
    images = {"source": path.name, "fingerprint": sha256_of(path), "num_images": count, "extractor": "not recorded"}
    return SavedStatistics(Summary(moments, features=features, spatial=spatial), None, images)


def _moments(arrays: Mapping[str, Any], mean_key: str, covariance_key: str, path: Path) -> GaussianStatistics:
    """Such files do not say how many images they are of; no rank is then cut off."""
    mean, covariance = (np.asarray(arrays[key], dtype=np.float64) for key in (mean_key, covariance_key))
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not np.isfinite(covariance).all() or not np.isfinite(mean).all():
        raise DataError(
            f"the file {path} does not hold statistics: {mean_key} is {mean.shape} and {covariance_key} {covariance.shape}, or "
            "not finite"
        )
    return GaussianStatistics(len(mean) + 1, torch.from_numpy(mean), torch.from_numpy(covariance))
