"""Networks with the tensors' names of the published code of StyleGAN2-ADA and R3GAN, computed in the papers' plain form.

Nothing here is optimised: per-sample weights are convolved sample by sample, and resampling inserts zeros and filters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
KERNEL = torch.outer(TAPS, TAPS) / 64


def filtered(x: Tensor, before: int, after: int) -> Tensor:
    """Pad by zeros and convolve each channel with the low-pass filter."""
    padded = F.pad(x, (before, after, before, after))
    return F.conv2d(padded.flatten(0, 1)[:, None], KERNEL[None, None]).unflatten(0, x.shape[:2])[:, :, 0]


def with_zeros(x: Tensor) -> Tensor:
    """Insert a zero after each pixel."""
    n, c, h, w = x.shape
    result = x.new_zeros(n, c, 2 * h, 2 * w)
    result[:, :, ::2, ::2] = x
    return result


def upsampled(x: Tensor) -> Tensor:
    return 4 * filtered(with_zeros(x), 2, 1)


def halved(x: Tensor) -> Tensor:
    return filtered(x, 1, 1)[:, :, ::2, ::2]


def unit(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()


class Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int, activation: str = "linear", rate: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs) / rate), nn.Parameter(torch.randn(outputs) / rate)
        self.activation, self.bias_gain = activation, rate

    def forward(self, x: Tensor) -> Tensor:
        x = x @ (self.weight * self.bias_gain / math.sqrt(self.weight.shape[1])).T + self.bias * self.bias_gain
        return F.leaky_relu(x, 0.2) * math.sqrt(2) if self.activation == "lrelu" else x


class Conv(nn.Module):
    """A layer of the discriminator."""

    def __init__(
        self, inputs: int, outputs: int, size: int, clamp: float | None, *, down: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None
        self.register_buffer("resample_filter", KERNEL.clone())
        self.conv_clamp, self.down = clamp, down

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        size = self.weight.shape[2]
        weight = self.weight / math.sqrt(self.weight[0].numel())
        if not self.down:
            x = F.conv2d(x, weight, padding=size // 2)
        elif size == 1:
            x = F.conv2d(halved(x), weight)
        else:
            x = F.conv2d(filtered(x, 2, 2), weight, stride=2)
        if self.bias is None:
            return x * gain
        x = F.leaky_relu(x + self.bias[:, None, None], 0.2) * math.sqrt(2) * gain
        return x if self.conv_clamp is None else x.clamp(-self.conv_clamp * gain, self.conv_clamp * gain)


class Modulated(nn.Module):
    def __init__(self, inputs: int, outputs: int, style: int, size: int) -> None:
        super().__init__()
        self.affine = Dense(style, inputs)
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs, size, size)), nn.Parameter(torch.randn(outputs))

    def convolved(self, x: Tensor, scales: Tensor, *, demodulate: bool, up: bool) -> Tensor:
        results = []
        for features, scale in zip(x, scales, strict=True):
            weight = self.weight * scale[:, None, None]
            if demodulate:
                weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
            if up:  # a convolution after upsampling, with the kernel mirrored
                results.append(F.conv2d(4 * filtered(with_zeros(features[None]), 3, 2), weight.flip(2, 3)))
            else:
                results.append(F.conv2d(features[None], weight, padding=self.weight.shape[2] // 2))
        return torch.cat(results)


class Layer(Modulated):
    def __init__(self, inputs: int, outputs: int, style: int, resolution: int, clamp: float | None, *, up: bool) -> None:
        super().__init__(inputs, outputs, style, 3)
        self.register_buffer("resample_filter", KERNEL.clone())
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.noise_strength = nn.Parameter(torch.randn(()))
        self.conv_clamp, self.up, self.activation = clamp, up, "lrelu"

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = self.convolved(x, self.affine(w), demodulate=True, up=self.up) + self.noise_const * self.noise_strength
        x = F.leaky_relu(x + self.bias[:, None, None], 0.2) * math.sqrt(2)
        return x if self.conv_clamp is None else x.clamp(-self.conv_clamp, self.conv_clamp)


class ToImage(Modulated):
    def __init__(self, inputs: int, channels: int, style: int, clamp: float | None) -> None:
        super().__init__(inputs, channels, style, 1)
        self.conv_clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        scales = self.affine(w) / math.sqrt(self.weight.shape[1])
        x = self.convolved(x, scales, demodulate=False, up=False) + self.bias[:, None, None]
        return x if self.conv_clamp is None else x.clamp(-self.conv_clamp, self.conv_clamp)


class Mapping(nn.Module):
    def __init__(self, latent: int, classes: int, width: int, layers: int, *, has_average: bool, rate: float = 0.01) -> None:
        super().__init__()
        self.num_layers = layers
        if classes:
            self.embed = Dense(classes, width)
        inputs = latent + (width if classes else 0)
        for number in range(layers):
            setattr(self, f"fc{number}", Dense(inputs if number == 0 else width, width, "lrelu", rate))
        if has_average:
            self.register_buffer("w_avg", torch.randn(width))

    def forward(self, z: Tensor | None, c: Tensor) -> Tensor:
        x = torch.cat([*([] if z is None else [unit(z)]), *([unit(self.embed(c))] if hasattr(self, "embed") else [])], dim=1)
        for number in range(self.num_layers):
            x = getattr(self, f"fc{number}")(x)
        return x


class SynthesisBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, style: int, resolution: int, channels: int, clamp: float | None) -> None:
        super().__init__()
        self.register_buffer("resample_filter", KERNEL.clone())
        if inputs:
            self.conv0 = Layer(inputs, outputs, style, resolution, clamp, up=True)
        else:
            self.const = nn.Parameter(torch.randn(outputs, resolution, resolution))
        self.conv1 = Layer(outputs, outputs, style, resolution, clamp, up=False)
        self.torgb = ToImage(outputs, channels, style, clamp)


class Synthesis(nn.Module):
    def __init__(self, widths: dict[int, int], style: int, channels: int, clamp: float | None) -> None:
        super().__init__()
        self.resolutions = list(widths)
        for size, width in widths.items():
            setattr(self, f"b{size}", SynthesisBlock(widths.get(size // 2, 0), width, style, size, channels, clamp))


class StyleGenerator(nn.Module):
    def __init__(self, widths: dict[int, int], latent: int, style: int, classes: int, *, clamp: float | None, layers: int,
                 channels: int = 3, rate: float = 0.01) -> None:  # fmt: skip
        super().__init__()
        self.synthesis = Synthesis(widths, style, channels, clamp)
        self.mapping = Mapping(latent, classes, style, layers, has_average=True, rate=rate)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        w = self.mapping(z, c)
        x, image = self.synthesis.b4.const.expand(len(z), -1, -1, -1), torch.zeros(())
        for size in self.synthesis.resolutions:
            block = getattr(self.synthesis, f"b{size}")
            if size > 4:
                x, image = block.conv0(x, w), upsampled(image)
            x = block.conv1(x, w)
            image = image + block.torgb(x, w)
        return image


class DiscriminatorBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, channels: int, clamp: float | None, *, first: bool, residual: bool) -> None:
        super().__init__()
        self.register_buffer("resample_filter", KERNEL.clone())
        if first:
            self.fromrgb = Conv(channels, inputs, 1, clamp)
        self.conv0 = Conv(inputs, inputs, 3, clamp)
        self.conv1 = Conv(inputs, outputs, 3, clamp, down=True)
        if residual:
            self.skip = Conv(inputs, outputs, 1, None, down=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fromrgb(x) if hasattr(self, "fromrgb") else x
        if not hasattr(self, "skip"):
            return self.conv1(self.conv0(x))
        return self.skip(x, math.sqrt(0.5)) + self.conv1(self.conv0(x), math.sqrt(0.5))


class Deviation(nn.Module):
    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size


class Epilogue(nn.Module):
    def __init__(self, width: int, outputs: int, clamp: float | None, group_size: int) -> None:
        super().__init__()
        self.mbstd = Deviation(group_size)
        self.conv = Conv(width + 1, width, 3, clamp)
        self.fc, self.out = Dense(width * 16, width, "lrelu"), Dense(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(self.mbstd.group_size, -1, *x.shape[1:])
        deviation = (groups.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3)).repeat(self.mbstd.group_size)
        x = torch.cat([x, deviation[:, None, None, None].expand(-1, 1, 4, 4)], dim=1)
        return self.out(self.fc(self.conv(x).flatten(1)))


class StyleDiscriminator(nn.Module):
    def __init__(self, widths: dict[int, int], classes: int, *, clamp: float | None, residual: bool, group_size: int,
                 channels: int = 3, rate: float = 0.01) -> None:  # fmt: skip
        super().__init__()
        self.resolutions = list(widths)[:0:-1]
        for size in self.resolutions:
            first = size == max(widths)
            setattr(
                self,
                f"b{size}",
                DiscriminatorBlock(widths[size], widths[size // 2], channels, clamp, first=first, residual=residual),
            )
        if classes:
            self.mapping = Mapping(0, classes, widths[4], 8, has_average=False, rate=rate)
        self.b4 = Epilogue(widths[4], widths[4] if classes else 1, clamp, group_size)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for size in self.resolutions:
            x = getattr(self, f"b{size}")(x)
        x = self.b4(x)
        return (x * self.mapping(None, c)).sum(dim=1) / math.sqrt(x.shape[1]) if hasattr(self, "mapping") else x[:, 0]


# R3GAN


class Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int, groups: int = 1) -> None:
        super().__init__()
        self.Layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.Layer(x)


class Bias(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Bias = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.Bias[:, None, None], 0.2)


class Residual(nn.Module):
    def __init__(self, width: int, groups: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.LinearLayer1, self.NonLinearity1 = Convolution(width, inner, 1), Bias(inner)
        self.LinearLayer2, self.NonLinearity2 = Convolution(inner, inner, 3, groups), Bias(inner)
        self.LinearLayer3 = Convolution(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.LinearLayer3(self.NonLinearity2(self.LinearLayer2(self.NonLinearity1(self.LinearLayer1(x)))))


class Resampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("Kernel", KERNEL.clone())


class Transition(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, up: bool) -> None:
        super().__init__()
        self.Resampler, self.up = Resampler(), up
        if inputs != outputs:
            self.LinearLayer = Convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        linear = getattr(self, "LinearLayer", nn.Identity())
        return upsampled(linear(x)) if self.up else linear(halved(x))


class Start(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.Basis, self.LinearLayer = nn.Parameter(torch.randn(width, 4, 4)), nn.Linear(inputs, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.Basis * self.LinearLayer(x)[:, :, None, None]


class End(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.Basis = nn.Conv2d(width, width, 4, groups=width, bias=False)
        self.LinearLayer = nn.Linear(width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.LinearLayer(self.Basis(x).flatten(1))


class Stage(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.Layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.Layers:
            x = layer(x)
        return x


class Wrapper(nn.Module):
    """The published networks are the attribute ``Model`` of others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.Model = model

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.Model(x, c)


class ResidualGenerator(nn.Module):
    """Widths from the smallest size to the image."""

    def __init__(self, widths: list[int], latent: int, classes: int, groups: int, blocks: int = 2, expansion: int = 2) -> None:
        super().__init__()
        stages = []
        for number, width in enumerate(widths):
            first = Transition(widths[number - 1], width, up=True) if number else Start(latent * (2 if classes else 1), width)
            stages.append(Stage([first, *(Residual(width, width * expansion // groups, expansion) for _ in range(blocks))]))
        self.MainLayers, self.AggregationLayer = nn.ModuleList(stages), Convolution(widths[-1], 3, 1)
        if classes:
            self.EmbeddingLayer = nn.Linear(classes, latent, bias=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = torch.cat([x, self.EmbeddingLayer(c)], dim=1) if hasattr(self, "EmbeddingLayer") else x
        for stage in self.MainLayers:
            x = stage(x)
        return self.AggregationLayer(x)


class ResidualDiscriminator(nn.Module):
    """Widths from the image to the smallest size."""

    def __init__(self, widths: list[int], classes: int, groups: int, blocks: int = 2, expansion: int = 2) -> None:
        super().__init__()
        stages = []
        for number, width in enumerate(widths):
            is_last = number == len(widths) - 1
            last = End(width, width if classes else 1) if is_last else Transition(width, widths[number + 1], up=False)
            stages.append(Stage([*(Residual(width, width * expansion // groups, expansion) for _ in range(blocks)), last]))
        self.ExtractionLayer, self.MainLayers = Convolution(3, widths[0], 1), nn.ModuleList(stages)
        if classes:
            self.EmbeddingLayer = nn.Linear(classes, widths[-1], bias=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.ExtractionLayer(x)
        for stage in self.MainLayers:
            x = stage(x)
        return (x * self.EmbeddingLayer(c)).sum(dim=1) if hasattr(self, "EmbeddingLayer") else x[:, 0]
