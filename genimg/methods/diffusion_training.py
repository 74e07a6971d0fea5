"""Training of a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from genimg.diffusion.denoiser import Denoiser, Source
from genimg.diffusion.noise import AUGMENT, NOISE, TIME, normal
from genimg.diffusion.times import Times
from genimg.errors import ConfigError
from genimg.losses.denoising import DenoisingLoss
from genimg.methods.labelled_augment import LabelledAugment
from genimg.networks.magnitude_preserving_unet import Uncertainty
from genimg.utils.rng import mixed_keys


def require_network_settings(network: nn.Module, needed: Mapping[str, int]) -> None:
    """Check that a network has the settings that a method needs, such as ``num_times``. A network without a setting passes.

    Args:
        network: Network.
        needed: Value of each setting by name.

    Raises:
        ConfigError: If a setting has another value.
    """
    for name, value in needed.items():
        if (given := getattr(network, name, value)) != value:
            raise ConfigError(f"network.{name}={given} does not work with this method: set {value}", key=f"network.{name}")


@dataclass(frozen=True)
class DenoisingObjective:
    """The weighted squared error of a denoiser at random times.

    Attributes:
        denoiser: Network that is trained.
        times: Distribution of the times.
        loss: Weighted squared error of its output.
        augment: Augmentation of the images, whose labels the network receives; None for none.
        uncertainty: Network that predicts the logarithm of the expected error at each time. In training, the error is divided
            by the expected one, so all times matter equally (Karras et al. 2024, section 2.2). None for no division.

    Raises:
        ConfigError: If the times do not fit the denoiser's path, or the network does not take the augmentation's labels.
    """

    denoiser: Denoiser
    times: Times
    loss: DenoisingLoss
    augment: LabelledAugment | None = None
    uncertainty: Uncertainty | None = None

    def __post_init__(self) -> None:
        given = getattr(self.denoiser.network, "augment_dim", 0)
        needed = 0 if self.augment is None else self.augment.num_labels
        if given != needed:
            raise ConfigError(
                f"network.augment_dim={given} must be {needed}, the number of augmentation labels", key="network.augment_dim"
            )
        try:
            self.times.check(self.denoiser.path)
        except ValueError as error:
            raise ConfigError(f"times do not fit the path: {error}", key="times") from error

    @property
    def description(self) -> str:
        """What the loss is, for records."""
        loss, times = self.loss, type(self.times).__name__
        weighting = loss.weighting if loss.gamma is None else f"{loss.weighting} {loss.gamma:g}"
        path = type(self.denoiser.path).__name__
        return f"{self.denoiser.prediction} on {path}, {weighting}, {loss.reduction}, {times} times"

    def losses(
        self,
        image: Tensor,
        key: Tensor,
        condition: Tensor,
        keep: Tensor | None,
        source: Source | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return the losses [N] of images [N, C, H, W]; ``key``, int64 [N], determines their augmentation, noise and times.

        If ``noise`` [N, C, H, W] is given, the noise does not depend on the key.
        """
        labels = None
        if self.augment is not None:
            image, labels = self.augment(image, mixed_keys(key, AUGMENT))
        time = self.times.at(mixed_keys(key, TIME), self.denoiser.path)
        noise = normal(mixed_keys(key, NOISE), image.shape[1:]) if noise is None else noise
        losses = self.losses_at(image, noise, time, condition, keep, source, labels)
        if self.uncertainty is None:
            return losses
        logarithm = self.uncertainty(self.denoiser.path.embedded(time))
        return losses / logarithm.exp() + logarithm * (1 if self.loss.reduction == "mean" else image[0].numel())

    def losses_at(
        self,
        image: Tensor,
        noise: Tensor,
        time: Tensor,
        condition: Tensor,
        keep: Tensor | None,
        source: Source | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the losses [N] of images mixed with noise, both [N, C, H, W], at times [N]; see ``Denoiser``.

        If some pixels of the source are missing, only these count.
        """
        denoiser, path = self.denoiser, self.denoiser.path
        if source is not None and source.end is not None:
            image = image - source.end
        output = denoiser(denoiser.mixed(image, noise, time), time, condition, keep, source, labels)
        weights = self.loss.weights(path.scale(time), path.sigma(time), denoiser.factor(time))
        missing = None if source is None else source.missing
        return weights * self.loss.of_images(output, denoiser.target(image, noise, time), missing)
