"""A network with its path and the meaning of its output."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from genimg.diffusion.paths import Path
from genimg.diffusion.predictions import Prediction, prediction_of, require_fitting_prediction
from genimg.utils.exact import double


@dataclass(frozen=True)
class Source:
    """Input images of a translation, in the forms that a denoiser and its samplers use.

    Attributes:
        appended: Channels that the network sees after those of x_t: [N, S, H, W]; None for none.
        end: Images at the end of a bridge [N, C, H, W]; None on other paths.
        known: Images of which some pixels are known [N, C, H, W]; None if the whole image is to be made.
        missing: Mask of the unknown pixels of ``known``, bool [N, 1, H, W].
    """

    appended: Tensor | None = None
    end: Tensor | None = None
    known: Tensor | None = None
    missing: Tensor | None = None

    def completed(self, image: Tensor, *, clip: bool) -> Tensor:
        """Return estimates whose known pixels have the given values; on a bridge, estimates are differences from the source.

        Args:
            image: Estimates [N, C, H, W].
            clip: Whether to limit images to [-1, 1].
        """
        end = 0.0 if self.end is None else self.end
        image = image + end
        if clip:
            image = image.clamp(-1.0, 1.0)
        if self.known is not None:
            assert self.missing is not None
            image = torch.where(self.missing, image, self.known)
        return image - end


class Denoiser(nn.Module):
    """A network that takes x_t, scaled to about unit variance, and from whose output the image is estimated.

    Args:
        network: Network, (inputs [N, C, H, W], embedded time [N], condition, keep [N] or None) -> output [N, C, H, W].
        path: Path from image to noise.
        prediction: What the output is, one of ``predictions.PREDICTIONS``.
        sigma_data: Standard deviation of the data for ``edm``, or ``auto`` to measure it; None for other predictions.

    Attributes:
        measures_data: Whether sigma_data is measured.

    Raises:
        ValueError: If the prediction is unknown, does not determine the image at every time of the path, or does not match
            sigma_data.
    """

    sigma_data: Tensor

    def __init__(self, network: nn.Module, path: Path, prediction: str, sigma_data: float | str | None) -> None:
        super().__init__()
        require_fitting_prediction(prediction, path)
        if (prediction == "edm") != (sigma_data is not None):
            given = "null" if sigma_data is None else sigma_data
            raise ValueError(f"sigma_data={given} does not match prediction={prediction}: edm needs it, the others null")
        self.network = network
        self.path = path
        self.prediction = prediction
        self.measures_data = sigma_data == "auto"
        if sigma_data is None or self.measures_data:
            sigma_data = 0.5  # unused, or replaced before training
        elif isinstance(sigma_data, str) or not sigma_data > 0:
            raise ValueError(f"sigma_data={sigma_data} must be a number above 0, or auto")
        else:
            self.register_load_state_dict_post_hook(partial(_set_sigma_data, value=float(sigma_data)))
        self.register_buffer("sigma_data", torch.tensor(float(sigma_data)))

    def measure(self, data: Tensor) -> None:
        """Set sigma_data, if it is measured, to the standard deviation of data of any shape."""
        if self.measures_data:
            self.sigma_data.fill_(double(data).std(correction=0).clamp(min=1e-3))

    def forward(
        self,
        noisy: Tensor,
        time: Tensor,
        condition: Tensor,
        keep: Tensor | None = None,
        source: Source | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output, float32 [N, C, H, W].

        Args:
            noisy: x_t, float32 [N, C, H, W]; on a bridge, its difference from the source.
            time: Times [N].
            condition: Raw conditions of the network [N, ...].
            keep: 0 where the condition is to be ignored [N]; None for nowhere.
            source: The source; None for a model without one.
            augment: Labels of the images' augmentation [N, L], for a network with such labels; None for no augmentation.
        """
        if source is not None and source.end is not None:
            inputs = noisy + source.end
        else:
            inputs = self._prediction.input_scale(*self._factors(time)) * noisy
        if source is not None and source.appended is not None:
            inputs = torch.cat([inputs, source.appended], dim=1)
        labels = () if augment is None else (augment,)
        output: Tensor = self.network(inputs, self.path.embedded(time), condition, keep, *labels)
        return output.float()

    def estimate(
        self, noisy: Tensor, time: Tensor, condition: Tensor, keep: Tensor | None = None, source: Source | None = None
    ) -> Tensor:
        """Return the expected images [N, C, H, W] of which x_t consists; see ``forward``."""
        scale, sigma = self._factors(time)
        prediction, output = self._prediction, self(noisy, time, condition, keep, source)
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
        return prediction_of(self.prediction, self.sigma_data, self.path)

    def _factors(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and sigma at times [N], each [N, 1, 1, 1]."""
        return self.path.scale(time)[:, None, None, None], self.path.sigma(time)[:, None, None, None]


def _set_sigma_data(denoiser: nn.Module, _: object, *, value: float) -> None:
    """Keep a given sigma_data if the weights come from a model with another one."""
    assert isinstance(denoiser, Denoiser)
    denoiser.sigma_data.fill_(value)
