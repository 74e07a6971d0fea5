"""genimg-eval: measure images, of a checkpoint or from anywhere, against real ones; compare two results."""

from __future__ import annotations

from omegaconf import DictConfig

from genimg.api.evaluate import measure
from genimg.config.compose import Composition


def evaluate(composed: DictConfig) -> dict[str, float]:
    """Print the metrics of a checkpoint or of any images, or what two results have in common."""
    result = measure(Composition.of_hydra(composed))
    return {} if result is None else result.values
