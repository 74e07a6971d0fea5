"""Optimizers and memory that are faster on a CPU, with the same results."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from genimg.training import cpu


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW])
def test_a_placed_optimizer_steps_as_fused_and_plain_ones(optimizer_class, amsgrad):
    torch.manual_seed(0)
    placed = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 5, 1), nn.Linear(3, 2), nn.Conv2d(16, 32, 4))
    placed.to(memory_format=torch.channels_last)
    fused, plain = copy.deepcopy(placed), copy.deepcopy(placed)
    networks = (placed, fused, plain)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": amsgrad}
    optimizers = [optimizer_class(network.parameters(), fused=network is not plain, **settings) for network in networks]
    cpu.step_without_copies(optimizers[0])
    for step in range(4):
        for parameters in zip(*(network.parameters() for network in networks), strict=True):
            gradient = torch.randn(parameters[0].shape)  # contiguous, where autograd's have the parameter's layout
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            if step == 3:
                parameters[0].grad = gradient
        if step == 2:
            for network in networks:
                network[0].weight.grad = None  # not in every step
        for optimizer in optimizers:
            optimizer.step()
    for parameter, as_fused, as_plain in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(parameter, as_fused)
        assert torch.allclose(parameter, as_plain, rtol=1e-5, atol=1e-6)
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (parameter, as_fused), strict=False)]
        assert len(states[0]) == 3 + amsgrad
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key])
            assert value.stride() == states[1][key].stride()


def test_only_what_has_copies_to_save_is_changed():
    convolution = nn.Conv2d(3, 7, 3)
    for optimizer in (torch.optim.SGD(convolution.parameters(), fused=True), torch.optim.Adam(convolution.parameters())):
        cpu.step_without_copies(optimizer)
        assert "_init_group" not in vars(optimizer)


# Memory


_FAULTS = """
import resource, torch
from genimg.training.cpu import keep_freed_memory
keep_freed_memory()
for step in range(40):  # the first ones find no place of the right size
    if step == 30:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**25, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_unless_the_user_decided_otherwise():
    def page_faults(**environment):
        process = subprocess.run(
            [sys.executable, "-c", _FAULTS], env=os.environ | environment, capture_output=True, text=True, check=True
        )
        return int(process.stdout)

    assert page_faults() < page_faults(MALLOC_TRIM_THRESHOLD_="131072") / 4
