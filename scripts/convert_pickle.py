#!/usr/bin/env python3
"""Convert a published pickle of StyleGAN2-ADA or R3GAN to a .safetensors file that genimg-train init_from= reads.

    PYTHONPATH=stylegan2-ada-pytorch python scripts/convert_pickle.py network.pkl network.safetensors --run-its-code

Reading a pickle runs code that it contains, so this script asks for your consent with --run-its-code, and it is separate from
genimg, which never unpickles a file. It needs only PyTorch and safetensors, and the repository of the project that wrote the
pickle (NVlabs/stylegan2-ada-pytorch or brownvc/R3GAN) on PYTHONPATH. Run it in an environment that you can afford to lose.

The averaged generator (G_ema) and the discriminator are converted. Their numbers stay the same; only the tensors' names and the
shapes of a few change. The script prints the settings of the equal genimg model and stores them in the file's
metadata under "overrides". Networks with options that genimg's models do not have are refused.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]

MAPPING_RATE = 0.01  # learning-rate multiplier of genimg's mapping networks
CONDITION_LAYERS = 8  # layers of its discriminator's mapping network
UNLIMITED = 1e9  # largest magnitude of features that stands for no clamping
WHOLE_BATCH = 2**20  # size of a group that stands for the whole batch


class CannotConvertError(Exception):
    """The networks have no equal in genimg, or the file holds something else."""


class Reader:
    """Tensors of a network, which are taken one by one; those that are left at the end have no equivalent.

    Args:
        state: The network's state_dict.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._left = dict(state)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> Tensor:
        """Return a tensor as float32."""
        if name not in self._left:
            raise CannotConvertError(f"the network has no tensor {name}: it is of another version")
        return self._left.pop(name).detach().float().cpu()

    def sizes(self, pattern: str) -> list[int]:
        """Return the increasing numbers that are the first group of a pattern in the names."""
        return sorted({int(found[1]) for name in self._left if (found := re.match(pattern, name))})

    def require_filter(self, name: str, taps: tuple[int, ...]) -> None:
        """Take a low-pass filter, if there is one, and check its taps."""
        if name in self._left:
            row = torch.tensor(taps, dtype=torch.float32)
            if not torch.allclose(self.take(name), torch.outer(row, row) / row.sum() ** 2, atol=1e-6):
                raise CannotConvertError(f"{name} is not the filter {list(taps)}, which genimg's networks have")

    def require_empty(self) -> None:
        """Check that no tensor is left."""
        if self._left:
            raise CannotConvertError(f"{len(self._left)} tensors have no equivalent, such as {min(self._left)}")


def convert(generator: nn.Module, discriminator: nn.Module) -> tuple[Tensors, list[str]]:
    """Return tensors by genimg's names, and the overrides of the model that they fit.

    Args:
        generator, discriminator: The unpickled networks; only their tensors and a few numbers are read.

    Raises:
        CannotConvertError: If genimg has no equal networks.
    """
    names = generator.state_dict().keys()
    if "mapping.fc0.weight" in names:
        return _stylegan2(generator, discriminator)
    if "Model.MainLayers.0.Layers.0.Basis" in names:
        return _r3gan(generator, discriminator)
    raise CannotConvertError(f"unknown networks, whose first tensor is {next(iter(names), 'missing')}")


# StyleGAN2-ADA


def _stylegan2(generator: nn.Module, discriminator: nn.Module) -> tuple[Tensors, list[str]]:
    g, d = Reader(generator.state_dict()), Reader(discriminator.state_dict())
    for network in (generator, discriminator):
        for module in network.modules():
            if getattr(module, "activation", "lrelu") not in ("lrelu", "linear"):
                raise CannotConvertError(f"the activation {module.activation} is not leaky ReLU")
    sizes = g.sizes(r"synthesis\.b(\d+)\.")
    if any(f"synthesis.b{size}.skip.weight" in g or f"synthesis.b{size}.torgb.weight" not in g for size in sizes):
        raise CannotConvertError("the generator's architecture is not skip")
    clamps = {getattr(module, "conv_clamp", None) for module in generator.modules() if hasattr(module, "affine")}
    tensors, num_layers, style_dim = _mapping(g, "mapping", generator, "generator.styles", "generator.embedding")
    tensors["generator.style_average"] = g.take("mapping.w_avg")
    latent_dim = tensors["generator.styles.0.weight"].shape[1] - (style_dim if "generator.embedding.weight" in tensors else 0)
    tensors["generator.start"] = g.take("synthesis.b4.const")[None]
    for number, size in enumerate(sizes):
        _synthesis_block(g, f"synthesis.b{size}", f"generator.blocks.{number}", size, tensors)
    g.require_empty()
    widths = {size: _width(tensors, f"generator.blocks.{number}") for number, size in enumerate(sizes)}
    base, most = _channels(widths)
    architecture, d_widths = _stylegan2_discriminator(d, discriminator, sizes, tensors)
    d.require_empty()
    d_base, d_most = (base, most) if d_widths == widths else _channels(d_widths)
    group = getattr(getattr(_module(discriminator, "b4"), "mbstd", None), "group_size", None)
    overrides = [
        "model=stylegan2",
        f"conditioning={'projection' if 'generator.embedding.weight' in tensors else 'none'}",
        f"data.image_size={sizes[-1]}",
        f"data.channels={tensors['generator.blocks.0.to_image.weight'].shape[0]}",
        f"model.latent.dim={latent_dim}",
        f"model.generator.style_dim={style_dim}",
        f"model.generator.num_mapping_layers={num_layers}",
        f"model.generator.channel_base={base}",
        f"model.generator.channel_max={most}",
        f"model.generator.conv_clamp={_only(clamps, 'conv_clamp')}",
        f"model.discriminator.channel_base={d_base}",
        f"model.discriminator.channel_max={d_most}",
        f"model.discriminator.architecture={architecture}",
        f"model.discriminator.group_size={WHOLE_BATCH if group is None else int(group)}",
        f"model.discriminator.conv_clamp={_only(_clamps_of(discriminator), 'conv_clamp')}",
    ]
    return tensors, overrides


def _mapping(reader: Reader, path: str, network: nn.Module, layers: str, embedding: str) -> tuple[Tensors, int, int]:
    """Convert a mapping network, and return its tensors, its number of layers and the length of its output.

    Weights of genimg's layers are multiplied by 0.01; those of another multiplier are scaled so that the products are equal.
    """
    tensors: Tensors = {}
    module = _module(network, path)
    numbers = reader.sizes(rf"{path}\.fc(\d+)\.")
    rates = {getattr(_module(module, f"fc{number}"), "bias_gain", MAPPING_RATE) for number in numbers}
    scale = _only(rates, "multiplier of the mapping network") / MAPPING_RATE
    if f"{path}.embed.weight" in reader:
        for kind in ("weight", "bias"):
            tensors[f"{embedding}.{kind}"] = reader.take(f"{path}.embed.{kind}")
    for number in numbers:
        for kind in ("weight", "bias"):
            value = reader.take(f"{path}.fc{number}.{kind}")
            tensors[f"{layers}.{2 * number}.{kind}"] = value if scale == 1 else value * scale
    outputs = {value.shape[0] for name, value in tensors.items() if name.endswith("weight")}
    return tensors, len(numbers), _only(outputs, "width of the mapping network's layers")


def _synthesis_block(reader: Reader, old: str, new: str, size: int, tensors: Tensors) -> None:
    reader.require_filter(f"{old}.resample_filter", (1, 3, 3, 1))
    for place, layer in enumerate(("conv0", "conv1") if f"{old}.conv0.weight" in reader else ("conv1",)):
        reader.require_filter(f"{old}.{layer}.resample_filter", (1, 3, 3, 1))
        path = f"{new}.layers.{place}"
        for kind in ("weight", "bias", "affine.weight", "affine.bias"):
            tensors[f"{path}.convolution.{kind}"] = reader.take(f"{old}.{layer}.{kind}")
        has_noise = f"{old}.{layer}.noise_strength" in reader  # without it, the strength is 0
        noise = reader.take(f"{old}.{layer}.noise_const") if has_noise else torch.zeros(size, size)
        tensors[f"{path}.noise"] = noise[None, None]
        tensors[f"{path}.noise_strength"] = reader.take(f"{old}.{layer}.noise_strength") if has_noise else torch.zeros(())
    for kind in ("weight", "bias", "affine.weight", "affine.bias"):
        tensors[f"{new}.to_image.{kind}"] = reader.take(f"{old}.torgb.{kind}")


def _stylegan2_discriminator(
    d: Reader, discriminator: nn.Module, sizes: list[int], tensors: Tensors
) -> tuple[str, dict[int, int]]:
    """Convert the discriminator, and return its architecture and its widths by size."""
    largest = sizes[-1]
    if any(f"b{size}.fromrgb.weight" in d for size in sizes[:-1]):
        raise CannotConvertError("the discriminator's architecture is skip")
    is_residual = f"b{largest}.skip.weight" in d
    for kind in ("weight", "bias"):
        tensors[f"discriminator.from_image.0.{kind}"] = d.take(f"b{largest}.fromrgb.{kind}")
    d.require_filter(f"b{largest}.fromrgb.resample_filter", (1, 3, 3, 1))
    widths = {largest: tensors["discriminator.from_image.0.weight"].shape[0]}
    for number, size in enumerate(sizes[:0:-1]):
        old, new = f"b{size}", f"discriminator.blocks.{number}"
        d.require_filter(f"{old}.resample_filter", (1, 3, 3, 1))
        for layer, place in (("conv0", "main.0"), ("conv1", "main.3"), *([("skip", "shortcut.1")] if is_residual else [])):
            d.require_filter(f"{old}.{layer}.resample_filter", (1, 3, 3, 1))
            for kind in ("weight",) if layer == "skip" else ("weight", "bias"):
                tensors[f"{new}.{place}.{kind}"] = d.take(f"{old}.{layer}.{kind}")
        widths[size // 2] = tensors[f"{new}.main.3.weight"].shape[0]
    d.require_filter("b4.conv.resample_filter", (1, 3, 3, 1))
    for layer, place in (("conv", "epilogue.1"), ("fc", "epilogue.4"), ("out", "logit")):
        for kind in ("weight", "bias"):
            tensors[f"discriminator.{place}.{kind}"] = d.take(f"b4.{layer}.{kind}")
    if tensors["discriminator.epilogue.1.weight"].shape[1] != widths[4] + 1:
        raise CannotConvertError("the discriminator does not have one channel of the minibatch standard deviation")
    if "mapping.embed.weight" in d:
        added, num_layers, width = _mapping(d, "mapping", discriminator, "discriminator.mapping", "discriminator.embedding")
        if num_layers != CONDITION_LAYERS or width != widths[4]:
            raise CannotConvertError(f"the discriminator's mapping network has {num_layers} layers of width {width}")
        tensors.update(added)
    return "residual" if is_residual else "plain", widths


def _clamps_of(network: nn.Module) -> set[Any]:
    """Return the clamps of the convolutions with an activation."""
    return {
        getattr(module, "conv_clamp", None)
        for name, module in network.named_modules()
        if name.rpartition(".")[2] in ("conv", "conv0", "conv1", "fromrgb")
    }


def _width(tensors: Tensors, block: str) -> int:
    return tensors[f"{block}.to_image.weight"].shape[1]


def _channels(widths: Mapping[int, int]) -> tuple[int, int]:
    """Return channel_base and channel_max of layers of these widths by size: width = min(channel_base // size, channel_max)."""
    most = max(widths.values())
    narrower = [size * width for size, width in widths.items() if width < most]
    base = max(narrower, default=most * max(widths))
    if any(min(base // size, most) != width for size, width in widths.items()):
        raise CannotConvertError(f"the widths {dict(widths)} do not follow from a channel_base and a channel_max")
    return base, most


# R3GAN


def _r3gan(generator: nn.Module, discriminator: nn.Module) -> tuple[Tensors, list[str]]:
    g, d = Reader(generator.state_dict()), Reader(discriminator.state_dict())
    tensors: Tensors = {}
    tensors["generator.basis"] = g.take("Model.MainLayers.0.Layers.0.Basis")[None]
    tensors["generator.scale.weight"] = g.take("Model.MainLayers.0.Layers.0.LinearLayer.weight")
    tensors["generator.to_image.weight"] = g.take("Model.AggregationLayer.Layer.weight")
    stages = g.sizes(r"Model\.MainLayers\.(\d+)\.")
    num_blocks, widths = set(), []
    for stage in stages:
        old, new = f"Model.MainLayers.{stage}.Layers", f"generator.blocks.{stage}"
        changes = f"{old}.0.LinearLayer.Layer.weight" in g
        if changes:
            tensors[f"{new}.0.weight"] = g.take(f"{old}.0.LinearLayer.Layer.weight")
        g.require_filter(f"{old}.0.Resampler.Kernel", (1, 3, 3, 1))
        blocks = g.sizes(rf"Model\.MainLayers\.{stage}\.Layers\.(\d+)\.LinearLayer1")
        before = 0 if stage == 0 else 1 + changes  # layers of genimg's stage before its blocks
        for number, block in enumerate(blocks):
            _r3gan_block(g, f"{old}.{block}", f"{new}.{before + number}", tensors)
        num_blocks.add(len(blocks))
        widths.append(tensors[f"{new}.{before}.expand.weight"].shape[1])
    for stage in stages:
        old, new = f"Model.MainLayers.{stage}.Layers", f"discriminator.blocks.{stage}"
        blocks = d.sizes(rf"Model\.MainLayers\.{stage}\.Layers\.(\d+)\.LinearLayer1")
        for number, block in enumerate(blocks):
            _r3gan_block(d, f"{old}.{block}", f"{new}.{number}", tensors)
        num_blocks.add(len(blocks))
        last = f"{old}.{len(blocks)}"
        if stage == stages[-1]:
            tensors["discriminator.basis.weight"] = d.take(f"{last}.Basis.weight")
            tensors["discriminator.logit.weight"] = d.take(f"{last}.LinearLayer.weight")
            continue
        d.require_filter(f"{last}.Resampler.Kernel", (1, 3, 3, 1))
        if f"{last}.LinearLayer.Layer.weight" in d:
            tensors[f"{new}.{len(blocks) + 1}.weight"] = d.take(f"{last}.LinearLayer.Layer.weight")
    tensors["discriminator.from_image.weight"] = d.take("Model.ExtractionLayer.Layer.weight")
    latent_dim, has_labels = tensors["generator.scale.weight"].shape[1], "Model.EmbeddingLayer.weight" in g
    if has_labels:
        tensors["generator.embedding.weight"] = g.take("Model.EmbeddingLayer.weight")
        tensors["discriminator.embedding.weight"] = d.take("Model.EmbeddingLayer.weight")
        dims = [tensors[f"{name}.embedding.weight"].shape[0] for name in ("generator", "discriminator")]
        latent_dim -= dims[0]
        if dims != [latent_dim, widths[0]]:
            raise CannotConvertError(f"the embeddings of labels have lengths {dims}, not {[latent_dim, widths[0]]}")
    g.require_empty()
    d.require_empty()
    blocks_of = {name.rpartition(".expand")[0] for name in tensors if name.endswith(".expand.weight")}
    inner = {path: tensors[f"{path}.expand.weight"].shape for path in blocks_of}
    expansion = _only({shape[0] / shape[1] for shape in inner.values()}, "expansion of the blocks")
    group_width = _only({tensors[f"{path}.mix.weight"].shape[1] for path in blocks_of}, "width of the groups")
    if {tuple(tensors[f"{path}.mix.weight"].shape[2:]) for path in blocks_of} != {(3, 3)} or expansion != int(expansion):
        raise CannotConvertError("the blocks have other kernels than 3x3, or an expansion that is not a whole number")
    overrides = [
        "model=r3gan",
        f"conditioning={'projection' if has_labels else 'none'}",
        f"data.image_size={4 * 2 ** (len(stages) - 1)}",
        f"data.channels={tensors['generator.to_image.weight'].shape[0]}",
        f"model.latent.dim={latent_dim}",
        f"model.generator.widths=[{','.join(map(str, widths[::-1]))}]",
        f"model.generator.num_blocks={_only(num_blocks, 'number of blocks per stage')}",
        f"model.generator.expansion={int(expansion)}",
        f"model.generator.group_width={group_width}",
    ]
    return tensors, overrides


def _r3gan_block(reader: Reader, old: str, new: str, tensors: Tensors) -> None:
    for number, layer in enumerate(("expand", "mix", "contract"), start=1):
        tensors[f"{new}.{layer}.weight"] = reader.take(f"{old}.LinearLayer{number}.Layer.weight")
        if layer != "contract":
            tensors[f"{new}.{layer}.bias"] = reader.take(f"{old}.NonLinearity{number}.Bias")


# Both


def _module(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        raise CannotConvertError(f"the network has no part {path}: it is of another version") from error


def _only(values: set[Any], what: str) -> Any:
    """Return the only value of a set; None, for no clamping, is a large number."""
    if len(values) != 1:
        raise CannotConvertError(f"the {what} differs between layers: {sorted(map(str, values))}")
    value = next(iter(values))
    return UNLIMITED if value is None else value


def _unpickled(path: Path) -> dict[str, Any]:
    """Read a pickle, which runs its code, and return its networks and its number of training images."""
    try:
        with path.open("rb") as file:
            content = pickle.load(file)
    except ModuleNotFoundError as error:
        raise CannotConvertError(
            f"the pickle needs the module {error.name}: put the repository of the project that wrote it on PYTHONPATH"
        ) from error
    except pickle.UnpicklingError as error:
        raise CannotConvertError(f"{path} is not a pickle ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), nn.Module) for key in ("G_ema", "D")):
        raise CannotConvertError(
            f"{path} holds no dictionary with the networks G_ema and D; convert a pickle of TensorFlow with that project's "
            "legacy.py first"
        )
    return content


def main(arguments: list[str] | None = None) -> None:
    """Convert the pickle that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pickle", type=Path, help="pickle with the networks G_ema and D")
    parser.add_argument("output", type=Path, help="file to write, with the suffix .safetensors")
    parser.add_argument(
        "--run-its-code", action="store_true", help="your consent: unpickling runs the file's code, so trust its author first"
    )
    options = parser.parse_args(arguments)
    if not options.run_its_code:
        parser.error(f"reading {options.pickle} runs code that it contains: if you trust its author, add --run-its-code")
    if options.output.suffix != ".safetensors":
        parser.error(f"{options.output} must have the suffix .safetensors")
    if not options.pickle.is_file():
        parser.error(f"{options.pickle} does not exist")
    import safetensors.torch

    try:
        content = _unpickled(options.pickle)
        tensors, overrides = convert(content["G_ema"], content["D"])
    except CannotConvertError as error:
        sys.exit(f"convert_pickle.py: error: {error}")
    metadata = {"overrides": json.dumps(overrides), "source": options.pickle.name, "weights": "ema"}
    if isinstance(content.get("cur_nimg"), int):
        metadata["images"] = str(content["cur_nimg"])
    written = safetensors.torch.save({name: value.contiguous() for name, value in tensors.items()}, metadata=metadata)
    temporary = options.output.with_name(options.output.name + ".partial")
    temporary.write_bytes(written)
    temporary.replace(options.output)
    print(f"{options.output}: {len(tensors)} tensors. Train from these weights with your data:\n")
    print(f"    genimg-train {' '.join(overrides)} init_from={options.output} data=folder data.root=DIRECTORY")


if __name__ == "__main__":
    main()
