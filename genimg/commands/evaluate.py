"""genimg-eval: measure images from a checkpoint or any other source against real ones, or compare two results."""

from __future__ import annotations

from omegaconf import DictConfig

from genimg.api.evaluate import measure
from genimg.config.compose import Composition


def evaluate(composed: DictConfig) -> dict[str, float]:
    """Print the metrics of a checkpoint or of any images, or a comparison of two results."""
    result = measure(Composition.of_hydra(composed))
    return {} if result is None else result.values
