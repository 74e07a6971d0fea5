"""The sampling options of the model that a command line names, for --help."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genimg.api.checkpoints import TrainedCheckpoint
from genimg.commands.arguments import value_of
from genimg.config.schema import Option
from genimg.methods.capabilities import Generates, TranslatesRandomly
from genimg.methods.sampling_options import listed


def listed_options(
    arguments: Sequence[str], capabilities: tuple[type[Generates] | type[TranslatesRandomly], ...], why_none: str
) -> tuple[str, list[Option]]:
    """Return a heading and the sampling options of the model of ``ckpt=``.

    Args:
        arguments: Arguments of the command line.
        capabilities: Capabilities to which the options belong.
        why_none: Why a model without these capabilities has none.
    """
    ckpt, which, allow = (value_of(key, arguments) for key in ("ckpt", "which", "allow"))
    packages = [package.strip() for package in (allow or "").strip("[]").split(",") if package.strip()]
    checkpoint = TrainedCheckpoint.open(ckpt, which or "last", packages)
    method = checkpoint.method(torch.device("cpu"))
    heading = f"Sampling options of this model, a {type(method).__name__}"
    if not isinstance(method, capabilities):
        return f"{heading}: none, {why_none}", []
    rows = [Option(name, kind, default, text, "") for name, kind, default, text in listed(method.sampling_options)]
    return heading if rows else f"{heading}: none", rows
