"""Average batch norm's running statistics over several processes, each of which sees different images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from genimg.methods.modes import is_kept_in_eval_mode
from genimg.utils.distributed import begin_sum_, world_size


class BatchStatistics:
    """Running means and variances of batch norms. Synchronised layers already see all ranks' images; frozen ones do not change.

    Args:
        networks: Networks that hold the layers.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        layers = {id(layer): layer for network in networks for layer in network.modules()}  # networks may share layers
        buffers = [
            buffer
            for layer in layers.values()
            if isinstance(layer, nn.modules.batchnorm._NormBase)
            and not isinstance(layer, nn.SyncBatchNorm)
            and not is_kept_in_eval_mode(layer)
            for buffer in layer.buffers()
        ]
        self._buffers: list[Tensor] = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._counts = [buffer for buffer in buffers if not buffer.is_floating_point()]
        self._changes = self._num_changes()  # at the time of the statistics in ``_means``
        self._means = torch.empty(0)
        self._finish: Callable[[], object] | None = None

    def begin_average(self) -> None:
        """Begin to compute the means over all ranks of the current statistics; an average begun before is forgotten.

        The messages travel while a backward pass computes.
        """
        if not self._buffers:
            return
        self._wait()
        self._changes = self._num_changes()
        self._means = torch.cat([buffer.reshape(-1) for buffer in self._buffers]).div_(world_size())
        self._finish = begin_sum_(self._means)

    def abandon(self) -> None:
        """Forget an average that was begun, without waiting for it."""
        self._finish = None

    def finish_average(self) -> None:
        """Replace the statistics by their means over all ranks.

        No backward pass may follow through layers that were computed before: autograd refuses changed statistics.
        """
        if self._finish is None:  # no update in this step
            return
        if self._num_changes() != self._changes:  # a forward pass followed the last update
            self.begin_average()
        self._wait()
        means = self._means.split([buffer.numel() for buffer in self._buffers])
        torch._foreach_copy_(self._buffers, [mean.view_as(buffer) for mean, buffer in zip(means, self._buffers, strict=True)])

    def _num_changes(self) -> list[int]:
        # Autograd counts changes on the host. It does not see those of running statistics, but those of their layers' counters.
        return [count._version for count in self._counts]

    def _wait(self) -> None:
        if self._finish is not None:
            self._finish()
            self._finish = None
