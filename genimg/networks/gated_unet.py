"""U-Nets for inpainting that use the mask: Liu et al., "Image inpainting for irregular holes using partial convolutions",
ECCV 2018, and Yu et al., "Free-form image inpainting with gated convolution", ICCV 2019."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg.networks.layers import halvings, initialise, normalisation_layer
from genimg.networks.resampling import doubled
from genimg.utils.numbers import require_least

CONVOLUTIONS = ("plain", "gated", "partial")
_KERNELS = (7, 5, 5)  # in the first downsampling layers; all other layers use 3: Liu et al. 2018
_WIDEST = 8  # largest multiple of the first width


class PartialConv2d(nn.Conv2d):
    """A convolution over the known pixels alone: Liu et al. 2018, equations 1 and 2.

    The output of a window is scaled up as if all its pixels were known, and is 0 if no pixel is known. Pixels beyond the border
    count as unknown (section 3.2, "as padding"), so only zero padding is supported.

    Args:
        inputs, outputs: Numbers of channels.
        size: Kernel size, odd.
        stride: Stride of the convolution.
        bias: Whether to add a bias where any pixel is known.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, bias: bool) -> None:
        super().__init__(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias)

    def forward(self, features: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return features [N, C', H', W'] and their mask [N, 1, H', W'].

        Args:
            features: Features [N, C, H, W].
            known: Mask, 1 for known and 0 for unknown, float [N, 1, H, W], or [N, C, H, W] where channels differ.
        """
        share = known.float().mean(dim=1, keepdim=True)
        border = self.kernel_size[0] // 2
        share = F.avg_pool2d(share, self.kernel_size, self.stride, border)  # sum(M) / sum(1), [N, 1, H', W']
        updated = (share > 0).to(known.dtype)
        result = F.conv2d(features * known, self.weight, None, self.stride, border)
        result = result * (updated / share.clamp_min(torch.finfo(share.dtype).tiny)).to(result.dtype)
        if self.bias is not None:
            result = result + (updated * self.bias[:, None, None]).to(result.dtype)
        return result, updated


class GatedConv2d(nn.Module):
    """A convolution whose outputs are gated by another one: Yu et al. 2019, section 3.1.

    It returns phi(features) * sigmoid(gate), where features and gate are both convolutions of the input.

    Args:
        inputs, outputs: Numbers of channels.
        size: Kernel size, odd.
        stride: Stride of the convolution.
        activation: phi, applied to features [N, C', H', W']; it may include a normalisation.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, 2 * outputs, size, stride=stride, padding=size // 2)  # features, then gates
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H', W']."""
        features, gate = self.convolution(features).chunk(2, dim=1)
        activated: Tensor = self.activation(features)
        return activated * torch.sigmoid(gate)


class Translator(nn.Module):
    """Inpainting U-Net: Liu et al.'s network with one of three convolutions.

    Sources come from an inpainting task. Their last channel is the mask: 1 for missing and -1 for known pixels. ``partial``
    convolutions use it as a mask, the others as a channel. With ``gated``, the last convolution is plain, as in Yu et al. The
    last skip connection carries the source image itself. Height and width of images must be multiples of ``size_divisor``.

    Args:
        source_channels: Number of source channels, C + 1.
        target_channels: Number of target channels, C.
        image_size: Size of training images in pixels, one number or [height, width].
        convolution: Kind of convolution: ``plain``, ``gated`` or ``partial``.
        width: Number of channels after the first halving, doubled by each of the next three. 64 in Liu et al.
        num_downs: Number of halvings; None uses as many as the image size allows, down to 2 px or an odd size.
        normalisation: Normalisation of all but the first and the last layer; see ``layers``. ``instance`` has no scale and
            shift.
        initialisation: See ``layers``.

    Raises:
        ValueError: If a setting is unknown or out of range, the image cannot be halved that often, or sources have no mask.
    """

    def __init__(
        self,
        *,
        source_channels: int,
        target_channels: int,
        image_size: int | Sequence[int],
        convolution: str,
        width: int,
        num_downs: int | None,
        normalisation: str,
        initialisation: str,
    ) -> None:
        super().__init__()
        if convolution not in CONVOLUTIONS:
            raise ValueError(f"convolution={convolution} is unknown: choose one of {', '.join(CONVOLUTIONS)}")
        require_least(1, width=width)
        if num_downs is not None and num_downs < 1:
            raise ValueError(f"num_downs={num_downs} must be 1 or more, or null")
        if source_channels != target_channels + 1:
            raise ValueError(
                f"source_channels={source_channels} must be {target_channels + 1} (the target's channels and a mask), because "
                "this network fills holes: choose an inpainting task, or another network"
            )
        most, _ = halvings(image_size, bottom_size=2, least=num_downs or 1)
        count = most if num_downs is None else num_downs
        self.size_divisor = 2**count
        self.is_partial = convolution == "partial"
        widths = [target_channels if self.is_partial else source_channels]
        widths += [width * min(2**level, _WIDEST) for level in range(count)]
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level in range(count):
            self.downs.append(
                _Layer(
                    widths[level],
                    widths[level + 1],
                    _KERNELS[level] if level < len(_KERNELS) else 3,
                    stride=2,
                    convolution=convolution,
                    activation=nn.ReLU(),
                    normalisation=normalisation if level else "none",
                )
            )
        for level in range(count - 1, -1, -1):  # from the smallest size outwards
            self.ups.append(
                _Layer(
                    widths[level + 1] + widths[level],
                    widths[level] if level else target_channels,
                    3,
                    stride=1,
                    convolution=convolution if level or self.is_partial else "plain",
                    activation=nn.LeakyReLU(0.2) if level else nn.Tanh(),
                    normalisation=normalisation if level else "none",
                )
            )
        initialise(self, initialisation)

    def forward(self, source: Tensor) -> Tensor:
        """Inpaint sources [N, C + 1, H, W]: return images [N, C, H, W] in [-1, 1]."""
        features, known = source, None
        if self.is_partial:
            features, known = source[:, :-1], (source[:, -1:] < 0).to(source.dtype)
        sides: list[tuple[Tensor, Tensor | None]] = []
        for down in self.downs:
            sides.append((features, known))
            features, known = down(features, known)
        for up in self.ups:
            side, known_side = sides.pop()
            if known is not None and known_side is not None:
                known = torch.cat([doubled(known).expand(-1, features.shape[1], -1, -1), known_side.expand_as(side)], dim=1)
            features, known = up(torch.cat([doubled(features), side], dim=1), known)
        return features


class _Layer(nn.Module):
    """One convolution of the network with normalisation and activation."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int, convolution: str, activation: nn.Module, normalisation: str
    ) -> None:
        super().__init__()
        bias = normalisation != "batch"
        activation = nn.Sequential(normalisation_layer(normalisation, outputs, affine=False), activation)
        self.convolution: nn.Module
        if convolution == "gated":
            self.convolution = GatedConv2d(inputs, outputs, size, stride=stride, activation=activation)
            activation = nn.Identity()
        elif convolution == "partial":
            self.convolution = PartialConv2d(inputs, outputs, size, stride=stride, bias=bias)
        else:
            self.convolution = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=bias)
        self.activation = activation

    def forward(self, features: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the features and their mask; the mask is None for convolutions that do not use one."""
        if known is None:
            return self.activation(self.convolution(features)), None
        features, known = self.convolution(features, known)
        return self.activation(features), known
