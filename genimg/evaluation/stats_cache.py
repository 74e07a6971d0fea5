"""Files with statistics of a set of images: the cache of real statistics, and the files that genimg-eval saves and reads."""

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

from genimg.data.archives import FIRST, image_like
from genimg.data.numpy_archive import Header, NumpyArchive
from genimg.errors import DataError
from genimg.evaluation.extractors.base import Extractor
from genimg.evaluation.feature_stats import FeatureStats
from genimg.evaluation.gaussian import GaussianStatistics
from genimg.utils.environment import versions
from genimg.utils.files import atomically, sha256_of
from genimg.utils.verified_torch import load_verified

log = logging.getLogger(__name__)

_MAX_FEATURES = 2**14  # per image; with more, the covariance of even a small file could exhaust the memory
_ROUNDING = 1e-3  # relative to the largest covariance, for single-precision files

_FORMAT = 4  # 4: with spatial features; 3: real images chosen at random


@dataclass(frozen=True)
class SavedStatistics:
    """Statistics with their provenance.

    Attributes:
        summary: Statistics of the images.
        extractor: Description from ``Extractor.describe``; None if the file does not record it.
        images: Description from ``ImageSet.describe``, with the number of images.
    """

    summary: FeatureStats
    extractor: dict[str, Any] | None
    images: dict[str, Any]

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        state = {"format": _FORMAT, "extractor": self.extractor, "images": self.images, **self.summary.state_dict()}
        # Opened here because the errors of torch.save are not OSErrors and do not name the file.
        with atomically(path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    @classmethod
    def read(cls, path: Path) -> SavedStatistics:
        """Read a file written by ``write``, or another program's .npz file with ``mu`` and ``sigma`` or with features.

        Raises:
            DataError: If the file does not exist or has other contents.
        """
        if not path.is_file():
            raise DataError(f"the statistics {path} do not exist")
        return _read_npz(path) if path.suffix == ".npz" else _read_own(path)

    def check_extractor(self, extractor: Extractor, path: Path, *, accept_unrecorded: bool) -> None:
        """Check that the statistics were computed with ``extractor``.

        Raises:
            DataError: If the extractor is another one, or is not recorded and ``accept_unrecorded`` is false.
        """
        own = extractor.describe()
        if self.extractor is None:
            if not accept_unrecorded:
                raise DataError(
                    f"the file {path} does not record which extractor made it, so its features may be of another kind",
                    f"if you know that it was {own['name']}, set accept_unrecorded=true",
                )
            log.warning("%s does not record its extractor; assuming %s, because accept_unrecorded=true", path, own["name"])
            return
        differing = [f"{key} {self.extractor.get(key)} in the file, {value} here" for key, value in own.items()
                     if self.extractor.get(key) != value]  # fmt: skip
        if differing:
            raise DataError(
                f"the file {path} was made with another extractor ({'; '.join(differing)}), so their features "
                "cannot be compared: choose the evaluation it was made with, or make new statistics with save_statistics=FILE"
            )


def cache_path(
    folder: Path, fingerprint: str, count: int, extractor: Extractor, device: torch.device, *, selected: str | None = None
) -> Path:
    """Return the path of the cache file. Its name is a digest of everything that determines the features.

    Args:
        folder: Cache directory.
        fingerprint: Fingerprint of the whole set of images.
        count: Number of images that are used.
        extractor, device: Extractor of the features and its device.
        selected: Selection rule, as in ``subsets.selection``; None if all images are used.
    """
    key = [
        _FORMAT,
        fingerprint,
        count,
        selected,
        extractor.describe(),
        device.type,
        # torch for arithmetic, pillow for decoding and resizing, torch-fidelity for Inception, CLIP and their preprocessing.
        *(versions()[package] for package in ("torch", "pillow", "torch-fidelity")),
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return folder / "statistics" / f"{digest}.pt"


def read_cache(path: Path) -> FeatureStats | None:
    """Return the cached statistics, or None if there are none or they cannot be read."""
    if not path.is_file():
        return None
    try:
        return _read_own(path).summary
    except (ValueError, OSError) as error:
        log.warning("the cached statistics %s cannot be read (%s) and are computed again", path, error)
        return None


def write_cache(path: Path, statistics: SavedStatistics) -> None:
    """Write the cache; only warn if this fails, because a cache is optional."""
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
            raise ValueError("its entry extractor or images has the wrong type")
        if not isinstance(state["images"].get("num_images"), int | None):
            raise ValueError("its entry images.num_images has the wrong type")
        _require_sound(state)
        return SavedStatistics(FeatureStats.from_state_dict(state), state["extractor"], state["images"])
    except (MemoryError, OSError):
        raise
    except Exception as error:  # the unpickler can raise almost anything for other kinds of file
        reason = str(error) if isinstance(error, ValueError) else "it is damaged or another kind of file"
        raise DataError(f"the file {path} does not hold statistics of genimg ({reason})") from error


def _require_sound(state: Mapping[str, Any]) -> None:
    """Check shapes, types and values of the statistics, so the metrics do not fail on them later.

    Raises:
        ValueError: If an entry is invalid.
        KeyError: If an entry is missing.
    """
    _require_moments(state["num_images"], state["mean"], state["covariance"], "mean", "covariance")
    size, count = len(state["mean"]), state["num_images"]
    if state["spatial"] is not None:
        spatial = state["spatial"]
        _require_moments(spatial["num_images"], spatial["mean"], spatial["covariance"], "spatial mean", "spatial covariance")
    _require_tensor(state["root"], "root", torch.float64, (size, size))
    features, positions, predictions = (state[key] for key in ("features", "positions", "predictions"))
    if features is not None:
        _require_tensor(features, "features", torch.float32, (None, size))
    if positions is not None:
        _require_tensor(positions, "positions", torch.int64, (None if features is None else len(features),))
        if len(positions) and not (positions[0] >= 0 and positions[-1] < count and bool((positions.diff() > 0).all())):
            raise ValueError("positions are not increasing, or outside the number of images")
    if predictions is not None:
        _require_tensor(predictions, "predictions", torch.int64, (None,))
        if not bool((predictions >= 0).all()):
            raise ValueError("predictions are negative")


def _require_moments(count: object, mean: object, covariance: object, mean_name: str, covariance_name: str) -> None:
    """Check that the values can be the mean [D] and covariance [D, D] of images.

    Raises:
        ValueError: If they cannot.
    """
    if type(count) is not int or count < 2:
        raise ValueError(f"num_images is {count}")
    _require_tensor(mean, mean_name, torch.float64, (None,))
    assert isinstance(mean, torch.Tensor)
    if len(mean) == 0:
        raise ValueError(f"{mean_name} has no features")
    _require_tensor(covariance, covariance_name, torch.float64, (len(mean), len(mean)))
    assert isinstance(covariance, torch.Tensor)
    largest = float(covariance.abs().max())
    if bool((covariance.diagonal() < -_ROUNDING * largest).any()):
        raise ValueError(f"{covariance_name} has negative variances")
    if float((covariance - covariance.T).abs().max()) > _ROUNDING * largest:
        raise ValueError(f"{covariance_name} is not symmetric")


def _require_tensor(value: object, name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    """Check that a value is a finite tensor of this type and shape, in which None matches any size.

    Raises:
        ValueError: If it is not.
    """
    expected = f"{str(dtype).removeprefix('torch.')} [{', '.join('any' if n is None else str(n) for n in shape)}]"
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}, not {expected}")
    fits = value.ndim == len(shape) and all(want in (None, found) for found, want in zip(value.shape, shape, strict=True))
    if not fits or value.dtype != dtype:
        raise ValueError(f"{name} is {str(value.dtype).removeprefix('torch.')} {list(value.shape)}, not {expected}")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} is not finite")


def holds_statistics(path: Path) -> bool:
    """Return whether an .npz from another program holds ``mu`` and ``sigma``, or features as a float matrix ``arr_0``."""
    try:
        with NumpyArchive(path, f"the file {path}") as archive:
            headers = archive.headers
    except DataError:  # the reader of images reports the error
        return False
    return {"mu", "sigma"} <= set(headers) or _holds_features(headers)


def holds_images(path: Path) -> bool:
    """Return whether an .npz with statistics also holds images, like the reference files of ADM."""
    with NumpyArchive(path, f"the file {path}") as archive:
        return bool(image_like(archive.headers))


def _holds_features(headers: Mapping[str, Header]) -> bool:
    return FIRST in headers and len(headers[FIRST].shape) == 2 and headers[FIRST].dtype.kind == "f"


def _read_npz(path: Path) -> SavedStatistics:
    """Read ``mu`` [D] and ``sigma`` [D, D], features ``arr_0`` [N, D], or both.

    ``mu_s`` and ``sigma_s`` of the spatial features are read if they exist.
    """
    features = None
    try:
        with NumpyArchive(path, f"the file {path}") as archive:
            if _holds_features(archive.headers):
                features = torch.from_numpy(np.asarray(archive.read(FIRST), dtype=np.float32))
                _require_tensor(features, FIRST, torch.float32, (None, None))
            if features is not None and "mu" not in archive.headers:
                if not 0 < features.shape[1] <= _MAX_FEATURES:
                    raise ValueError(f"{FIRST} has {features.shape[1]:,} features; at most {_MAX_FEATURES:,} are supported")
                moments = GaussianStatistics.of(features)
            else:
                moments = _moments(archive, "mu", "sigma")
            spatial = _moments(archive, "mu_s", "sigma_s") if "mu_s" in archive.headers else None
            if features is not None and features.shape[1] != len(moments.mean):
                raise ValueError(f"{FIRST} is {tuple(features.shape)} and mu ({len(moments.mean)},)")
    except (ValueError, KeyError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"the file {path} does not hold statistics, which are mu [D] and sigma [D, D] ({reason})") from error
    count = None if features is None or "mu" in archive.headers else len(features)
    images = {"source": path.name, "fingerprint": sha256_of(path), "num_images": count, "extractor": "not recorded"}
    return SavedStatistics(FeatureStats(moments, features=features, spatial=spatial), None, images)


def _moments(archive: NumpyArchive, mean_key: str, covariance_key: str) -> GaussianStatistics:
    """Return mean and covariance, with D + 1 as the unrecorded number of images, so the covariance counts as full rank.

    Raises:
        KeyError: If one is missing.
        ValueError: If they cannot be a mean and covariance of images.
    """
    tensors = []
    for key in (mean_key, covariance_key):
        header = archive.headers[key]
        if header.dtype.kind not in "iuf":
            raise ValueError(f"{key} is {header}")
        tensors.append(torch.from_numpy(np.asarray(archive.read(key), dtype=np.float64)))
    mean, covariance = tensors
    _require_moments(len(mean) + 1 if mean.ndim else 0, mean, covariance, mean_key, covariance_key)
    return GaussianStatistics(len(mean) + 1, mean, covariance)
