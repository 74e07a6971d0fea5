"""Runs a model through an extractor and compares the result with the real images."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from genimg.data.placement import Data
from genimg.evaluation.features import Extractor, describe
from genimg.evaluation.metrics import frechet_distance, matrix_square_root
from genimg.evaluation.statistics import FeatureSums, GaussianStatistics, InceptionScoreSums
from genimg.images import to_uint8
from genimg.interfaces import Images, Method

log = logging.getLogger(__name__)

_CACHE_VERSION = 1


class EvaluationInterruptedError(Exception):
    """The caller asked to stop; nothing was computed."""


@dataclass(frozen=True)
class Evaluation:
    """Metric name -> value, and what determines the values."""

    values: dict[str, float]
    provenance: dict[str, Any]


class Evaluator:
    """Fréchet distance and Inception Score of generated images against the real ones.

    Generated image i depends on (seed, i) alone, and images are rounded to uint8 as when they are saved, so that the
    result depends neither on the batch size nor on anything that happened before.

    Args:
        extractor: of features.
        num_images: generated images.
        num_real: real images, evenly spaced over the dataset; None takes all.
        batch_size: of generation and extraction; has no influence on the values.
        interval: how often the trainer evaluates.
        splits: of the Inception Score.
        seed: of the generated images.
        cache_dir: of real statistics; None is $GENIMG_CACHE or ~/.cache/genimg.
    """

    def __init__(
        self,
        *,
        extractor: Extractor,
        num_images: int,
        num_real: int | None,
        batch_size: int,
        interval: Images,
        splits: int,
        seed: int,
        cache_dir: str | None,
    ) -> None:
        for name, value, least in (("num_images", num_images, 2), ("batch_size", batch_size, 1), ("splits", splits, 1)):
            if value < least:
                raise ValueError(f"evaluation.{name}={value} must be {least} or more")
        if interval < 1:
            raise ValueError("evaluation.interval must be longer than nothing; evaluation=none turns evaluation off")
        if num_images < splits:
            raise ValueError(f"evaluation.num_images={num_images} is fewer than evaluation.splits={splits}")
        if num_real is not None and num_real < 2:
            raise ValueError(f"evaluation.num_real={num_real} must be 2 or more, or null for all")
        self.extractor = extractor
        self.num_images = num_images
        self.num_real = num_real
        self.batch_size = batch_size
        self.interval = interval
        self.splits = splits
        self.seed = seed
        self.cache_dir = Path(cache_dir or os.environ.get("GENIMG_CACHE") or Path.home() / ".cache" / "genimg").expanduser()
        self._real: dict[Path, tuple[GaussianStatistics, Tensor]] = {}
        self.frechet_name = extractor.metric_name("fid", _short(num_images))
        self.inception_score_name = extractor.metric_name("is", _short(num_images))

    @property
    def primary(self) -> str:
        """The metric that chooses the best checkpoint; lower is better."""
        return self.frechet_name

    def evaluate(
        self, method: Method, data: Data, device: torch.device, should_stop: Callable[[], bool] = lambda: False
    ) -> Evaluation:
        """Evaluate ``method`` as it is now.

        Raises:
            EvaluationInterruptedError: once ``should_stop`` says so.
        """
        with _full_float32():
            return self._evaluate(method, data, device, should_stop)

    def _evaluate(self, method: Method, data: Data, device: torch.device, should_stop: Callable[[], bool]) -> Evaluation:
        self.extractor.to(device)
        real, real_root = self._real_statistics(data, should_stop)
        sums, scores = FeatureSums(), InceptionScoreSums(self.num_images, self.splits)
        for start, stop in self._ranges(self.num_images, "evaluating", should_stop):
            drawn = {key: value.to(device) for key, value in method.draw(range(start, stop), self.seed).items()}
            features, logits = self.extractor(to_uint8(method.sample(drawn)))
            sums.add(features)
            scores.add(logits)
        distance = frechet_distance(real, sums.result(), real_root)
        score, deviation = scores.result()
        values = {
            self.frechet_name: distance,
            self.inception_score_name: score,
            f"{self.inception_score_name}_std": deviation,
        }
        return Evaluation(values, self.provenance(method, data))

    def provenance(self, method: Method, data: Data) -> dict[str, Any]:
        """What the values depend on, besides the model."""
        return {
            **describe(self.extractor),
            "num_generated": self.num_images,
            "num_real": self._count_real(data),
            "real": data.source.name,
            "real_fingerprint": data.source.fingerprint,
            "splits": self.splits,
            "seed": self.seed,
            "weights": method.sampled_weights,
        }

    def _count_real(self, data: Data) -> int:
        return len(data.source) if self.num_real is None else min(self.num_real, len(data.source))

    def _real_statistics(self, data: Data, should_stop: Callable[[], bool]) -> tuple[GaussianStatistics, Tensor]:
        path = self._cache_path(data)
        if path in self._real:
            return self._real[path]
        found = _read_cache(path)
        if found is None:
            sums, count = FeatureSums(), self._count_real(data)
            # Evenly spaced, because folders are sorted by class.
            indices = np.arange(count, dtype=np.int64) * len(data.source) // count
            for start, stop in self._ranges(count, f"features of {data.source.name}", should_stop):
                sums.add(self.extractor(data.images(indices[start:stop]))[0])
            statistics = sums.result()
            found = statistics, matrix_square_root(statistics.covariance)
            _write_cache(path, *found)
        self._real[path] = found
        return found

    def _cache_path(self, data: Data) -> Path:
        key = [
            _CACHE_VERSION,
            data.source.fingerprint,
            self._count_real(data),
            describe(self.extractor),
            data.device.type,
            torch.__version__,  # of the arithmetic
            PIL.__version__,  # of decoding and resizing
        ]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        return self.cache_dir / "statistics" / f"{digest}.pt"

    def _ranges(self, total: int, what: str, should_stop: Callable[[], bool]) -> Iterator[tuple[int, int]]:
        bar = tqdm(total=total, desc=what, unit="img", leave=False, disable=None)
        with bar:
            for start in range(0, total, self.batch_size):
                if should_stop():
                    raise EvaluationInterruptedError
                stop = min(start + self.batch_size, total)
                yield start, stop
                bar.update(stop - start)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Without TF32, whatever the training uses: a metric shall not depend on the training's precision."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def _read_cache(path: Path) -> tuple[GaussianStatistics, Tensor] | None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return GaussianStatistics(state["num_images"], state["mean"], state["covariance"]), state["root"]
    except FileNotFoundError:
        return None
    except Exception as error:
        log.warning("the cached statistics %s cannot be read (%s) and are computed again", path, type(error).__name__)
        return None


def _write_cache(path: Path, statistics: GaussianStatistics, root: Tensor) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**statistics.state_dict(), "root": root}, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # a cache that cannot be written costs time, not the run
        log.warning(
            "the real statistics cannot be cached in %s (%s): set GENIMG_CACHE to a writable directory",
            path.parent,
            error,
        )
        with contextlib.suppress(OSError):
            temporary.unlink()


def _short(count: int) -> str:
    """5000 -> 5k, as metric names have it; 500 stays."""
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)
