"""The loss of diffusion and flow-matching models: a weighted squared error of what the network predicts."""

from __future__ import annotations

from torch import Tensor

WEIGHTINGS = ("plain", "min_snr", "soft_min_snr")
REDUCTIONS = ("mean", "sum")


class DenoisingLoss:
    """The squared error of a network's prediction, averaged over images.

    Args:
        weighting: Weight of each image by its signal-to-noise ratio, SNR = (scale / sigma)^2. ``plain``: 1 for the error of the
            prediction itself. ``min_snr``: min(SNR, gamma) for the error of the image (Hang et al. 2023, equation 8).
            ``soft_min_snr``: its smooth form, SNR gamma / (SNR + gamma) (Crowson et al. 2024, section 4.3).
        gamma: Upper limit of the weight, above 0; 5 in the paper of Hang et al. None for ``plain``.
        reduction: ``mean`` or ``sum`` over pixels and channels.

    Raises:
        ValueError: If a setting is unknown or has no effect.
    """

    def __init__(self, *, weighting: str, gamma: float | None, reduction: str) -> None:
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting={weighting} is unknown: choose one of {', '.join(WEIGHTINGS)}")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction={reduction} is unknown: choose one of {', '.join(REDUCTIONS)}")
        if (weighting == "plain") != (gamma is None):
            given = "null" if gamma is None else gamma
            raise ValueError(f"gamma={given} does not match weighting={weighting}: plain needs null, the others a number")
        if gamma is not None and not gamma > 0:
            raise ValueError(f"gamma={gamma} must be above 0")
        self.weighting, self.gamma, self.reduction = weighting, gamma, reduction

    def weights(self, scale: Tensor, sigma: Tensor, factor: Tensor) -> Tensor:
        """Return the weights of the squared errors of outputs.

        Args:
            scale, sigma: Factors of image and noise [N].
            factor: Derivative of the image's estimate by the output [N].
        """
        if self.gamma is None:
            return scale.new_ones(scale.shape)
        signal, noise = scale.square(), sigma.square()
        if self.weighting == "min_snr":
            limited = (signal / noise).clamp(max=self.gamma)
        else:
            limited = signal * self.gamma / (signal + self.gamma * noise)
        return limited * factor.square()

    def of_images(self, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the squared error of each image, float32 [N], without weights.

        Args:
            output, target: Prediction and its target [N, C, H, W].
            mask: Mask of the pixels that count, bool [N, 1, H, W]; None for all. An image without any has an error of 0.
        """
        error = (output.float() - target.float()).square()
        if mask is None:
            return error.flatten(1).mean(dim=1) if self.reduction == "mean" else error.flatten(1).sum(dim=1)
        total = (error * mask).flatten(1).sum(dim=1)
        if self.reduction == "sum":
            return total
        return total / (mask.flatten(1).sum(dim=1) * error.shape[1]).clamp(min=1)
