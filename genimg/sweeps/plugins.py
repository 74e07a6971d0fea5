"""Register ``hydra/launcher=gpu_queue`` and ``hydra/sweeper=optuna_study`` with Hydra."""

from __future__ import annotations

import importlib
import sys
import types

from hydra.core.plugins import Plugins

from genimg.sweeps.launcher import GpuQueueLauncher
from genimg.sweeps.study import OptunaStudySweeper

_MODULE = "hydra_plugins.genimg"  # Hydra accepts plugins only from that package


def register() -> None:
    """Register both plugins, whose configs are in configs/hydra/.

    The module is created at run time, because other distributions also install into a folder named hydra_plugins.
    """
    package = sys.modules.get("hydra_plugins")
    if package is None:
        try:
            package = importlib.import_module("hydra_plugins")
        except ImportError:  # no plugin is installed
            package = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
            package.__path__ = []
    module = sys.modules[_MODULE] = types.ModuleType(_MODULE)
    package.genimg = module  # type: ignore[attr-defined]
    for plugin in (GpuQueueLauncher, OptunaStudySweeper):
        plugin.__module__ = _MODULE
        setattr(module, plugin.__name__, plugin)
        Plugins.instance().register(plugin)
