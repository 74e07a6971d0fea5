"""Sampling options of a model on the command line of genimg-sample: ``truncation=0.7`` stands for ``sampling.truncation``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from genimg.config.schema import COMMANDS, options_of
from genimg.config.schema.commands import CHECKPOINT_GROUPS


def with_sampling_options(arguments: Sequence[str]) -> list[str]:
    """Move every option that genimg-sample does not have to ``sampling``, which is checked once the model is loaded."""
    known = {option.name for option in options_of(COMMANDS["sample"])} | {*CHECKPOINT_GROUPS, "hydra"}
    keys = [re.match(r"([A-Za-z_]\w*)=", argument) for argument in arguments]
    return [
        f"++sampling.{argument}" if key and key[1] not in known else argument
        for key, argument in zip(keys, arguments, strict=True)
    ]
