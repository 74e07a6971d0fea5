"""Common code of methods that may be conditioned on labels or captions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from genimg.data.subsets import random_labels
from genimg.errors import CheckpointError
from genimg.methods.base import Method
from genimg.methods.export_spec import Port, integer_port
from genimg.networks.conditioning import ConditionEncoder
from genimg.networks.text import TextEncoder
from genimg.types import Batch
from genimg.utils.images import class_rows
from genimg.utils.rng import Stream, uniform


class ConditionalMethod(Method):
    """A method whose networks encode their own conditions, and that samples conditions as often as they occur in the data.

    A subclass calls ``_read_conditions`` once, after it has built its networks.
    """

    condition_bank_size: ClassVar[int] = 4096
    num_classes: int

    def _read_conditions(self, encoder: ConditionEncoder) -> None:
        """Set up the conditions that ``encoder`` reads, if any, for batches, draws and the checkpoint."""
        self._fit = encoder.fitted
        self._condition = encoder.of
        self.condition_key = encoder.key
        self.batch_keys = ("image",) if encoder.key is None else ("image", encoder.key)
        self.num_classes = encoder.num_classes
        # The distribution of conditions: the number of images of each class, or some of the data's captions. The shapes do
        # not depend on the data, so a checkpoint loads without it.
        self.class_counts: Tensor
        self.conditions: Tensor
        self.register_buffer("class_counts", torch.ones(self.num_classes, dtype=torch.int64))
        self.register_buffer("conditions", encoder.blank(0 if self.num_classes else self.condition_bank_size))

    @abstractmethod
    def sample(self, batch: Batch, options: Any = None) -> Tensor:
        """Generate images; see ``capabilities.Generates``."""

    def before_sampling(self) -> None:
        """Prepare for sampling with weights that have changed, without randomness."""

    def set_condition_bank(self, batch: Batch) -> None:
        if self.num_classes:
            self.class_counts.copy_(torch.bincount(batch["label"], minlength=self.num_classes))
        elif self.condition_key is not None:
            self.conditions.copy_(self._fit(batch[self.condition_key]))

    def _draw_conditions(self, indices: Sequence[int], seed: int) -> Batch:
        """Draw conditions, if any, as often as they occur in the data; row i is a function of (seed, indices[i]) alone."""
        if self.condition_key is None:
            return {}
        chances = uniform(seed, Stream.CONDITION, np.asarray(indices, dtype=np.int64))
        if self.num_classes:
            bounds = self.class_counts.cpu().numpy().cumsum()
            labels = np.searchsorted(bounds, np.floor(chances * bounds[-1]), side="right")
            return {self.condition_key: torch.from_numpy(labels).to(self.class_counts.device)}
        rows = torch.from_numpy((chances * self.condition_bank_size).astype(np.int64)).to(self.conditions.device)
        return {self.condition_key: self.conditions[rows]}

    def random_labels(self, count: int, seed: int) -> Tensor | None:
        if not self.num_classes:
            return None
        return torch.from_numpy(random_labels(count, self.class_counts.cpu().numpy(), seed=seed))

    def _with_conditions(self, image: Tensor) -> Batch:
        """Add conditions, if the method reads any, to images [N, C, H, W], for a check of the networks."""
        return {"image": image} | self._draw_conditions(range(len(image)), 0)

    def _sample_by_class(self, drawn: Batch, options: Any = None) -> Tensor:
        """Sample images for a preview; with labels, one class per row: [rows, columns, C, H, W]."""
        if not self.num_classes:
            return self.sample(drawn, options)
        rows = class_rows(len(drawn["label"]), self.num_classes).to(drawn["label"].device)
        kept = {key: value[: rows.numel()] for key, value in drawn.items()} | {"label": rows.flatten()}
        return self.sample(kept, options).unflatten(0, rows.shape)


def shared_encoder(**networks: nn.Module) -> ConditionEncoder:
    """Return the condition encoder of the first network.

    Args:
        networks: One or more networks, by the names of the parameters that hold them.

    Raises:
        ValueError: If a network has no encoder, or the encoders read different keys of the batch.
    """
    encoders = {name: _encoder_of(name, network) for name, network in networks.items()}
    (first, encoder), *others = encoders.items()
    for other, its_own in others:
        if its_own.key != encoder.key and None in (its_own.key, encoder.key):
            blind, reader = (first, other) if encoder.key is None else (other, first)
            raise ValueError(
                f"{blind} reads no condition, but {reader} reads the {encoder.key or its_own.key} of each image: set "
                f"conditioning=none, or give the {blind} an attribute condition, an encoder"
            )
        if its_own.key != encoder.key:
            raise ValueError(
                f"{first}.condition and {other}.condition must read the same key of the batch: give both the same encoder"
            )
    return encoder


def condition_ports(network: nn.Module) -> tuple[Port, ...]:
    """Return the inputs of an exported network for the labels or captions that its encoder reads, if any.

    Raises:
        CheckpointError: If the encoder is not part of the network.
    """
    encoder = _encoder_of("network", network)
    if encoder.key is None:
        return ()
    if encoder.key == "label":
        return (integer_port("label", "class", encoder.num_classes),)
    if isinstance(encoder, TextEncoder):
        return (Port("caption", torch.uint8, ("batch", encoder.max_length), "UTF-8 bytes, padded with 0"),)
    raise CheckpointError(
        f"this model reads captions with {type(encoder).__name__}, which is not part of the checkpoint, so it cannot be "
        "exported; a model trained with conditioning=text can"
    )


def exported_condition(batch: Batch, latent: Tensor) -> Tensor:
    """Return the labels or captions of an exported network's batch, else an empty tensor [N, 0], for latents [N, Z]."""
    for key in ("label", "caption"):
        if key in batch:
            return batch[key]
    return latent.new_empty(latent.shape[0], 0)  # ``len`` would fix the batch size of a program


def _encoder_of(name: str, network: nn.Module) -> ConditionEncoder:
    encoder = getattr(network, "condition", None)
    if not isinstance(encoder, ConditionEncoder):
        raise ValueError(
            f"{name}.condition must be a ConditionEncoder (genimg.networks.conditioning), not a {type(encoder).__name__}; a "
            "network without this attribute is unconditional"
        )
    return encoder
