"""What makes Hydra know of ``hydra/launcher=gpu_queue`` and ``hydra/sweeper=optuna_study``."""

from __future__ import annotations

import importlib
import sys
import types

from hydra.core.plugins import Plugins

from genimg.sweeps.launcher import GpuQueueLauncher
from genimg.sweeps.study import OptunaStudySweeper

_MODULE = "hydra_plugins.genimg"  # Hydra takes plugins of that package only


def register() -> None:
    """Register both, whose configs lie in configs/hydra/.

    Without a folder hydra_plugins of our own: other distributions install into it, too.
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
