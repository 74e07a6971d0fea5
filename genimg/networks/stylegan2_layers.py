"""Layers of StyleGAN2: equalised learning rates, modulated convolution, synthesis blocks, minibatch standard deviation.

Karras et al. 2020 ("Analyzing and improving the image quality of StyleGAN"), with the constants of the paper's PyTorch code.
Leaky ReLU's gain of sqrt(2) is part of the layer before it. This is equivalent, because max(x, 0.2 x) is homogeneous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.conditioning import ClassColumns
from genimg.networks.resampling import Blur, Downsample, Upsample

FILTER = (1, 3, 3, 1)
LEAKY_GAIN = math.sqrt(2.0)


def normalise_second_moment(vector: Tensor) -> Tensor:
    """Scale vectors [N, D] to a mean square of 1 over D. Karras et al. 2018 (progressive growing), section 4.2."""
    return vector * (vector.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class EqualisedLinear(nn.Module):
    """A linear layer with weights N(0, 1) / rate, which are multiplied by rate / sqrt(inputs) in the forward.

    Adam's steps do not depend on a gradient's scale, so all weights learn at the same speed, times ``rate``.
    Karras et al. 2018 (progressive growing), section 4.1; the rate is Karras et al. 2019 (StyleGAN), appendix C.

    Args:
        inputs, outputs: Numbers of features.
        bias: Initial bias.
        rate: Learning-rate multiplier.
        gain: Gain of the output.
    """

    class_columns = ClassColumns(power=-0.5)  # if the inputs are classes

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.weight_scale = gain * rate / math.sqrt(inputs)
        self.bias_scale = gain * rate

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, inputs] to [N, outputs]."""
        return F.linear(features, self.weight * self.weight_scale, self.bias * self.bias_scale)


class EqualisedConv2d(nn.Module):
    """A convolution with weights N(0, 1), which are divided by the square root of the fan-in in the forward.

    Args:
        inputs, outputs: Numbers of channels.
        kernel_size: Kernel size.
        stride: Stride; with 2 there is no padding, because the ``Blur`` before it pads.
        bias: Whether to add a bias, which starts at 0.
        gain: Gain of the output.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, *, stride: int = 1, bias: bool = True, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.weight_scale = gain / math.sqrt(inputs * kernel_size**2)
        self.bias_scale = gain
        self.stride = stride
        self.padding = kernel_size // 2 if stride == 1 else 0

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H', W']."""
        bias = None if self.bias is None else self.bias * self.bias_scale
        return F.conv2d(features, self.weight * self.weight_scale, bias, stride=self.stride, padding=self.padding)


class ClampedLeakyReLU(nn.Module):
    """max(x, 0.2 x), clamped to +-limit to keep half precision in range: ``conv_clamp`` of StyleGAN2-ADA's code.

    Args:
        limit: Maximum magnitude of the output.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, features: Tensor) -> Tensor:
        return F.leaky_relu(features, 0.2, inplace=True).clamp(-self.limit, self.limit)


class ModulatedConv2d(nn.Module):
    """A convolution that scales the input channels by a style for each sample, and the output back to unit variance.

    Karras et al. 2020, section 2.2, equations 1 and 3. Scaling the features before and after one convolution is equivalent to
    the paper's grouped convolution with weights for each sample, and was 1.1 to 28 times faster on a CPU.

    Args:
        inputs, outputs: Numbers of channels.
        kernel_size: Kernel size.
        style_dim: Number of style dimensions W.
        upsample: Whether to double height and width by a transposed convolution followed by ``FILTER``.
        demodulate: Whether to scale the output; otherwise the weights are scaled as in ``EqualisedConv2d``.
        gain: Gain of the output.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, *, style_dim: int, upsample: bool, demodulate: bool, gain: float
    ) -> None:
        super().__init__()
        self.affine = EqualisedLinear(style_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.blur = Blur(FILTER, padding=len(FILTER) // 2 - 1, gain=4.0) if upsample else None
        self.demodulate = demodulate
        self.gain = gain
        self.weight_scale = gain / math.sqrt(inputs * kernel_size**2)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Map features [N, inputs, H, W] and styles [N, W] to [N, outputs, H, W], or twice the size."""
        with torch.autocast(style.device.type, enabled=False):  # in bfloat16 squares would be off by 1 %
            scale = self.affine(style)  # [N, inputs]
            if self.demodulate:
                power = self.weight.square().sum(dim=(2, 3))  # [outputs, inputs]
                output_scale = self.gain * (scale.square() @ power.t() + 1e-8).rsqrt()  # [N, outputs]
            else:
                scale = scale * self.weight_scale
        features = features * scale.to(features.dtype)[:, :, None, None]
        if self.blur is None:
            features = F.conv2d(features, self.weight, padding=self.weight.shape[2] // 2)
        else:
            features = self.blur(F.conv_transpose2d(features, self.weight.transpose(0, 1), stride=2))
        bias = (self.bias * self.gain).to(features.dtype)[:, None, None]
        if self.demodulate:
            return torch.addcmul(bias, features, output_scale.to(features.dtype)[:, :, None, None])
        return features + bias


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise for every pixel, and leaky ReLU. Karras et al. 2020, figure 2c.

    Args:
        inputs, outputs: Numbers of channels.
        size: Height and width of the output.
        style_dim: Number of style dimensions W.
        upsample: Whether the input has half that size.
        conv_clamp: Maximum magnitude of the output.
    """

    noise: Tensor

    def __init__(
        self, inputs: int, outputs: int, size: tuple[int, int], *, style_dim: int, upsample: bool, conv_clamp: float
    ) -> None:
        super().__init__()
        self.convolution = ModulatedConv2d(
            inputs, outputs, 3, style_dim=style_dim, upsample=upsample, demodulate=True, gain=LEAKY_GAIN
        )
        self.register_buffer("noise", torch.randn(1, 1, *size))  # fixed, for one image per latent, as in exported files
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.activation = ClampedLeakyReLU(conv_clamp)

    def forward(self, features: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map features [N, inputs, H, W] and styles [N, W] to [N, outputs, H, W], or to twice the size.

        Args:
            noise: Noise that broadcasts to [N, 1, H, W] of the output; None draws it in training and uses the buffer otherwise.
        """
        features = self.convolution(features, style)
        if noise is None:
            noise = self.noise.new_empty(len(features), *self.noise.shape[1:]).normal_() if self.training else self.noise
        return self.activation(features + (noise * (LEAKY_GAIN * self.noise_strength)).to(features.dtype))


class SynthesisBlock(nn.Module):
    """The layers of one resolution and their contribution to the image: Karras et al. 2020, figure 7b ("skip" generator).

    Args:
        inputs, outputs: Numbers of channels.
        size: Height and width of the output.
        image_channels: Number of image channels C.
        style_dim: Number of style dimensions W.
        upsample: Whether the input has half that size. It is false in the first block, which has one layer fewer.
        conv_clamp: Maximum magnitude of each layer's output.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: tuple[int, int],
        *,
        image_channels: int,
        style_dim: int,
        upsample: bool,
        conv_clamp: float,
    ) -> None:
        super().__init__()
        last = SynthesisLayer(outputs, outputs, size, style_dim=style_dim, upsample=False, conv_clamp=conv_clamp)
        self.layers = nn.ModuleList([last])
        if upsample:
            first = SynthesisLayer(inputs, outputs, size, style_dim=style_dim, upsample=True, conv_clamp=conv_clamp)
            self.layers.insert(0, first)
        self.to_image = ModulatedConv2d(
            outputs, image_channels, 1, style_dim=style_dim, upsample=False, demodulate=False, gain=1.0
        )
        self.upsample = Upsample(FILTER)
        self.conv_clamp = conv_clamp

    def forward(
        self, features: Tensor, image: Tensor | None, styles: Tensor, noise: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features and image at this size, given those of the previous block, styles [N, layers + 1, W] and noise."""
        for number, layer in enumerate(self.layers):
            features = layer(features, styles[:, number], None if noise is None else noise[number])
        added = self.to_image(features, styles[:, -1]).clamp(-self.conv_clamp, self.conv_clamp)
        added = added.to(styles.dtype)  # images are summed in float32
        return features, added if image is None else self.upsample(image) + added


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions, the second of which halves the size: Karras et al. 2020, figure 7.

    Args:
        inputs, outputs: Numbers of channels.
        residual: Whether to add a 1x1 convolution of the input, with both divided by sqrt(2) (figure 7c).
        conv_clamp: Maximum magnitude of each layer's output.
    """

    def __init__(self, inputs: int, outputs: int, *, residual: bool, conv_clamp: float) -> None:
        super().__init__()
        share = math.sqrt(0.5) if residual else 1.0
        self.main = nn.Sequential(
            EqualisedConv2d(inputs, inputs, 3, gain=LEAKY_GAIN),
            ClampedLeakyReLU(conv_clamp),
            Blur(FILTER, padding=len(FILTER) // 2, gain=1.0),
            EqualisedConv2d(inputs, outputs, 3, stride=2, gain=LEAKY_GAIN * share),
            ClampedLeakyReLU(conv_clamp * share),
        )
        self.shortcut = (
            nn.Sequential(Downsample(FILTER), EqualisedConv2d(inputs, outputs, 1, bias=False, gain=share)) if residual else None
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/2, W/2]."""
        main = self.main(features)
        return main if self.shortcut is None else main + self.shortcut(features)


class MinibatchStandardDeviation(nn.Module):
    """Appends a channel: the standard deviation over a group of samples, averaged over all features.

    Karras et al. 2018 (progressive growing), section 3. The groups of a batch are interleaved, as in the paper's code.

    Args:
        group_size: Maximum number of samples in a group; the largest number up to it that divides the batch is used.
    """

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C + 1, H, W]."""
        n, _, h, w = features.shape
        size = next(size for size in range(min(self.group_size, n), 0, -1) if n % size == 0)
        groups = features.unflatten(0, (size, n // size))  # [size, N / size, C, H, W]
        variance = groups.var(dim=0, correction=0)
        deviation = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))  # [N / size]
        channel = deviation.repeat(size)[:, None, None, None].expand(-1, -1, h, w)  # [N, 1, H, W]
        return torch.cat([features, channel], dim=1)
