"""The exportable networks of methods that make images from random numbers: generators and decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from genimg.data.facts import DataFacts
from genimg.errors import CheckpointError
from genimg.exporting.parts import (
    Choices,
    ExportedNetwork,
    Inputs,
    Port,
    exportable,
    image_port,
    prepared_for_export,
    refuse_choices,
)
from genimg.exporting.programs import CodesToImage, Generating, LatentsToImage, Sampling
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates, TakesConditions
from genimg.methods.gan import GAN, StyleBased
from genimg.methods.latent import Latent, Normal, Truncated, Uniform
from genimg.methods.vae import VAE
from genimg.methods.vq_vae import VQVAE
from genimg.methods.wae_rae import DeterministicAutoencoder
from genimg.networks.conditioning import ConditionEncoder
from genimg.networks.text import TextEncoder
from genimg.types import Batch

_NORMAL = "standard normal numbers"


@exportable.register
def _of_method(method: Method, choices: Choices, facts: DataFacts) -> ExportedNetwork:
    """Return the sampling of a method without a case of its own, with its default options."""
    if not isinstance(method, Generates):
        return exportable.dispatch(object)(method, choices, facts)  # which refuses it
    refuse_choices(method, choices)
    device = next(method.parameters()).device
    drawn = method.draw(range(2), 0)
    ports = [Port(name, value.dtype, ("batch", *value.shape[1:]), "as the model draws it") for name, value in drawn.items()]

    def draw(count: int, seed: int, height: int, width: int) -> Inputs:
        values = method.draw(range(count), seed)
        return tuple(values[port.name].cpu() for port in ports)

    def reference(*inputs: Tensor) -> Tensor:
        batch = {port.name: value.to(device) for port, value in zip(ports, inputs, strict=True)}
        return method.sample(batch).float().clamp(-1.0, 1.0).cpu()

    output = image_port(*reference(*draw(1, 0, 0, 0)).shape[1:])
    network = Sampling(prepared_for_export(method), [port.name for port in ports])
    options = {name: value for name, value in vars(method.sampling_options()).items() if value is not None}
    remarks = tuple(f"sampled with {name}={value}, the model's default" for name, value in options.items())
    return ExportedNetwork("sampler", network, tuple(ports), output, draw, reference, remarks=remarks)


@exportable.register
def _of_gan(method: GAN, choices: Choices, facts: DataFacts) -> ExportedNetwork:
    generator = method.generator
    is_style_based = isinstance(generator, StyleBased)
    refuse_choices(method, choices, *(["truncation"] if is_style_based else []))
    extra = {} if choices.truncation is None else {"truncation": torch.tensor(float(choices.truncation))}
    network = Generating(prepared_for_export(generator), choices.truncation)
    latent = Port("latent", torch.float32, ("batch", method.latent.dim), _distribution(method.latent))
    remarks = ("the per-pixel noise is fixed and the same for all images",) if is_style_based else ()
    return _from_draws(method, "generator", network, generator, [latent], extra=extra, remarks=remarks)


@exportable.register
def _of_vae(method: VAE, choices: Choices, facts: DataFacts) -> ExportedNetwork:
    refuse_choices(method, choices)
    *lower, top = method.latent_dims
    network = LatentsToImage(
        prepared_for_export(method.decoder), method.loss.likelihood.mean, hierarchy=prepared_for_export(method.hierarchy)
    )
    ports = [Port("latent", torch.float32, ("batch", top), _NORMAL)]
    if lower:
        ports.append(Port("noise", torch.float32, ("batch", sum(lower)), f"{_NORMAL} for the latents below; 0 for their means"))
    return _from_draws(method, "decoder", network, method.decoder, ports)


@exportable.register
def _of_deterministic_autoencoder(method: DeterministicAutoencoder, choices: Choices, facts: DataFacts) -> ExportedNetwork:
    refuse_choices(method, choices)
    density, decoder = method.density, method.decoder
    fitted = density.num_components > 0
    mean = method.loss.likelihood.mean
    network = LatentsToImage(
        prepared_for_export(decoder), mean, hierarchy=nn.ModuleList(), density=prepared_for_export(density) if fitted else None
    )
    ports = [Port("latent", torch.float32, ("batch", density.latent_dim), _NORMAL)]
    if density.num_components > 1:
        ports.append(Port("uniform", torch.float32, ("batch",), "uniform numbers in [0, 1), which choose among the Gaussians"))

    def placed(drawn: Batch) -> Batch:
        """Map the drawn latents to the fitted density, as the method's own sampling does."""
        chances = drawn["uniform"] if "uniform" in drawn else torch.zeros(len(drawn["latent"]))
        return drawn | {"latent": density.from_normal(drawn["latent"], chances)}

    remarks = (f"it includes the density fitted to the latents, {density.num_components} Gaussians",) if fitted else ()
    return _from_draws(method, "decoder", network, decoder, ports, place=placed, remarks=remarks)


@exportable.register
def _of_vq_vae(method: VQVAE, choices: Choices, facts: DataFacts) -> ExportedNetwork:
    refuse_choices(method, choices)
    grid, num_codes = method.encoder.grid, method.quantizer.num_codes
    device = method.quantizer.codebook.device

    def draw(count: int, seed: int, height: int, width: int) -> Inputs:
        return (torch.randint(num_codes, (count, *grid), generator=torch.Generator().manual_seed(seed)),)

    def reference(codes: Tensor) -> Tensor:
        return method.decode(codes.to(device)).cpu()

    codes = Port("codes", torch.int64, ("batch", *grid), f"numbers of codes from 0 to {num_codes - 1}")
    return ExportedNetwork(
        name="decoder",
        network=CodesToImage(prepared_for_export(method.decoder), method.quantizer.codebook.detach().float().cpu().clone()),
        inputs=(codes,),
        output=image_port(*reference(*draw(1, 0, 0, 0)).shape[1:]),
        draw=draw,
        reference=reference,
        remarks=("it does not include the prior that draws codes: to sample, use genimg-sample",),
    )


def _from_draws(
    method: Generates,
    name: str,
    network: nn.Module,
    conditioned: nn.Module,
    ports: list[Port],
    *,
    extra: Batch | None = None,
    place: Callable[[Batch], Batch] = lambda drawn: drawn,
    remarks: tuple[str, ...] = (),
) -> ExportedNetwork:
    """Return the exported network of a method that samples from random numbers and, if conditional, conditions.

    Args:
        conditioned: Network that reads the conditions.
        ports: Ports of the random numbers.
        extra: Further inputs of ``sample``.
        place: Function that converts the values drawn for the ports to inputs of ``sample``.
    """
    encoder: ConditionEncoder = conditioned.condition  # type: ignore[assignment]
    if encoder.key is not None:
        ports = [*ports, _condition_port(encoder)]
    device = next(conditioned.parameters()).device

    def reference(*inputs: Tensor) -> Tensor:
        drawn = dict(zip((port.name for port in ports), inputs, strict=True))
        batch = {key: value.to(device) for key, value in (place(drawn) | (extra or {})).items()}
        return method.sample(batch).float().clamp(-1.0, 1.0).cpu()

    draw = partial(_draw, method, ports)
    output = image_port(*reference(*draw(1, 0, 0, 0)).shape[1:])
    return ExportedNetwork(name, network, tuple(ports), output, draw, reference, remarks=remarks)


def _draw(method: Generates, ports: Sequence[Port], count: int, seed: int, height: int, width: int) -> Inputs:
    """Draw inputs for the ports: a GAN's own latents, other values as the ports specify, and labels of all classes equally."""
    drawn, numbers = method.draw(range(count), seed), torch.Generator().manual_seed(seed)
    found = []
    for port in ports:
        shape = [count if side == "batch" else int(side) for side in port.shape]
        if port.name == "label":
            assert isinstance(method, TakesConditions)
            found.append(torch.randint(method.num_classes, shape, generator=numbers))
        elif port.name == "caption" or (port.name == "latent" and isinstance(method, GAN)):
            found.append(drawn[port.name].cpu())
        elif port.name == "uniform":
            found.append(torch.rand(shape, generator=numbers))
        else:
            found.append(torch.randn(shape, generator=numbers))
    return tuple(found)


def _condition_port(encoder: ConditionEncoder) -> Port:
    """Return the port of labels or captions.

    Raises:
        CheckpointError: For an encoder that works outside the network.
    """
    if encoder.key == "label":
        return Port("label", torch.int64, ("batch",), f"class numbers from 0 to {encoder.num_classes - 1}")
    if isinstance(encoder, TextEncoder):
        return Port("caption", torch.uint8, ("batch", encoder.max_length), "UTF-8 bytes, padded with 0")
    raise CheckpointError(
        f"this model reads captions with {type(encoder).__name__}, which is not part of the checkpoint, so it cannot be "
        "exported; a model trained with conditioning=text can"
    )


def _distribution(latent: Latent) -> str:
    if isinstance(latent, Uniform):
        return "uniform numbers in [-1, 1]"
    if isinstance(latent, Truncated):
        return f"{_NORMAL} within [-{latent.limit:g}, {latent.limit:g}]"
    return _NORMAL if isinstance(latent, Normal) else f"numbers of {type(latent).__name__}"
