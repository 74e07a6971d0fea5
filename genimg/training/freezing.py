"""Keep parts of a method's networks as they are during training."""

from __future__ import annotations

from collections.abc import Sequence

from genimg.errors import ConfigError
from genimg.methods.base import Method, set_frozen_names, trained_groups
from genimg.methods.modes import keep_in_eval_mode
from genimg.utils.prefixes import begins_with, next_components, shared_beginning


def freeze(method: Method, prefixes: Sequence[str]) -> None:
    """Exclude parameters from training.

    They get no gradients and belong to no optimizer (see ``methods.base.trained_groups``). A module whose parameters are all
    frozen stays in evaluation mode, together with everything in it: batch norm uses its running statistics and does not change
    them, spectral norm keeps its estimate, and there is no dropout.

    Args:
        method: Method with its initial weights.
        prefixes: Beginnings of parameter names, in whole components: ``encoder.blocks.0`` is part of
            ``encoder.blocks.0.weight``, but not of ``encoder.blocks.01.weight``.

    Raises:
        ConfigError: If a prefix matches no trained parameter, or an optimizer would have no parameters left.
    """
    groups = method.parameter_groups()
    trained = {id(parameter) for own in groups.values() for parameter in own}
    names = [name for name, parameter in method.named_parameters() if id(parameter) in trained]
    frozen: set[str] = set()
    for prefix in prefixes:
        matching = [name for name in names if begins_with(name, [prefix])]
        if not matching:
            problem = f"freeze={prefix} matches no parameter that is trained"
            raise ConfigError(problem, f"choose from {next_components(names, str(prefix))}", key="freeze")
        frozen.update(matching)
    if not frozen:
        return
    set_frozen_names(method, frozenset(frozen))
    for group, left in trained_groups(method).items():
        if not left:
            own = {id(parameter) for parameter in groups[group]}
            existing = [name for name, parameter in method.named_parameters() if id(parameter) in own]
            problem = f"freeze leaves nothing to train in the parameter group {group}"
            parts = next_components(existing, shared_beginning(existing))
            raise ConfigError(problem, f"freeze only some of {parts}", key="freeze")
    parameters = dict(method.named_parameters())
    ids = {id(parameters[name]) for name in frozen}
    for name in frozen:
        parameters[name].requires_grad_(False)
    for module in method.modules():
        own_ids = {id(parameter) for parameter in module.parameters()} & trained
        if own_ids and own_ids <= ids:
            for each in module.modules():
                keep_in_eval_mode(each)
