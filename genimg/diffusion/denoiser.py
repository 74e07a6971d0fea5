"""A network with its path and the meaning of its output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genimg.diffusion.paths import Path
from genimg.diffusion.predictions import Prediction, prediction_of, require_fitting_prediction


class Denoiser(nn.Module):
    """A network that takes x_t, scaled to about unit variance, and from whose output the image is estimated.

    Args:
        network: Network, (inputs [N, C, H, W], embedded time [N], condition, keep [N] or None) -> output [N, C, H, W].
        path: Path from image to noise.
        prediction: What the output is, one of ``predictions.PREDICTIONS``.
        sigma_data: Standard deviation of the data, for ``edm``.

    Raises:
        ValueError: If the prediction is unknown, or does not determine the image at every time of the path.
    """

    def __init__(self, network: nn.Module, path: Path, prediction: str, sigma_data: float) -> None:
        super().__init__()
        require_fitting_prediction(prediction, path)
        self.network = network
        self.path = path
        self.prediction = prediction
        self.sigma_data: Tensor
        self.register_buffer("sigma_data", torch.tensor(sigma_data))

    def forward(
        self, noisy: Tensor, time: Tensor, condition: Tensor, keep: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """Return the network's output, float32 [N, C, H, W].

        Args:
            noisy: x_t, float32 [N, C, H, W].
            time: Times [N].
            condition: Raw conditions of the network [N, ...].
            keep: 0 where the condition is to be ignored [N]; None for nowhere.
            augment: Labels of the images' augmentation [N, L], for a network with such labels; None for no augmentation.
        """
        inputs = self._prediction.input_scale(*self._factors(time)) * noisy
        labels = () if augment is None else (augment,)
        output: Tensor = self.network(inputs, self.path.embedded(time), condition, keep, *labels)
        return output.float()

    def estimate(self, noisy: Tensor, time: Tensor, condition: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the expected images [N, C, H, W] of which x_t consists; see ``forward``."""
        scale, sigma = self._factors(time)
        prediction, output = self._prediction, self(noisy, time, condition, keep)
        return prediction.skip(scale, sigma) * noisy + prediction.factor(scale, sigma) * output

    def mixed(self, image: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return x_t of images and noise [N, C, H, W] at times [N]."""
        scale, sigma = self._factors(time)
        return scale * image + sigma * noise

    def target(self, image: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the output for which the estimate is the image; see ``mixed``."""
        return self._prediction.target(image, noise, *self._factors(time))

    def factor(self, time: Tensor) -> Tensor:
        """Return the derivative [N] of the estimate by the output at times [N]."""
        return self._prediction.factor(self.path.scale(time), self.path.sigma(time))

    @property
    def _prediction(self) -> Prediction:
        return prediction_of(self.prediction, self.sigma_data)

    def _factors(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and sigma at times [N], each [N, 1, 1, 1]."""
        return self.path.scale(time)[:, None, None, None], self.path.sigma(time)[:, None, None, None]
