"""Divide weights, gradients, averages and optimizer states among processes, for models that do not fit into one GPU's memory.

Fully sharded data parallelism (Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel"), by
PyTorch's ``fully_shard``. Each process stores a part of every weight. The weights of a block are gathered when it runs and are
freed after that. Only training steps work with divided weights: sampling, evaluation and checkpoints use whole copies.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from genimg.methods.base import Method
from genimg.methods.capabilities import TrainsSharded
from genimg.training.ema import frozen_copy, with_networks
from genimg.training.host_copies import copied_to_host, map_tensors
from genimg.utils.distributed import own_part, rank, sum_over_ranks, world_size


class Sharding:
    """Divides the networks of a method among all processes.

    Args:
        method: Method with the same weights on every rank, in host memory. Its sharded networks are divided and moved to the
            device in place, and everything else is moved.
        device: This process's device.

    Attributes:
        networks: The divided networks, by their names in the method.
    """

    def __init__(self, method: Method, device: torch.device) -> None:
        assert isinstance(method, TrainsSharded)
        self._device = device
        self.networks: dict[str, nn.Module] = {name: getattr(method, name) for name in method.shardable_networks()}
        self._skeletons = {name: _without_weights(network) for name, network in self.networks.items()}
        mesh = init_device_mesh(device.type, (world_size(),))
        for network in self.networks.values():
            scalars = {parameter for parameter in network.parameters() if parameter.dim() == 0}  # these cannot be divided
            for block in _blocks(network):
                fully_shard(block, mesh=mesh, ignored_params=scalars & set(block.parameters()))
            fully_shard(network, mesh=mesh, ignored_params=scalars)
            for module in network.modules():
                if isinstance(module, FSDPModule):  # the loss is a mean over ranks already, and gloo can only sum
                    module.set_gradient_divide_factor(1.0)
                    module.set_force_sum_reduction_for_comms(True)
        method.to(device)

    def average_of(self, name: str) -> nn.Module:
        """Return a copy of a network in evaluation mode, with its own weights, divided in the same way, and without forward."""
        made, original = copy.deepcopy(self._skeletons[name]), self.networks[name]
        copies: dict[int, nn.Parameter] = {}  # layers may share weights
        for layer, other in zip(made.modules(), original.modules(), strict=True):
            for key, value in other._parameters.items():
                if value is not None and id(value) not in copies:
                    copies[id(value)] = nn.Parameter(value.detach().clone(), requires_grad=False)
                layer._parameters[key] = None if value is None else copies[id(value)]
        return made.to(self._device)

    def sampler(self, method: Method) -> Method:
        """Return a copy of the method, or of an average of it, that samples with whole weights. All ranks must call it."""
        networks: dict[str, nn.Module] = {name: getattr(method, name) for name in method.inference_networks}
        return with_networks(method, networks | {name: self._whole(name, networks[name]) for name in self.networks})

    def optimizer_groups(self, parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
        """Group parameters for an optimizer, whose kernels take either divided parameters or others."""
        kinds = [[each for each in parameters if self.is_divided(each) is divided] for divided in (True, False)]
        return [{"params": kind} for kind in kinds if kind]

    @staticmethod
    def is_divided(tensor: Tensor) -> bool:
        return isinstance(tensor, DTensor)

    def divided(self, state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
        """Return the state of a module with its tensors divided as those of the module are."""
        own = module.state_dict()
        return {key: self.divided_like(value, own.get(key)) for key, value in state.items()}

    @staticmethod
    def divided_like(tensor: Tensor, other: object) -> Tensor:
        """Return this rank's part of a whole tensor if another one of its shape is divided; else the tensor itself."""
        if not isinstance(other, DTensor) or not isinstance(tensor, Tensor) or tensor.shape != other.shape:
            return tensor
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)

    @staticmethod
    def norm(gradients: Sequence[Tensor]) -> Tensor:
        """Return the L2 norm of gradients of which some are divided."""
        parts = nn.utils.get_total_norm([own_part(each) for each in gradients if isinstance(each, DTensor)])
        square = sum_over_ranks(parts.square())
        if others := [each for each in gradients if not isinstance(each, DTensor)]:
            square = square + nn.utils.get_total_norm(others).square()
        return square.sqrt()

    def clip(self, gradients: Sequence[Tensor], limit: float, norm: Tensor) -> None:
        """Scale gradients in place so that their norm is at most ``limit``, by the rule of ``clip_grads_with_norm_``."""
        torch._foreach_mul_([own_part(each) for each in gradients], (limit / (norm + 1e-6)).clamp(max=1.0))

    def gathered(self, value: Any) -> Any:
        """Return a copy of mappings, lists and tensors with whole tensors, in host memory, on the first rank.

        All ranks must call it; other ranks get the value itself.
        """

        def gather(tensor: Tensor) -> Tensor:
            if isinstance(tensor, DTensor):
                whole = tensor.full_tensor()  # all ranks take part
                return whole.cpu() if rank() == 0 else tensor
            return copied_to_host(tensor) if rank() == 0 else tensor

        return map_tensors(gather, value)

    def _whole(self, name: str, network: nn.Module) -> nn.Module:
        made = copy.deepcopy(self._skeletons[name])
        state = {
            key: value.full_tensor() if isinstance(value, DTensor) else value.clone()
            for key, value in network.state_dict().items()
        }
        made.load_state_dict(state, assign=True)
        return made.to(self._device).requires_grad_(False)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts whose weights are gathered one after another: the members of the outermost lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (each for each in child if any(True for _ in each.parameters()))
        else:
            yield from _blocks(child)


def _without_weights(network: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode whose weights take no memory."""
    weights = {id(each): nn.Parameter(torch.empty_like(each, device="meta"), False) for each in network.parameters()}
    return frozen_copy(network, weights)
