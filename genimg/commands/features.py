"""genimg-features: train a classifier on labelled images and write it with the evaluation config that uses it."""

from __future__ import annotations

from omegaconf import DictConfig

from genimg.api.train_features import train_feature_classifier
from genimg.config.options import read_options
from genimg.config.schema.commands import Features


def train_features(composed: DictConfig) -> None:
    """Train the classifier that the options describe."""
    train_feature_classifier(*read_options(composed, Features, ("data", "evaluation")))
