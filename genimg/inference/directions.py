"""Directions in the latents of a GAN's generator along which images change most, found without training or labels.

* GANSpace: Härkönen et al., "GANSpace: discovering interpretable GAN controls", 2020, section 2.1. Principal components of w;
  for a generator without styles, those of its first layer's output, transferred to z by least squares.
* SeFa: Shen & Zhou, "Closed-form factorization of latent semantics in GANs", 2021, equation 6. Eigenvectors of A^T A, where A
  is the matrix with which the first step of the generator multiplies the latent.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from genimg.errors import ConfigError
from genimg.methods.generator_latents import W_PLUS, GeneratorLatents, W, Z
from genimg.networks.stylegan2_layers import ModulatedConv2d
from genimg.types import Batch
from genimg.utils.exact import double

GANSPACE, SEFA = "ganspace", "sefa"
METHODS = (GANSPACE, SEFA)

SAMPLES = 10_000
"""Number of generated images from which components, means and deviations are computed."""

_BATCH = 500
_LAYERS = (nn.Linear, nn.ConvTranspose2d, nn.Conv2d)


@dataclass(frozen=True)
class Directions:
    """Directions in the latents of a generator, the most important first.

    Attributes:
        method: One of ``METHODS``.
        space: ``w``, or ``z`` for a generator without styles.
        vectors: Unit vectors [K, D].
        deviations: Standard deviation of generated images' latents along each direction [K], the unit of movements.
        importance: For ``ganspace``, each component's share of the variance; for ``sefa``, each eigenvalue's share [K].
        settings: What the directions depend on, for records.
    """

    method: str
    space: str
    vectors: Tensor
    deviations: Tensor
    importance: Tensor
    settings: dict[str, Any]

    def __getitem__(self, numbers: slice) -> Directions:
        """Return some of the directions."""
        some = {key: getattr(self, key)[numbers] for key in ("vectors", "deviations", "importance")}
        return replace(self, **some)


def find_directions(
    method: str, latents: GeneratorLatents, count: int, *, seed: int, row: Batch, layers: list[int] | None
) -> Directions:
    """Find the most important directions.

    Args:
        method: One of ``METHODS``.
        latents: The generator.
        count: Number of directions K.
        seed: Seed of the generated images.
        row: Batch of one image with the condition of all of them; empty to draw conditions.
        layers: Layers whose weights SeFa uses; None for all. Components do not depend on it.

    Raises:
        ConfigError: If the space has fewer directions, or the generator has no first layer that reads the latents.
    """
    space = W if latents.is_style_based else Z
    samples = _latents(latents, space, seed, row)  # [N, D]
    if method == SEFA:
        matrix = style_weights(latents, layers) if space == W else _first_layer_matrix(latents, row)
        vectors, importance = eigenvectors(matrix)
    elif space == W:
        vectors, importance = principal_components(samples)
    else:
        vectors, importance = transferred_components(samples, _first_outputs(latents, samples, row))
    if not 1 <= count <= len(vectors):
        raise ConfigError(f"num_directions={count} must be between 1 and {len(vectors)}, the number of directions here")
    vectors = vectors[:count].to(samples)
    return Directions(
        method, space, vectors.cpu(), ((samples - samples.mean(dim=0)) @ vectors.t()).std(dim=0).cpu(),
        importance[:count].float().cpu(), {"samples": len(samples), "seed": seed, "layers": layers},
    )  # fmt: skip


def principal_components(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal components [K, D] of samples [N, D], and each component's share of the variance [K]."""
    centred = double(samples.cpu())
    centred = centred - centred.mean(dim=0)
    _, singular, components = torch.linalg.svd(centred, full_matrices=False)
    variances = singular.square()
    return signed(components), variances / variances.sum()


def transferred_components(samples: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the directions in z that best explain the principal components of a layer's outputs: GANSpace, equation 3.

    The coordinates x_j of the outputs in the components' basis give U = argmin sum over j of |U x_j - z_j|^2, with centred z_j.
    The columns of U are normalised.

    Args:
        samples: Latents [N, Z].
        outputs: Outputs of the layer for them [N, F].

    Returns:
        Unit vectors [K, Z], and each component's share of the outputs' variance [K], for the components that z explains: no
        more than Z.
    """
    latent, features = double(samples.cpu()), double(outputs.cpu())
    latent, features = latent - latent.mean(dim=0), features - features.mean(dim=0)
    _, singular, components = torch.linalg.svd(features, full_matrices=False)
    kept = min(latent.shape[1], int((singular > 1e-6 * singular[0]).sum()))
    coordinates = features @ components[:kept].t()  # [N, K]
    directions = torch.linalg.lstsq(coordinates, latent).solution  # [K, Z]
    variances = singular.square()
    return signed(directions / directions.norm(dim=1, keepdim=True)), variances[:kept] / variances.sum()


def eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors [K, D] of A^T A for a matrix A [M, D], and each eigenvalue's share of their sum [K].

    Only eigenvalues above 0 (to rounding) are returned, the largest first.
    """
    wide = double(matrix.cpu())
    values, vectors = torch.linalg.eigh(wide.t() @ wide)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = int((values > 1e-10 * values[0]).sum())
    return signed(vectors.t()[:kept]), values[:kept] / values.sum()


def style_weights(latents: GeneratorLatents, layers: list[int] | None) -> Tensor:
    """Return the weights that map w to the styles of the convolutions, one below the other, [C, W], each row of unit length.

    SeFa's code normalises the rows in the same way, so layers with large weights do not dominate.

    Args:
        latents: A generator with styles.
        layers: Numbers of the layers of w+ whose weights are used; None for all.

    Raises:
        ConfigError: If the generator has other layers than StyleGAN2's.
    """
    blocks = getattr(latents.generator, "blocks", None)
    number, rows = 0, []
    for block in blocks if isinstance(blocks, nn.ModuleList) else ():
        for layer in (*getattr(block, "layers", ()), getattr(block, "to_image", None)):
            convolution = getattr(layer, "convolution", layer)
            if isinstance(convolution, ModulatedConv2d) and (layers is None or number in layers):
                rows.append(convolution.affine.weight.detach() * convolution.affine.weight_scale)
            number += 1
        number -= 1  # the image layer of a block uses the same style as the first layer of the next block
    if not rows:
        raise ConfigError("directions=sefa needs StyleGAN2's layers, or a generator without styles: choose ganspace",
                          key="directions")  # fmt: skip
    weights = torch.cat(rows)
    return weights / weights.norm(dim=1, keepdim=True)


def signed(vectors: Tensor) -> Tensor:
    """Give each vector [K, D] the sign for which its component of the largest magnitude is positive; else it is arbitrary."""
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * largest.sign()


def _latents(latents: GeneratorLatents, space: str, seed: int, row: Batch) -> Tensor:
    if space == W:
        return latents.style_samples(SAMPLES, seed, row)
    return latents.draw(range(SAMPLES), seed)["latent"]


@torch.no_grad()
def _first_outputs(latents: GeneratorLatents, samples: Tensor, row: Batch) -> Tensor:
    """Return the outputs [N, F] of the first linear or convolutional layer that the generator applies, for latents [N, Z]."""
    found: list[Tensor] = []

    class FoundError(Exception):
        """Ends the generator's pass after its first layer."""

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(output.flatten(1).float())
        raise FoundError

    hooks = [layer.register_forward_hook(keep) for layer in latents.generator.modules() if isinstance(layer, _LAYERS)]
    try:
        for start in range(0, len(samples), _BATCH):
            some = samples[start : start + _BATCH]
            condition = latents.draw(range(start, start + len(some)), 0)
            condition |= {key: value.to(some.device).expand(len(some), *value.shape[1:]) for key, value in row.items()}
            with contextlib.suppress(FoundError):
                latents.images(latents.codes(condition | {"latent": some}, Z))
    finally:
        for hook in hooks:
            hook.remove()
    if not found or not found[0].std(dim=0).max() > 0:
        raise ConfigError("the first layer of this generator does not read its latents, so it has no such directions",
                          key="directions")  # fmt: skip
    return torch.cat(found)


def _first_layer_matrix(latents: GeneratorLatents, row: Batch) -> Tensor:
    """Return the matrix [F, Z] of the generator's first layer: the differences of its outputs for unit vectors and for 0."""
    dim = latents.latent.dim
    inputs = torch.cat([torch.zeros(1, dim), torch.eye(dim)]).to(latents.device)
    key = latents.condition_key
    one = row or ({} if key is None else {key: latents.draw([0], 0)[key]})  # the same for all, so it cancels
    outputs = _first_outputs(latents, inputs, one)
    return (outputs[1:] - outputs[0]).t()


def moved(values: Tensor, space: str, directions: Directions, number: int, steps: Tensor, layers: list[int] | None) -> Tensor:
    """Return latents that are moved along one direction.

    Args:
        values: Latents [N, Z] in z, or [N, L, W] in w+.
        space: Their space.
        directions: The directions.
        number: Number of the direction.
        steps: Distances [S], in standard deviations.
        layers: Layers of w+ that are moved; None for all.

    Returns:
        Latents [N, S, ...] in the same space.
    """
    step = steps[:, None] * directions.deviations[number] * directions.vectors[number]  # [S, D]
    if space == Z:
        return values[:, None] + step
    assert space == W_PLUS
    found = values[:, None].repeat(1, len(steps), 1, 1)  # [N, S, L, W]
    chosen = list(range(values.shape[1])) if layers is None else layers
    found[:, :, chosen] += step[None, :, None]
    return found
