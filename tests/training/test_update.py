"""The updater: accumulation, isolation of groups, clipping, the finite check and shared forwards."""

import copy
import math

import pytest
import tiny
import torch
from errors import raises
from torch import nn

from genimg.losses.adversarial import cross_entropy_discriminator_loss, nonsaturating_generator_loss
from genimg.training.device import Precision
from genimg.training.update import NonFiniteError, Updater, split
from genimg.types import Progress

FP32 = Precision("fp32", torch.device("cpu"))


def make_updater(networks, *, lr=1.0, precision=FP32, max_grad_norm=None):
    groups = {name: list(network.parameters()) for name, network in networks.items()}
    optimizers = {name: torch.optim.SGD(parameters, lr=lr) for name, parameters in groups.items()}
    return Updater(groups, optimizers, precision=precision, max_grad_norm=max_grad_norm)


def perceptron(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)


def squared_error(network):
    def loss(batch):
        value = (network(batch["image"]).squeeze(1) - batch["target"]).square().mean()
        return value, {"loss/squared": value.detach()}

    return loss


def regression_batch(dtype=torch.float32):
    torch.manual_seed(1)
    return {"image": torch.randn(8, 6, dtype=dtype), "target": torch.randn(8, dtype=dtype)}


def test_split_keeps_every_sample_once_and_in_order():
    batch = {"image": torch.arange(24).reshape(12, 2), "label": torch.arange(12)}
    pieces = split(batch, 4)
    assert [len(piece["image"]) for piece in pieces] == [3, 3, 3, 3]
    for key, value in batch.items():
        assert torch.equal(torch.cat([piece[key] for piece in pieces]), value)


@pytest.mark.parametrize("microbatches", [2, 4, 8])
def test_accumulation_gives_the_gradients_and_metrics_of_the_whole_batch(microbatches):
    whole, parts = perceptron(torch.float64), perceptron(torch.float64)
    batch = regression_batch(torch.float64)
    expected = make_updater({"net": whole})("net", squared_error(whole), split(batch, 1))
    found = make_updater({"net": parts})("net", squared_error(parts), split(batch, microbatches))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-14)
    assert expected.keys() == found.keys() == {"loss/squared", "grad_norm/net"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0.0)


def test_an_update_is_one_plain_optimizer_step():
    updated, reference = perceptron(), perceptron()
    batch = regression_batch()
    make_updater({"net": updated}, lr=0.1)("net", squared_error(updated), [batch])
    loss, _ = squared_error(reference)(batch)
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    for new, old, gradient in zip(updated.parameters(), reference.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.1 * gradient, rtol=1e-6, atol=1e-7)


def test_gradients_of_an_earlier_update_are_not_added_to_the_next():
    network, batch = perceptron(), regression_batch()
    updater = make_updater({"net": network}, lr=0.0)
    updater("net", squared_error(network), [batch])
    first = [parameter.grad.clone() for parameter in network.parameters()]
    updater("net", squared_error(network), [batch])
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(network.parameters(), first, strict=True))


def test_only_the_named_group_receives_gradients_and_changes():
    first, second = nn.Linear(6, 6), nn.Linear(6, 1)
    before = copy.deepcopy([first.state_dict(), second.state_dict()])
    updater = make_updater({"first": first, "second": second}, lr=0.1)
    batch = regression_batch()

    def loss(microbatch):
        return second(first(microbatch["image"])).square().mean(), {}

    updater("second", loss, [batch])
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(torch.equal(value, before[0][key]) for key, value in first.state_dict().items())
    assert all(not torch.equal(value, before[1][key]) for key, value in second.state_dict().items())

    middle = copy.deepcopy(second.state_dict())
    updater("first", loss, [batch])
    assert all(torch.equal(value, middle[key]) for key, value in second.state_dict().items())
    assert all(not torch.equal(value, before[0][key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("limit", [0.01, 0.5, 1e6])
def test_clipping_equals_that_of_torch(limit):
    clipped, reference = perceptron(), perceptron()
    batch = regression_batch()
    metrics = make_updater({"net": clipped}, max_grad_norm=limit)("net", squared_error(clipped), [batch])

    squared_error(reference)(batch)[0].backward()
    norm = nn.utils.clip_grad_norm_(reference.parameters(), limit)
    assert (norm > limit) == (limit < 1.0)  # the cases lie on both sides of the norm
    torch.testing.assert_close(metrics["grad_norm/net"], norm, rtol=1e-6, atol=0.0)  # the norm before clipping
    for one, other in zip(clipped.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_that_is_not_above_zero_is_refused(limit):
    with raises(ValueError, "max_grad_norm"):
        make_updater({"net": nn.Linear(1, 1)}, max_grad_norm=limit)


def scaled_loss(network, factor):
    return lambda batch: (network(batch["image"]).mean() * factor, {})


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_reported_with_its_group_and_first_step(factor):
    networks = {"discriminator": nn.Linear(6, 1), "generator": nn.Linear(6, 1)}
    updater = make_updater(networks, lr=1e-3)
    batch = [regression_batch()]
    for step in range(8):
        updater.step = step
        updater("discriminator", scaled_loss(networks["discriminator"], factor if step >= 5 else 1.0), batch)
        updater("generator", scaled_loss(networks["generator"], factor if step in (3, 4) else 1.0), batch)
        if step < 3:
            updater.raise_if_not_finite()
    with pytest.raises(NonFiniteError) as caught:
        updater.raise_if_not_finite()
    assert (caught.value.group, caught.value.step) == ("generator", 3)


def test_a_gradient_that_is_not_finite_is_reported_though_the_loss_is():
    network = nn.Linear(6, 1)
    updater = make_updater({"net": network})
    updater.step = 7

    def loss(batch):
        value = (network(batch["image"]) * 0.0).sqrt().sum()  # 0, with the slope of a square root at 0
        assert value.item() == 0.0
        return value, {}

    updater("net", loss, [regression_batch()])
    with pytest.raises(NonFiniteError) as caught:
        updater.raise_if_not_finite()
    assert (caught.value.group, caught.value.step) == ("net", 7)


def test_one_microbatch_that_is_not_finite_is_enough():
    network = nn.Linear(6, 1)
    updater = make_updater({"net": network})
    batch = regression_batch()
    batch["image"][5, 0] = math.inf
    updater("net", lambda microbatch: (network(microbatch["image"]).tanh().mean(), {}), split(batch, 4))
    with pytest.raises(NonFiniteError):
        updater.raise_if_not_finite()


def test_bf16_computes_in_bf16_and_keeps_weights_and_gradients_in_float32():
    network = nn.Linear(6, 1)
    updater = make_updater({"net": network}, precision=Precision("bf16", torch.device("cpu")))
    seen = []

    def add_output(batch):
        return {"output": network(batch["image"])}

    def loss(batch):
        seen.append((batch["output"].dtype, network(batch["image"]).dtype))
        return batch["output"].float().mean(), {}

    updater("net", loss, updater.forward("net", add_output, [regression_batch()]))
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert network.weight.dtype == network.weight.grad.dtype == torch.float32


def test_forward_keeps_the_batch_and_its_graph_reaches_the_group():
    network = nn.Linear(6, 3)
    updater = make_updater({"net": network}, lr=0.0)
    batch = split(regression_batch(), 2)
    result = updater.forward("net", lambda microbatch: {"output": network(microbatch["image"])}, batch)
    assert [piece.keys() for piece in result] == [{"image", "target", "output"}] * 2
    assert all(torch.equal(new["image"], old["image"]) for new, old in zip(result, batch, strict=True))
    assert "output" not in batch[0]

    updater("net", lambda microbatch: (microbatch["output"].mean(), {}), result)
    # d mean(W x + b) / db = 1/3 for each of the three outputs
    torch.testing.assert_close(network.bias.grad, torch.full((3,), 1.0 / 3.0), rtol=1e-6, atol=0.0)


def make_gan(generator_interval=1):
    return tiny.gan(generator_interval=generator_interval)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=2e-3, betas=(0.5, 0.999))


def real_images(step, num_images=8):
    return torch.rand(num_images, 1, 16, 16, generator=torch.Generator().manual_seed(step)) * 2.0 - 1.0


@pytest.mark.parametrize("generator_interval", [1, 2])
def test_a_gan_step_has_the_weights_of_a_handwritten_one_bit_for_bit(generator_interval):
    gan = make_gan(generator_interval)
    generator, discriminator = copy.deepcopy(gan.generator), copy.deepcopy(gan.discriminator)
    groups = gan.parameter_groups()
    updater = Updater(groups, {name: adam(group) for name, group in groups.items()}, precision=FP32, max_grad_norm=None)
    optimizer_d, optimizer_g = adam(discriminator.parameters()), adam(generator.parameters())
    for step in range(4):
        torch.manual_seed(100 + step)
        gan.step([{"image": real_images(step)}], Progress(images=8 * step, batch_size=8), updater)

        torch.manual_seed(100 + step)
        nothing = tiny.no_condition(8)
        fake = generator(torch.randn(8, 5), nothing)
        optimizer_d.zero_grad()
        real_logits = discriminator(real_images(step), nothing).logits
        cross_entropy_discriminator_loss(real_logits, discriminator(fake.detach(), nothing).logits).backward()
        optimizer_d.step()
        if step % generator_interval == 0:
            optimizer_g.zero_grad()
            nonsaturating_generator_loss(discriminator(fake, nothing).logits).backward()
            optimizer_g.step()

    initial = make_gan()
    for found, expected, start in (
        (gan.generator, generator, initial.generator),
        (gan.discriminator, discriminator, initial.discriminator),
    ):
        for key, value in expected.state_dict().items():
            assert torch.equal(found.state_dict()[key], value), key
            assert not torch.equal(start.state_dict()[key], value), f"{key} was never trained"


@pytest.mark.parametrize(("microbatches", "calls"), [(1, 1), (2, 4)])
def test_a_gan_step_runs_its_generator_once_or_twice_a_microbatch_where_there_are_several(microbatches, calls):
    gan = make_gan()
    groups = gan.parameter_groups()
    updater = Updater(groups, {name: adam(group) for name, group in groups.items()}, precision=FP32, max_grad_norm=None)
    made = []
    gan.generator.register_forward_hook(lambda module, inputs, output: made.append((len(output), output.requires_grad)))
    gan.step(split({"image": real_images(0)}, microbatches), Progress(images=0, batch_size=8), updater)
    assert len(made) == calls
    assert [count for count, _ in made] == [8 // microbatches] * calls
    assert [graph for _, graph in made] == ([True] if microbatches == 1 else [False, False, True, True])


def test_a_step_through_a_function_is_a_forward_and_an_update():
    networks = [perceptron(torch.float64) for _ in range(2)]
    batch = split(regression_batch(torch.float64), 2)
    results = []
    for network, through in zip(networks, (False, True), strict=True):
        updater = make_updater({"net": network}, lr=0.1)

        def output(microbatch, network=network):
            return {"output": network(microbatch["image"]).squeeze(1)}

        def loss(microbatch):
            value = (microbatch["output"] - microbatch["target"]).square().mean()
            return value, {"loss/squared": value.detach()}

        if through:
            made, metrics = updater.through("net", output, loss, batch)
        else:
            made = updater.forward("net", output, batch)
            metrics = updater("net", loss, made)
        results.append((made, metrics))
    assert all(torch.equal(a, b) for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True))
    (made, metrics), (other, others) = results
    assert metrics.keys() == others.keys()
    assert all(torch.equal(metrics[key], others[key]) for key in metrics)
    assert all(
        torch.equal(a["output"], b["output"]) and not b["output"].requires_grad for a, b in zip(made, other, strict=True)
    )
