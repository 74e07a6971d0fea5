"""Average batch norm's running statistics over several processes, each of which sees different images."""

from __future__ import annotations

import torch
from torch import nn

from genimg.utils.distributed import all_reduce_, world_size


class BatchStatistics:
    """Running means and variances of a module's batch norms. Synchronised layers already see all ranks' images."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [
            buffer
            for layer in module.modules()
            if isinstance(layer, nn.modules.batchnorm._NormBase) and not isinstance(layer, nn.SyncBatchNorm)
            for buffer in layer.buffers()
            if buffer.is_floating_point()
        ]

    def average(self) -> None:
        """Replace the statistics by their mean over all ranks, so all ranks have the same state after every step."""
        if world_size() > 1 and self._buffers:
            torch._foreach_div_(self._buffers, world_size())
            all_reduce_(self._buffers)
