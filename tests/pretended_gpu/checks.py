"""Checks of the pretended GPU itself: it computes, and it reports what it must. Prints the failures as JSON, by check."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from pretended_gpu.device import PretendedGPU
from pretended_gpu.graphs import computing_graphs
from pretended_gpu.rules import MixedDevicesError

_NUM_STEPS = 7


class _Training:
    """Adam steps of a small network with dropout and batch norm; every other step has a penalty."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(12, 2)]
        self.network = nn.Sequential(*layers).cuda()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01, capturable=True)
        self.images = torch.zeros(5, 1, 4, 4, device="cuda")
        self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.graphs: dict[bool, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def compute(self, *, penalised: bool) -> Tensor:
        """Take a step and return its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        images = self.images + 0.1 * torch.randn_like(self.images)
        loss = self.network(images).square().mean()
        if penalised:
            noisy = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.network(noisy).sum(), noisy, create_graph=True)
            loss = loss + gradient.square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def step(self, number: int, *, by_graphs: bool) -> Tensor:
        """Set what differs between steps, then take the step; each kind of step is captured at its second turn."""
        torch.manual_seed(number)
        penalised = number % 2 == 1
        with torch.cuda.stream(self.stream):
            self.images.copy_(torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(number)))
            if not by_graphs or number < 2:
                return self.compute(penalised=penalised)
            if penalised not in self.graphs:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                    loss = self.compute(penalised=penalised)
                assert loss.isnan().item(), "a capture must not compute"
                self.graphs[penalised] = graph, loss
            graph, loss = self.graphs[penalised]
            graph.replay()
            return loss.clone()

    def results(self, *, by_graphs: bool) -> list[Tensor]:
        """Train; return the losses, the weights, the buffers and the optimizer's state."""
        losses = [self.step(number, by_graphs=by_graphs) for number in range(_NUM_STEPS)]
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return [each.cpu() for each in (*losses, *self.network.state_dict().values(), *states, torch.rand(3, device="cuda"))]


def replayed_steps_equal_eager_ones() -> None:
    """Steps by two graphs, on one stream and from one pool, give the same numbers as eager steps, also those drawn later."""
    with pretending() as gpu:
        eager, training = _Training().results(by_graphs=False), _Training()
        replayed = training.results(by_graphs=True)
    assert len(training.graphs) == 2
    for number, (one, other) in enumerate(zip(eager, replayed, strict=True)):
        assert one.isfinite().all(), number
        assert torch.equal(one, other), number
    assert gpu.launches == 0


def the_cpu_computes_the_same() -> None:
    """Operations give what they give on the CPU."""
    inputs = torch.rand(2, 3, 6, 6)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU())
    expected = network(inputs)
    with pretending():
        computed = network.cuda()(inputs.cuda()).cpu()
    assert torch.equal(computed, expected)


def mixed_devices_raise() -> None:
    """A product of a tensor on the GPU and one on the CPU is an error; a number on the CPU is none."""
    with pretending():
        matrix = torch.ones(3, 3, device="cuda")
        assert (matrix * torch.tensor(2.0)).sum().item() == 18.0
        assert fails(MixedDevicesError, lambda: matrix @ torch.ones(3, 3))


def waits_are_reported_with_their_line() -> None:
    """Reading a number, a mask as an index and blocking copies wait; a copy of pinned memory need not."""
    with pretending() as gpu:
        with gpu.during("free"):
            values = torch.arange(4.0).pin_memory().to("cuda", non_blocking=True) * 2
        with gpu.during("waiting"):
            assert values.sum().item() == 12.0
            assert values[values > 3].numel() == 2
            torch.ones(3).to("cuda")
        with gpu.during("synchronised"):
            torch.cuda.synchronize()
    assert not gpu.waits["free"]
    reasons = {key.partition(" at ")[0]: key for key in gpu.waits["waiting"]}
    assert reasons.keys() == {"_local_scalar_dense", "index by a mask", "copy of 12 bytes to the GPU without non_blocking"}
    assert all(" at checks.py:" in key for key in reasons.values()), reasons
    assert gpu.waits["synchronised"].total() == 1
    assert gpu.operations["free"].total() == 2


def a_wait_in_a_capture_raises() -> None:
    """What waits cannot be captured."""
    with pretending():
        values, graph = torch.ones(3, device="cuda"), torch.cuda.CUDAGraph()

        def capture() -> None:
            with torch.cuda.graph(graph):
                values.sum().item()

        assert fails(RuntimeError, capture)


def seeds_govern_the_numbers() -> None:
    """Numbers are a function of the CUDA generator's seed and offset, not of the CPU's generator."""
    with pretending():
        torch.cuda.manual_seed(1)
        first, second = torch.randn(4, device="cuda"), torch.randn(4, device="cuda")
        state = torch.cuda.get_rng_state()
        third = torch.randn(4, device="cuda")
        torch.default_generator.manual_seed(5)
        torch.cuda.manual_seed(1)
        assert torch.equal(torch.randn(4, device="cuda"), first)
        torch.cuda.set_rng_state(state)
        assert torch.equal(torch.randn(4, device="cuda"), third)
        assert not torch.equal(first, second)
        own = torch.Generator("cuda").manual_seed(1)
        assert torch.equal(torch.randn(4, device="cuda", generator=own), first)
        assert fails(RuntimeError, lambda: torch.randn(4, device="cuda", generator=torch.Generator()))


def new_memory_is_not_a_number() -> None:
    """Uninitialised memory shows in what is computed from it."""
    with pretending():
        assert torch.empty(3, device="cuda").isnan().all().item()
        assert torch.zeros(3, device="cuda").eq(0).all().item()


@contextmanager
def pretending() -> Iterator[PretendedGPU]:
    """Compute on the pretended GPU within the block, also in graphs."""
    gpu = PretendedGPU(Path(__file__).parent)
    with gpu, computing_graphs(gpu):
        yield gpu


def fails(kind: type[BaseException], function: Callable[[], object]) -> bool:
    """Return whether a function raises an error of this kind."""
    try:
        function()
    except kind:
        return True
    return False


CHECKS = (
    replayed_steps_equal_eager_ones, the_cpu_computes_the_same, mixed_devices_raise, waits_are_reported_with_their_line,
    a_wait_in_a_capture_raises, seeds_govern_the_numbers, new_memory_is_not_a_number,
)  # fmt: skip


def print_failures(checks: Iterable[Callable[[], None]]) -> None:
    """Run checks and print the tracebacks of those that fail, by name."""
    failures = {}
    for check in checks:
        try:
            check()
        except Exception:
            failures[check.__name__] = traceback.format_exc()
    print(json.dumps(failures))


if __name__ == "__main__":
    print_failures(CHECKS)
