"""The default generator of the pretended GPU, which exposes the generator whose stream it continues."""

from __future__ import annotations

from typing import Any

import torch


class DefaultGenerator:
    """Stands for ``torch.cuda.default_generators[0]``, whose state can be exchanged for that of another generator.

    Args:
        generator: PyTorch's own one.

    Attributes:
        continued: Generator whose stream it continues.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.continued = generator

    def graphsafe_get_state(self) -> torch.Generator:
        return self.continued

    def graphsafe_set_state(self, generator: torch.Generator) -> torch.Generator:
        self.continued = generator
        return generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.continued, name)
