"""Networks of other runs as parts of a new model, such as the autoencoder of latent diffusion.

The user's config names such a network by a run directory or a checkpoint. This string is replaced with the network's config
before anything is built. A config in a checkpoint is not read in this way: it already holds the network's config.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.config import untrusted
from genimg.config.compose import Composition, thaw
from genimg.config.instantiate import ALLOWED, Builder
from genimg.config.model_size import require_fitting
from genimg.data.facts import DataFacts
from genimg.errors import CheckpointError, ConfigError
from genimg.methods.latent_space import FrozenAutoencoder
from genimg.types import height_width
from genimg.utils.digests import digest_of
from genimg.utils.paths import relative
from genimg.utils.type_hints import type_hints

log = logging.getLogger(__name__)


def with_trained_networks(composition: Composition) -> tuple[Composition, Mapping[str, Tensor]]:
    """Replace each string that names an autoencoder's run with the config of its networks, and read their weights.

    Args:
        composition: The composed config.

    Returns:
        The composition, and the weights by their names in the model.

    Raises:
        CheckpointError: If there is no checkpoint, or it is broken.
        ConfigError: If it holds no autoencoder with a grid of latents, or needs files from this machine.
    """
    model = OmegaConf.to_container(composition.config.model, resolve=False)
    assert isinstance(model, dict)
    allow = tuple(map(str, composition.config.allow or ()))
    try:
        target = Builder((*ALLOWED, *allow)).locate(model.get("_target_"), "model")
    except ConfigError:  # raised again when the model is built
        return composition, {}
    weights: dict[str, Tensor] = {}
    config = copy.deepcopy(composition.config)
    OmegaConf.set_readonly(config, False)
    for name, hint in type_hints(target).items():
        if hint is FrozenAutoencoder and isinstance(model.get(name), str):
            node, tensors, _ = _autoencoder(str(composition.config.model[name]), f"model.{name}", allow)
            OmegaConf.update(config, f"model.{name}", node, merge=False)
            weights |= {f"{name}.space.{key}": value for key, value in tensors.items()}
    return (replace(composition, config=config) if weights else composition), weights


def frozen_weights(config: Mapping[str, Any], weights: Mapping[str, Tensor], allow: tuple[str, ...]) -> Mapping[str, Tensor]:
    """Return the weights of the networks in a checkpoint that other runs have trained, by their names in the model.

    Args:
        config: The checkpoint's config.
        weights: The checkpoint's weights and buffers by name.
        allow: Packages that the user trusts in addition to genimg.

    Raises:
        CheckpointError: If they differ from those with which the run has begun.
    """
    found: dict[str, Tensor] = {}
    model = config["model"]
    for name, hint in type_hints(Builder((*ALLOWED, *allow)).locate(model["_target_"], "model")).items():
        if hint is not FrozenAutoencoder or not isinstance(model.get(name), Mapping):
            continue
        prefix = f"{name}.space."
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        if (digest := digest_of(own)) != model[name].get("sha256"):
            raise CheckpointError(
                f"model.{name} in the checkpoint has the SHA-256 {digest[:12]}..., but the run began with "
                f"{str(model[name].get('sha256'))[:12]}...: its weights have changed"
            )
        found |= {f"{prefix}{key}": value for key, value in own.items()}
    return found


def load_autoencoder(given: str, key: str, allow: tuple[str, ...]) -> FrozenAutoencoder:
    """Return a trained autoencoder with its weights, on the CPU.

    Args:
        given: The run directory, or a checkpoint.
        key: Key that holds it.
        allow: Packages that the user trusts in addition to genimg.

    Raises:
        CheckpointError, ConfigError: See ``with_trained_networks``.
    """
    node, tensors, facts = _autoencoder(given, key, allow)
    builder = Builder((*ALLOWED, *allow), named=frozenset(), trains=False)
    autoencoder: FrozenAutoencoder = builder.build(node, key, facts.arguments())
    autoencoder.space.load_state_dict(tensors)
    return autoencoder


def _autoencoder(given: str, key: str, allow: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Tensor], DataFacts]:
    """Return the config of a trained autoencoder as a ``FrozenAutoencoder``, its networks' weights by name, and its data.

    Args:
        given: The run directory, or a checkpoint.
        key: Key that holds it.
        allow: Packages that the user trusts in addition to genimg.
    """
    checkpoint = TrainedCheckpoint.open(given, allow=allow, key=key)
    model, builder = thaw(checkpoint.config["model"]), checkpoint.builder
    method = builder.locate(model["_target_"], key)
    space = getattr(method, "latent_space", None)  # the checkpoint of a stranger may name any class
    if space is None:
        raise ConfigError(
            f"{key}={given} holds a {getattr(method, '__name__', method)}, which is not an autoencoder with a grid of latents",
            "give a run of model=kl_autoencoder or model=vq_vae",
            key=key,
        )
    names = list(inspect.signature(space).parameters)
    facts = checkpoint.facts
    own = {"channels": facts.channels, "image_size": list(height_width(facts.image_size))}
    node = {"_target_": f"{space.__module__}.{space.__qualname__}"} | {
        name: _pinned(model, name, own, builder) for name in names
    }
    _refuse_interpolations(node, key)
    untrusted.take_out({"model": node}, builder, ("model",))
    tensors = {name: value for name, value in checkpoint.tensors.items() if name.partition(".")[0] in names}
    builder.check(node, key, facts.arguments())  # also if ``allow`` skips the next line
    require_fitting(partial(builder.build, node, key, facts.arguments()), tensors, builder)
    digest = digest_of(tensors)
    log.info(
        "%s: %s, trained on %s images, weights %s, SHA-256 %s...",
        key, relative(checkpoint.path), f"{checkpoint.images:,}", checkpoint.weights_label, digest[:12],
    )  # fmt: skip
    return (
        {
            "_target_": f"{FrozenAutoencoder.__module__}.{FrozenAutoencoder.__qualname__}",
            "space": node,
            "run": str(checkpoint.path.absolute()),
            "images": checkpoint.images,
            "sha256": digest,
            "shape": [facts.channels, *height_width(facts.image_size)],
        },
        tensors,
        facts,
    )


def _pinned(model: Mapping[str, Any], name: str, facts: Mapping[str, Any], builder: Builder) -> Any:
    """Return a network's node with the facts about its own data, because the new model's data may have others.

    Raises:
        CheckpointError: If the checkpoint's config lacks the network.
    """
    if not isinstance(model.get(name), Mapping) or "_target_" not in model[name]:
        raise CheckpointError(f"the checkpoint's config has no model.{name}", "use another checkpoint")
    taken = inspect.signature(builder.locate(model[name]["_target_"], f"model.{name}")).parameters
    return {**{key: value for key, value in facts.items() if key in taken}, **model[name]}


def _refuse_interpolations(node: Any, key: str) -> None:
    """Refuse strings that would be resolved as part of the new config, because a checkpoint must not call resolvers.

    Raises:
        CheckpointError: If there is one.
    """
    for name, value in node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ():
        _refuse_interpolations(value, f"{key}.{name}")
        if isinstance(value, str) and "${" in value:
            raise CheckpointError(f"{key}.{name}={value} holds an interpolation", "do not use this checkpoint", key=key)
