"""A conditional random field as the last layer of a translator; it smooths over pixels that are similar in a guide image.

The kernels follow Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials", NIPS 2011.
The unrolled mean field follows Zheng et al., "Conditional random fields as recurrent neural networks", ICCV 2015. The truncated
neighbourhood follows Teichmann & Cipolla, "Convolutional CRFs for semantic segmentation", 2018. Those fields label pixels. This
one has continuous values, so its energy is quadratic and its mean field linear.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.errors import ConfigError


class ConditionalRandomField(nn.Module):
    """Mean field of a Gaussian field around an image z, after a fixed number of parallel updates from x = z.

    The energy is sum_i (x_i - z_i)^2 + sum_{i<j} k_ij (x_i - x_j)^2 with, for pixels p_i and p_j of a guide image g,

        k_ij = w_b exp(-|p_i - p_j|^2 / 2 theta_a^2 - |g_i - g_j|^2 / 2 theta_b^2) + w_s exp(-|p_i - p_j|^2 / 2 theta_g^2),

    Krähenbühl & Koltun's equation 3. An update is x_i <- (z_i + sum_j k_ij x_j) / (1 + sum_j k_ij). Every result is an average
    of z's values, so it stays in their range. The updates converge to the minimum of the energy. All five kernel parameters are
    learnt as logarithms. The unary term has weight 1, because only ratios to it matter.

    The sum covers a window around i within the image, not all pixels. The forward pass needs memory for window^2 - 1 maps of
    one channel. With gradients it needs twice as many maps, and two images for every update.

    Args:
        window: Side of the neighbourhood in pixels, odd.
        num_iterations: Number of updates. Each moves information by (window - 1) / 2 pixels.
        bilateral_weight: Initial w_b.
        bilateral_width: Initial theta_a, in pixels.
        guide_width: Initial theta_b, in units of the guide, whose values are in [-1, 1]; the distance is over all channels.
        spatial_weight: Initial w_s.
        spatial_width: Initial theta_g, in pixels.

    Raises:
        ValueError: If a setting is out of range.
    """

    def __init__(
        self,
        *,
        window: int,
        num_iterations: int,
        bilateral_weight: float,
        bilateral_width: float,
        guide_width: float,
        spatial_weight: float,
        spatial_width: float,
    ) -> None:
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window={window} must be odd and 3 or more")
        if num_iterations < 1:
            raise ValueError(f"num_iterations={num_iterations} must be 1 or more")
        self.radius = window // 2
        self.num_iterations = num_iterations
        self.log_bilateral_weight = _logarithm("bilateral_weight", bilateral_weight)
        self.log_bilateral_width = _logarithm("bilateral_width", bilateral_width)
        self.log_guide_width = _logarithm("guide_width", guide_width)
        self.log_spatial_weight = _logarithm("spatial_weight", spatial_weight)
        self.log_spatial_width = _logarithm("spatial_width", spatial_width)

    def forward(self, image: Tensor, guide: Tensor) -> Tensor:
        """Refine images [N, C, H, W] by guides [N, G, H, W], both in [-1, 1]; always in float32, even under autocast.

        Raises:
            ConfigError: If the guide differs from the image in number, height or width.
        """
        if (image.shape[0], image.shape[2:]) != (guide.shape[0], guide.shape[2:]):
            raise ConfigError(
                f"a conditional random field cannot guide images of shape {list(image.shape)} by {list(guide.shape)}: number, "
                "height and width must be the same"
            )
        dtype = self.log_guide_width.dtype
        # In bfloat16 the sums over a window of 7 are off by up to 0.04, which is five of 256 grey levels.
        with torch.autocast(image.device.type, enabled=False):
            return self._mean_field(image.to(dtype), guide.to(dtype))

    def _mean_field(self, unary: Tensor, guide: Tensor) -> Tensor:
        """Return the mean after ``num_iterations`` updates, [N, C, H, W]."""
        (height, width), radius = unary.shape[2:], self.radius
        kernels = self._kernels(guide)
        precision = 1 + sum(kernel for _, _, kernel in kernels)
        mean = unary
        for _ in range(self.num_iterations):
            padded = F.pad(mean, [radius] * 4)
            message = unary
            for down, right, kernel in kernels:
                top, left = radius + down, radius + right
                # The neighbours are views, so autograd keeps one padded image for all of them.
                message = torch.addcmul(message, kernel, padded[:, :, top : top + height, left : left + width])
            mean = message / precision
        return mean

    def _kernels(self, guide: Tensor) -> list[tuple[int, int, Tensor]]:
        """Return (down, right, k [N, 1, H, W]) for every offset in the window; k is 0 for neighbours outside the image."""
        height, width = guide.shape[2:]
        kernels = []
        for down in range(self.radius + 1):
            for right in range(-self.radius, self.radius + 1):
                # k_ij = k_ji, so half of the window is enough. Offsets larger than the image never have a neighbour.
                if (down, right) <= (0, 0) or down >= height or abs(right) >= width:
                    continue
                left, outside = max(right, 0), max(-right, 0)
                first = guide[:, :, : height - down, outside : width - left]
                second = guide[:, :, down:, left : width - outside]
                kernel = self._kernel(down**2 + right**2, (first - second).square().sum(1, keepdim=True))
                kernels.append((down, right, F.pad(kernel, [outside, left, 0, down])))  # at the first of each pair
                kernels.append((-down, -right, F.pad(kernel, [left, outside, down, 0])))  # at the second
        return kernels

    def _kernel(self, distance: int, difference: Tensor) -> Tensor:
        """Return k for a squared distance in pixels and a squared difference of the guide's values [N, 1, H, W]."""
        near = self.log_bilateral_weight - distance / 2 * torch.exp(-2 * self.log_bilateral_width)
        alike = difference / 2 * torch.exp(-2 * self.log_guide_width)
        spatial = torch.exp(self.log_spatial_weight - distance / 2 * torch.exp(-2 * self.log_spatial_width))
        return torch.exp(near - alike) + spatial


class WithCRF(nn.Module):
    """A translator followed by a conditional random field that is guided by the source images, with all their channels.

    Args:
        translator: Network from source images to images of the same height and width in [-1, 1]. This network has the same
            ``size_divisor``, or 1 if the translator has none.
        crf: Conditional random field.
    """

    def __init__(self, *, translator: nn.Module, crf: ConditionalRandomField) -> None:
        super().__init__()
        self.translator = translator
        self.crf = crf
        self.size_divisor: int = getattr(translator, "size_divisor", 1)

    def forward(self, source: Tensor) -> Tensor:
        """Translate images [N, C, H, W] in [-1, 1] into [N, C', H, W] in [-1, 1]."""
        refined: Tensor = self.crf(self.translator(source), source)
        return refined


def _logarithm(name: str, value: float) -> nn.Parameter:
    """Return a learnt number that stays positive."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value} must be above 0 and finite: it is learnt as a logarithm")
    return nn.Parameter(torch.tensor(math.log(value)))
