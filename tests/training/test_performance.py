from __future__ import annotations

import pytest
import torch
from errors import raises
from torch import nn

from genimg.errors import ConfigError
from genimg.training import performance as performance_module
from genimg.training.performance import Performance

CPU = torch.device("cpu")


def performance(**changes):
    return Performance(**{"channels_last": "auto", "fused_optimizer": "auto", "compile": "auto", **changes})


class Pair(nn.Module):
    """As a method: a network that is trained and one that is not."""

    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(3, 4, 3)
        self.average = nn.Conv2d(3, 4, 3).requires_grad_(False)

    def parameter_groups(self):
        return {"network": list(self.network.parameters())}


@pytest.mark.parametrize(("value", "expected"), [("auto", True), (True, True), (False, False)])
def test_networks_are_placed_in_the_memory_format_requested(value, expected):
    method = Pair()
    performance(channels_last=value).place(method, CPU)
    assert method.network.weight.is_contiguous(memory_format=torch.channels_last) == expected
    assert method.network.weight.is_contiguous() != expected


def test_a_fused_optimizer_is_taken_where_there_is_one():
    assert performance().of_optimizer(torch.optim.Adam, {}, CPU) == {"fused": True}
    assert performance().of_optimizer(torch.optim.RMSprop, {}, CPU) == {}
    assert performance(fused_optimizer=False).of_optimizer(torch.optim.Adam, {}, CPU) == {}
    with raises(ConfigError, "fused_optimizer=true"):
        performance(fused_optimizer=True).of_optimizer(torch.optim.RMSprop, {}, CPU)


def test_a_fused_step_is_a_plain_step():
    torch.manual_seed(0)
    one, other = nn.Linear(50, 50), nn.Linear(50, 50)
    other.load_state_dict(one.state_dict())
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.999), **setting.of_optimizer(torch.optim.Adam, {}, CPU))
        for network, setting in ((one, performance()), (other, performance(fused_optimizer=False)))
    ]
    for _ in range(5):
        gradient = torch.randn(50, 50)
        for network, optimizer in zip((one, other), optimizers, strict=True):
            network.weight.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(one.weight, other.weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("value", ["auto", False])
def test_nothing_is_compiled_unless_requested(value):
    method = Pair()
    performance(compile=value).place(method, CPU)
    assert method.network._compiled_call_impl is None


def test_trained_networks_are_compiled_in_place():
    method = Pair()
    method.network.requires_grad_(False)  # as while another group is updated
    names = list(method.state_dict())
    performance(compile="default").place(method, CPU)
    assert method.network._compiled_call_impl is not None
    assert method.average._compiled_call_impl is None
    assert list(method.state_dict()) == names


@pytest.mark.parametrize(
    ("key", "value"), [("channels_last", "yes"), ("fused_optimizer", 2), ("compile", True), ("compile", "fast")]
)
def test_unknown_settings_are_refused_by_name(key, value):
    with raises(ValueError, f"{key}={value}"):
        performance(**{key: value})


def test_what_was_chosen_is_said():
    parameters = [nn.Parameter(torch.zeros(3))]
    fused, plain = (torch.optim.Adam(parameters, fused=choice) for choice in (True, None))
    assert performance().describe([plain, fused]) == "channels last, fused optimizer"
    assert performance().describe([plain]) == "channels last"
    assert performance(channels_last=False).describe([plain]) == "plain"
    assert performance(compile="reduce-overhead").describe([plain]).endswith("torch.compile (reduce-overhead)")


@pytest.mark.parametrize("settings", [{"foreach": True}, {"differentiable": True}, {"fused": False}])
def test_settings_that_exclude_a_fused_optimizer_win(settings):
    assert performance().of_optimizer(torch.optim.Adam, settings, CPU) == {}


@pytest.mark.parametrize("wanted", [True, False])
def test_what_only_a_cpu_needs_can_be_turned_off(wanted: bool) -> None:
    method = Pair()
    method.network.add_module("norm", nn.InstanceNorm2d(4))
    placed = performance(cpu_optimizations=wanted)
    placed.place(method, CPU)
    assert (type(method.network.norm) is nn.InstanceNorm2d) != wanted
    optimizer = torch.optim.Adam(method.network.parameters(), fused=True)
    placed.place_optimizer(optimizer)
    assert ("_init_group" in vars(optimizer)) == wanted


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, ""),
        ({"activation_checkpointing": True}, "checkpointing"),
        ({"compile": "max-autotune"}, "max-autotune"),
        ({"compile": "default"}, ""),
    ],
)
def test_steps_run_as_graphs_only_where_they_can(changes: dict[str, object], word: str) -> None:
    found = performance(**{"compile": False, **changes})
    assert found.refusal_of_graphs(CPU) == "the device is cpu"
    assert not found.may_choose_graphs(CPU)
    reason = found.refusal_of_graphs(torch.device("cuda"))
    assert word in reason
    assert bool(reason) == bool(word)
    assert found.may_choose_graphs(torch.device("cuda")) == (not word)


def test_graphs_with_several_processes_must_be_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance_module, "world_size", lambda: 2)
    found = performance(compile=False)
    assert not found.refusal_of_graphs(torch.device("cuda"))
    assert not found.may_choose_graphs(torch.device("cuda"))


@pytest.mark.parametrize("changes", [{"activation_checkpointing": True, "compile": False}, {"compile": "reduce-overhead"}])
def test_settings_that_exclude_graphs_are_refused_together_with_them(changes: dict[str, object]) -> None:
    with raises(ValueError, "graph=true"):
        performance(graph=True, **changes)
