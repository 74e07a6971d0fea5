"""Pictures of an autoencoder's latent space, drawn from tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genimg.methods.latent import interpolate

_COLUMNS, _ROWS = 9, 10  # in interpolations and traversals
_TRAVERSED = 3.0  # standard deviations of the prior, on either side
_MAP = 15  # images along each side of the map of two latents
_RECENT = 4096  # images in a scatter
_SIDE = 384  # pixels of a scatter
_SHOWN = 4.0  # standard deviations of the prior, on either side
_BAR, _HEIGHT = 8, 96  # width of a bar and height of the tallest, in pixels
_MIN_LOG, _MAX_LOG = -4.0, 1.0  # log10 of the smallest and the largest variance shown by the bars
# Ten colours that are distinct on screen and in print; they repeat from the eleventh class on.
_COLOURS = ("1f77b4", "ff7f0e", "2ca02c", "d62728", "9467bd", "8c564b", "e377c2", "7f7f7f", "bcbd22", "17becf")


def interpolations(decode: Callable[[Tensor, Tensor], Tensor], latent: Tensor, condition: Tensor) -> Tensor:
    """Decode straight lines between pairs of latents, one pair per row: [rows, 9, C, H, W].

    Args:
        decode: Decoder, (latents [M, Z], conditions [M, ...]) -> images [M, C, H, W].
        latent, condition: Latents [N, Z] and conditions [N, ...] of images. Images 0 and 1 form the first pair, and so on; the
            condition of a pair's first image applies to the row.
    """
    weights = torch.linspace(0.0, 1.0, _COLUMNS, device=latent.device)
    rows = []
    for start in range(0, max(1, min(2 * _ROWS, len(latent) - 1)), 2):
        way = interpolate(latent[start], latent[(start + 1) % len(latent)], weights, spherical=False)
        rows.append(decode(way, condition[start : start + 1].expand(_COLUMNS, *condition.shape[1:])))
    return torch.stack(rows)


def traversals(decode: Callable[[Tensor, Tensor], Tensor], latent: Tensor, condition: Tensor) -> Tensor:
    """Vary one latent per row, the most active first, from -3 to 3 standard deviations of the prior: [rows, 9, C, H, W].

    The other latents are those of the first image.

    Args:
        decode: Decoder, (latents [M, Z], conditions [M, ...]) -> images [M, C, H, W].
        latent, condition: Latents [N, Z] and conditions [N, ...] of images.
    """
    chosen = latent.var(dim=0, correction=0).argsort(descending=True)[:_ROWS]
    steps = torch.linspace(-_TRAVERSED, _TRAVERSED, _COLUMNS, device=latent.device)
    latents = latent[0].repeat(len(chosen), _COLUMNS, 1)
    latents.scatter_(2, chosen[:, None, None].expand(-1, _COLUMNS, 1), steps[None, :, None].expand(len(chosen), -1, 1))
    rows = condition[:1].expand(len(chosen) * _COLUMNS, *condition.shape[1:])
    return decode(latents.flatten(0, 1), rows).unflatten(0, (len(chosen), _COLUMNS))


def map_of_two(decode: Callable[[Tensor, Tensor], Tensor], latent: Tensor, condition: Tensor) -> Tensor:
    """Decode a grid of two latents at equal shares of the prior, the second one increasing upwards: [15, 15, C, H, W].

    Args:
        decode: Decoder, (latents [M, 2], conditions [M, ...]) -> images [M, C, H, W].
        latent, condition: Latents [N, 2] and conditions [N, ...] of images; the first image's condition applies to the grid.
    """
    x = normal_quantiles(_MAP).to(latent)
    places = torch.stack(torch.meshgrid(-x, x, indexing="ij"), dim=-1).flatten(0, 1).flip(1)
    return decode(places, condition[:1].expand(len(places), *condition.shape[1:])).unflatten(0, (_MAP, _MAP))


def normal_quantiles(count: int) -> Tensor:
    """Return the middle quantiles of ``count`` equal shares of N(0, 1): [count], increasing."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count).float()


def activity_bars(variance: Tensor, threshold: float) -> Tensor:
    """Draw a bar for every latent's variance [Z], the largest first, on a log scale: [1, 1, height, width] in [-1, 1].

    Args:
        variance: Variance of each latent's mean.
        threshold: Variance at which a grey line is drawn.
    """

    def height(value: Tensor) -> Tensor:
        return ((value.clamp_min(1e-30).log10() - _MIN_LOG) / (_MAX_LOG - _MIN_LOG) * _HEIGHT).clamp(1, _HEIGHT).round()

    levels = height(variance.sort(descending=True).values).repeat_interleave(_BAR)
    gaps = torch.arange(len(levels), device=variance.device) % _BAR == _BAR - 1
    rows = torch.arange(_HEIGHT, 0, -1, device=variance.device)[:, None]
    filled = (rows <= levels) & ~gaps
    line = rows == height(torch.tensor(threshold, device=variance.device))
    picture = torch.where(filled, 1.0, torch.where(line, 0.0, -1.0))
    return picture[None, None]


class LatentScatter(nn.Module):
    """The two latents of recent training images, coloured by label; not part of checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.means: Tensor
        self.labels: Tensor
        self.register_buffer("means", torch.full((_RECENT, 2), float("nan")), persistent=False)
        self.register_buffer("labels", torch.zeros(_RECENT, dtype=torch.int64), persistent=False)
        self._next = 0

    @torch.no_grad()
    def add(self, means: Tensor, labels: Tensor | None) -> None:
        """Replace the oldest entries by means [N, 2] and labels [N]."""
        places = torch.arange(self._next, self._next + len(means), device=means.device) % _RECENT
        self.means[places] = means.to(self.means.dtype)
        if labels is not None:
            self.labels[places] = labels
        self._next = (self._next + len(means)) % _RECENT

    def picture(self) -> Tensor:
        """Draw [1, 3, side, side] in [-1, 1]: 2x2 pixels per image, on white, from -4 to 4 along both axes."""
        known = ~self.means.isnan().any(dim=1)
        means, labels = self.means[known], self.labels[known]
        column, row = ((1.0 + sign * means[:, axis] / _SHOWN) / 2 * (_SIDE - 2) for axis, sign in ((0, 1), (1, -1)))
        column, row = column.round().long().clamp(0, _SIDE - 2), row.round().long().clamp(0, _SIDE - 2)
        palette = torch.tensor([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in _COLOURS], device=means.device)
        colours = (palette[labels % len(palette)].float() / 127.5 - 1.0).T
        picture = torch.ones(3, _SIDE, _SIDE, device=means.device)
        for down in (0, 1):
            for right in (0, 1):
                picture[:, row + down, column + right] = colours
        return picture[None]
