"""genimg: config-driven training of image generation models.

    import genimg

    run = genimg.train(["model=dcgan_small", "data=mnist"])
    model = genimg.load(run.directory)
    images = model.sample(16, seed=1)          # float32 [16, C, H, W] in [-1, 1]

Importing the package is cheap: PyTorch is imported when one of these names is first used (docs/python.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genimg.errors import CheckpointError, ConfigError, DataError, UserError

if TYPE_CHECKING:
    from genimg.api.compose import compose
    from genimg.api.evaluate import evaluate
    from genimg.api.model import Model, load
    from genimg.api.play import play
    from genimg.api.run import DivergedError, Run
    from genimg.api.train import train
    from genimg.api.verification import Verification
    from genimg.api.verify import verify
    from genimg.data.datasets.external import as_dataset
    from genimg.evaluation.result import Evaluation

__version__ = "0.1.0"

__all__ = [
    "CheckpointError", "ConfigError", "DataError", "DivergedError", "Evaluation", "Model", "Run", "UserError", "Verification",
    "as_dataset", "compose", "evaluate", "load", "play", "train", "verify",
]  # fmt: skip

_HOMES = {
    "DivergedError": "api.run", "Evaluation": "evaluation.result", "Model": "api.model", "Run": "api.run",
    "as_dataset": "data.datasets.external", "compose": "api.compose", "evaluate": "api.evaluate", "load": "api.model",
    "Verification": "api.verification", "play": "api.play", "train": "api.train", "verify": "api.verify",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'genimg' has no attribute {name!r}")
    return getattr(importlib.import_module(f"genimg.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
