"""Edge detectors that run on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg.data.tasks.colorspaces import luma
from genimg.data.tasks.filters import along_gradient, dilated, gaussian_blur, gaussian_radius, sobel

_REACH = 32  # maximum number of pixels over which a weak edge is followed from a strong one


class Sobel:
    """Gradient magnitude of the luma: -1 in constant areas, 1 at the steepest possible edge, between black and white."""

    radius = 1

    def __call__(self, images: Tensor) -> Tensor:
        """Return the edges [N, 1, H, W] in [-1, 1] of images [N, C, H, W] in [-1, 1]."""
        down, right = sobel(luma(images) / 2.0)
        return torch.sqrt((down**2 + right**2) / 2.0) * 2.0 - 1.0


class Canny:
    """Thin edges: 1 on an edge, -1 elsewhere (Canny 1986, "A computational approach to edge detection").

    Args:
        sigma: Standard deviation in pixels of the Gaussian blur before the gradient.
        low, high: Gradients of weak and of strong edges; 1 is the gradient of a sharp step from black to white, without
            smoothing.
    """

    def __init__(self, *, sigma: float, low: float, high: float) -> None:
        if not 0 < sigma < float("inf"):
            raise ValueError(f"sigma={sigma} must be more than 0 pixels")
        if not 0 < low <= high <= 1:
            raise ValueError(f"low={low} and high={high} must be more than 0 and at most 1, and low must not exceed high")
        self.sigma = sigma
        self.low = low
        self.high = high
        self.radius = gaussian_radius(sigma)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the edges [N, 1, H, W], -1 or 1, of images [N, C, H, W] in [-1, 1]."""
        grey = luma(images) / 2.0
        smooth = gaussian_blur(grey, grey.new_full((len(grey),), self.sigma), self.radius)
        # Quantised, because rounding errors must not decide between the two equally steep sides of a symmetric edge.
        down, right = (gradient.mul(2.0**16).round() * 2.0**-16 for gradient in sobel(smooth))
        magnitude = torch.sqrt(down**2 + right**2)
        before, after = along_gradient(magnitude, down, right)
        thin = (magnitude >= before) & (magnitude > after)
        weak, edges = (thin & (magnitude >= self.low)).float(), (thin & (magnitude >= self.high)).float()
        for _ in range(_REACH):
            edges = weak * dilated(edges)
        return edges * 2.0 - 1.0
