"""CycleGAN against the paper's equations written out, and whole steps against a plain loop with a list as the pool."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from errors import raises
from torch import Tensor, nn

from genimg.data.tasks.base import Unpaired
from genimg.losses.adversarial import (
    AdversarialLoss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)
from genimg.methods.cyclegan import CycleGAN
from genimg.methods.image_to_image import in_blocks
from genimg.networks.patchgan import PatchDiscriminator
from genimg.networks.resnet_translator import Translator
from genimg.training.device import Precision
from genimg.training.update import Updater
from genimg.types import Progress

LEAST_SQUARES = AdversarialLoss(discriminator=least_squares_discriminator_loss, generator=least_squares_generator_loss)
RELATIVISTIC = AdversarialLoss(
    discriminator=relativistic_discriminator_loss, generator=relativistic_generator_loss, relativistic=True
)
SIZE = 8


def translator(sources: int = 3, targets: int = 3, *, num_downs: int = 1, normalisation: str = "instance") -> Translator:
    return Translator(
        source_channels=sources, target_channels=targets, width=4, num_downs=num_downs, num_blocks=1,
        normalisation=normalisation, padding="reflect", upsampling="transposed", dropout=0.0, initialisation="xavier",
        spectral_norm=False,
    )  # fmt: skip


def discriminator(
    channels: int = 3, *, num_strided: int = 1, num_scales: int = 1, normalisation: str = "instance"
) -> PatchDiscriminator:
    return PatchDiscriminator(
        target_channels=channels, source_channels=0, width=4, num_strided=num_strided, num_scales=num_scales,
        normalisation=normalisation, initialisation="xavier", spectral_norm=False,
    )  # fmt: skip


def cyclegan(*, channels: tuple[int, int] = (3, 3), normalisation: str = "instance", **changes: Any) -> CycleGAN:
    torch.manual_seed(0)
    (a, b), norm = channels, {"normalisation": normalisation}
    networks = {
        "translator": lambda *, source_channels, target_channels: translator(source_channels, target_channels, **norm),
        "discriminator": lambda *, source_channels, target_channels: discriminator(target_channels, **norm),
    }
    settings = {
        "loss": LEAST_SQUARES, "adversarial_weight": 2.0, "cycle_weight": 10.0, "identity_weight": 0.5, "pool_size": 0,
        "image_size": SIZE, "source_channels": a, "target_channels": b, "sampled_mode": "eval",
        "task": Unpaired(source_channels=a),
    }  # fmt: skip
    return CycleGAN(**(networks | settings | changes))


def domains(
    seed: int = 1, count: int = 2, channels: tuple[int, int] = (3, 3), dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    sides = zip("ab", channels, strict=True)
    return {key: (torch.rand(count, each, SIZE, SIZE, generator=random) * 2 - 1).to(dtype) for key, each in sides}


def updater(method: CycleGAN, *, precision: str = "fp32", optimizer: type = torch.optim.SGD, **settings: Any) -> Updater:
    groups = method.parameter_groups()
    optimizers = {name: optimizer(parameters, **settings) for name, parameters in groups.items()}
    return Updater(groups, optimizers, precision=Precision(precision, torch.device("cpu")), max_grad_norm=None)


def l1(output: Tensor, image: Tensor) -> Tensor:
    return (output - image).abs().mean()


def translators_loss(method: CycleGAN, a: Tensor, b: Tensor, *, cycle: float = 10.0, identity: float = 0.5) -> Tensor:
    """Equation 3 with the least squares of section 4 and the identity of section 5.2, one forward after another."""
    fake_b, fake_a = method.a2b(a), method.b2a(b)
    loss = (method.discriminator_b(fake_b)[0] - 1).square().mean() + (method.discriminator_a(fake_a)[0] - 1).square().mean()
    loss = loss + cycle * (l1(method.b2a(fake_b), a) + l1(method.a2b(fake_a), b))
    if identity:
        loss = loss + identity * cycle * (l1(method.b2a(a), a) + l1(method.a2b(b), b))
    return loss


def discriminator_loss(network: PatchDiscriminator, real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of both squared errors, as the authors' code has it."""
    return 0.5 * ((network(real)[0] - 1).square().mean() + network(fake.detach())[0].square().mean())


# Losses


@pytest.mark.parametrize("normalisation", ["instance", "batch"])
@pytest.mark.parametrize("identity", [0.0, 0.5])
def test_losses_of_a_step_are_the_papers(normalisation, identity):
    method, data = cyclegan(normalisation=normalisation, identity_weight=identity), domains()
    plain = copy.deepcopy(method)
    metrics = method.step([data], Progress(0, 2), updater(method, lr=0.0))
    expected = translators_loss(plain, **data, identity=identity)
    assert metrics["loss/translators"].item() == pytest.approx(expected.item(), rel=1e-5)
    fake_b, fake_a = plain.a2b(data["a"]), plain.b2a(data["b"])
    parts = {
        # Both of equation 1, in the form of section 4 with the factor 1/2 of Mao et al.
        "adversarial": 0.5 * (plain.discriminator_b(fake_b)[0] - 1).square().mean()
        + 0.5 * (plain.discriminator_a(fake_a)[0] - 1).square().mean(),
        "cycle": l1(plain.b2a(fake_b), data["a"]) + l1(plain.a2b(fake_a), data["b"]),
        "discriminator_a": discriminator_loss(plain.discriminator_a, data["a"], fake_a),
        "discriminator_b": discriminator_loss(plain.discriminator_b, data["b"], fake_b),
    }
    if identity:
        parts["identity"] = l1(plain.b2a(data["a"]), data["a"]) + l1(plain.a2b(data["b"]), data["b"])
    assert {name for name in metrics if name.startswith("loss/")} == {f"loss/{name}" for name in (*parts, "translators")}
    for name, value in parts.items():
        assert metrics[f"loss/{name}"].item() == pytest.approx(value.item(), rel=1e-5), name
    for key, fake in (("a", fake_a), ("b", fake_b)):
        judge = getattr(plain, f"discriminator_{key}")
        assert metrics[f"logits/real_{key}"].item() == pytest.approx(judge(data[key])[0].mean().item(), abs=1e-5)
        assert metrics[f"logits/fake_{key}"].item() == pytest.approx(judge(fake)[0].mean().item(), abs=1e-5)
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


def test_an_adversarial_weight_of_2_is_the_authors_squared_error_without_one_half():
    method, data = cyclegan(cycle_weight=0.0, identity_weight=0.0), domains()
    loss, _ = method._translators_loss(data | method._translate(data))
    on_b, on_a = method.discriminator_b(method.a2b(data["a"]))[0], method.discriminator_a(method.b2a(data["b"]))[0]
    expected = nn.MSELoss()(on_b, torch.ones_like(on_b)) + nn.MSELoss()(on_a, torch.ones_like(on_a))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_every_weight_multiplies_its_own_part():
    data = domains()
    totals = {}
    for name, weights in {
        "adversarial": (1.0, 0.0, 0.0), "cycle": (0.0, 1.0, 0.0), "identity": (0.0, 1.0, 1.0), "all": (3.0, 5.0, 7.0),
    }.items():  # fmt: skip
        method = cyclegan(**dict(zip(("adversarial_weight", "cycle_weight", "identity_weight"), weights, strict=True)))
        loss, metrics = method._translators_loss(data | method._translate(data))
        totals[name] = loss.item()
    parts = {name: metrics[f"loss/{name}"].item() for name in ("adversarial", "cycle", "identity")}
    assert totals["adversarial"] == pytest.approx(parts["adversarial"], rel=1e-5)
    assert totals["cycle"] == pytest.approx(parts["cycle"], rel=1e-5)
    assert totals["identity"] == pytest.approx(parts["cycle"] + parts["identity"], rel=1e-5)
    assert totals["all"] == pytest.approx(3 * parts["adversarial"] + 5 * parts["cycle"] + 35 * parts["identity"], rel=1e-5)


def test_discriminators_of_several_scales_count_each_of_them_the_same():
    torch.manual_seed(2)
    method, data = cyclegan(discriminator=lambda **_: discriminator(num_strided=0, num_scales=2)), domains()
    judges = {f"discriminator_{key}": getattr(method, f"discriminator_{key}") for key in "ab"}
    made = data | method._translate(data)
    _, metrics = method._discriminators_loss(made)
    for key in "ab":
        pairs = zip(judges[f"discriminator_{key}"](data[key]), judges[f"discriminator_{key}"](made[f"fake_{key}"]), strict=True)
        each = [0.5 * ((real - 1).square().mean() + fake.square().mean()) for real, fake in pairs]
        assert len(each) == 2
        assert metrics[f"loss/discriminator_{key}"].item() == pytest.approx((sum(each) / 2).item(), rel=1e-5)


def test_a_relativistic_translator_is_compared_with_the_images_of_its_own_target():
    method, data = cyclegan(loss=RELATIVISTIC), domains()
    made = data | method._translate(data)
    _, metrics = method._translators_loss(made)
    expected = 0.0
    for key in "ab":
        judge = getattr(method, f"discriminator_{key}")
        expected += -F.logsigmoid(judge(made[f"fake_{key}"])[0] - judge(data[key])[0]).mean()
    assert metrics["loss/adversarial"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("normalisation", ["instance", "batch"])
def test_in_bf16_a_step_has_nearly_the_losses_of_float32(normalisation):
    found = {}
    for precision in ("fp32", "bf16"):
        method = cyclegan(normalisation=normalisation, pool_size=3)
        update = updater(method, precision=precision, lr=0.0)
        for step in range(3):  # so that the pool gives back images of its own
            torch.manual_seed(step)
            metrics = method.step([domains(step)], Progress(2 * step, 2), update)
        update.raise_if_not_finite()
        found[precision] = {name: value.item() for name, value in metrics.items() if name.startswith("loss/")}
    assert found["fp32"] != found["bf16"]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.05)


# Forwards


def batches_of(method: CycleGAN, name: str) -> list[Tensor]:
    """Filled with what a network is given."""
    seen: list[Tensor] = []
    getattr(method, name).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().clone()))
    return seen


def test_without_the_identity_each_translator_has_two_forwards_a_step():
    method, data = cyclegan(identity_weight=0.0), domains()
    fakes = {"b2a": method.a2b(data["a"]), "a2b": method.b2a(data["b"])}
    seen = {name: batches_of(method, name) for name in method.directions}
    metrics = method.step([data], Progress(0, 2), updater(method, lr=0.1))
    for name, key in (("a2b", "a"), ("b2a", "b")):
        assert [len(each) for each in seen[name]] == [2, 2]
        assert torch.equal(seen[name][0], data[key])
        assert torch.allclose(seen[name][1], fakes[name], rtol=0, atol=1e-6)
    assert "loss/identity" not in metrics


@pytest.mark.parametrize(("normalisation", "sizes"), [("instance", [4, 2]), ("batch", [2, 2, 2])])
def test_the_identity_goes_through_in_one_unless_batch_norm_would_mix_the_domains(normalisation, sizes):
    method, data = cyclegan(normalisation=normalisation), domains()
    seen = {name: batches_of(method, name) for name in method.directions}
    method.step([data], Progress(0, 2), updater(method, lr=0.1))
    for name, order in (("a2b", "ab"), ("b2a", "ba")):
        assert [len(each) for each in seen[name]] == sizes
        assert torch.equal(torch.cat(seen[name])[:4], torch.cat([data[key] for key in order]))


# Updates


def test_the_translators_are_updated_first_and_each_update_changes_its_own_networks():
    method = cyclegan()
    before = {name: value.clone() for name, value in method.named_parameters()}
    changed = []

    class Recording(Updater):
        def __call__(self, group, loss, batch):
            old = {name: value.clone() for name, value in method.named_parameters()}
            result = super().__call__(group, loss, batch)
            new = dict(method.named_parameters())
            changed.append((group, {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}))
            return result

    groups = method.parameter_groups()
    optimizers = {name: torch.optim.SGD(parameters, lr=0.1) for name, parameters in groups.items()}
    update = Recording(groups, optimizers, precision=Precision("fp32", torch.device("cpu")), max_grad_norm=None)
    method.step([domains()], Progress(0, 2), update)
    assert changed == [("translators", {"a2b", "b2a"}), ("discriminators", {"discriminator_a", "discriminator_b"})]
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in method.parameters())
    assert len(before) == len(grouped)


def test_the_discriminators_loss_does_not_reach_the_translators():
    for pool_size in (0, 3):
        method, data = cyclegan(pool_size=pool_size), domains()
        loss, _ = method._discriminators_loss(data | method._translate(data))
        loss.backward()
        groups = method.parameter_groups()
        assert all(parameter.grad is None for parameter in groups["translators"])
        assert all(parameter.grad is not None for parameter in groups["discriminators"])


class List:
    """The authors' pool with the random numbers of genimg's, in Python; counts older images that were shown."""

    def __init__(self, size: int) -> None:
        self.size, self.images, self.shown_again = size, [], 0

    def __call__(self, images: Tensor) -> Tensor:
        if not self.size:
            return images
        shown = []
        for image in images.detach():
            slot, swap = torch.randint(self.size, (1,)).item(), torch.rand(()).item() < 0.5
            if len(self.images) < self.size:
                self.images.append(image)
            elif swap:
                self.images[slot], image = image, self.images[slot]
                self.shown_again += 1
            shown.append(image)
        return torch.stack(shown)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(
    ("pool_size", "num_steps", "normalisation"), [(0, 2, "instance"), (0, 2, "batch"), (3, 5, "instance"), (3, 5, "batch")]
)
def test_steps_are_those_of_a_plain_loop(pool_size, num_steps, normalisation, optimizer, monkeypatch):
    """In float64, where weights without effect, whose gradients are rounding alone, stay where they are."""
    monkeypatch.setattr(Tensor, "float", lambda tensor: tensor)  # so that no rounding grows from step to step
    settings = {"lr": 0.01, "betas": (0.5, 0.999)} if optimizer is torch.optim.Adam else {"lr": 0.03}
    method = cyclegan(pool_size=pool_size, normalisation=normalisation).double()
    plain, start = copy.deepcopy(method), copy.deepcopy(method)
    data = [domains(step, dtype=torch.float64) for step in range(num_steps)]
    update = updater(method, optimizer=optimizer, **settings)
    torch.manual_seed(11)
    for step, batch in enumerate(data):
        method.step([batch], Progress(2 * step, 2), update)

    first = optimizer(itertools.chain(plain.a2b.parameters(), plain.b2a.parameters()), **settings)
    second = optimizer(itertools.chain(plain.discriminator_a.parameters(), plain.discriminator_b.parameters()), **settings)
    pool_a, pool_b = List(pool_size), List(pool_size)
    torch.manual_seed(11)
    for batch in data:
        with torch.no_grad():  # of before the translators' step
            fake_b, fake_a = copy.deepcopy(plain.a2b)(batch["a"]), copy.deepcopy(plain.b2a)(batch["b"])
        first.zero_grad()
        translators_loss(plain, **batch).backward()
        first.step()
        second.zero_grad()
        discriminator_loss(plain.discriminator_a, batch["a"], pool_a(fake_a)).backward()
        discriminator_loss(plain.discriminator_b, batch["b"], pool_b(fake_b)).backward()
        second.step()

    if pool_size:
        assert pool_a.shown_again > 0
        assert pool_b.shown_again > 0
        assert torch.allclose(method.pool_a.images, torch.stack(pool_a.images), rtol=0, atol=1e-8)
        assert torch.allclose(method.pool_b.images, torch.stack(pool_b.images), rtol=0, atol=1e-8)
    expected, moved = dict(plain.named_parameters()), 0.0
    for name, found in method.named_parameters():
        assert torch.allclose(found, expected[name], rtol=0, atol=1e-8), name
        moved = max(moved, (found - start.get_parameter(name)).abs().max().item())
    assert moved > 5e-3


def test_each_discriminator_sees_its_own_domain_and_pool():
    method, data = cyclegan(channels=(1, 3), identity_weight=0.0, pool_size=3), domains(channels=(1, 3))
    seen = {key: batches_of(method, f"discriminator_{key}") for key in "ab"}
    made = data | method._translate(data)
    method._discriminators_loss(made)
    for key in "ab":
        (both,) = seen[key]
        assert torch.equal(both, torch.cat([data[key], made[f"fake_{key}"]]))
        pool = getattr(method, f"pool_{key}")
        assert torch.equal(pool.images[:2], made[f"fake_{key}"])
        assert pool.count.item() == 2


# Translating


def test_directions_are_the_two_translators_and_a2b_unasked():
    method, source = cyclegan(), domains()["a"]
    assert method.directions == ("a2b", "b2a")
    for direction, network in ((None, method.a2b), ("a2b", method.a2b), ("b2a", method.b2a)):
        assert method.translator(direction) is network
        found = method.translate(source, direction)
        assert torch.equal(found, network(source))
        assert not found.requires_grad
    assert not torch.allclose(method.translate(source, "a2b"), method.translate(source, "b2a"), rtol=0, atol=0.01)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_translations_have_the_sampled_modes_statistics_and_leave_buffers(mode):
    method = cyclegan(normalisation="batch", sampled_mode=mode)
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    source = domains()["a"]
    found = {direction: method.translate(source, direction) for direction in method.directions}
    for name, buffer in method.named_buffers():
        assert torch.equal(buffer, before[name]), name
    for direction, translation in found.items():
        network = method.translator(direction)
        assert network.training
        batches = source.split(1) if mode == "train" else [source]
        assert torch.equal(torch.cat([network.train(mode == "train")(each) for each in batches]), translation)
        assert not torch.allclose(network.train(mode != "train")(source), translation, rtol=0, atol=0.01)


def test_sides_of_sources_fit_both_translators_of_the_same_depth():
    assert cyclegan(translator=lambda **_: translator(num_downs=2)).size_divisor == 4


def test_sides_of_sources_fit_the_deeper_translator():
    made = iter((translator(), translator(num_downs=2)))
    assert cyclegan(translator=lambda **_: next(made)).size_divisor == 4


@pytest.mark.parametrize("channels", [(3, 3), (1, 3), (1, 1)])
def test_previews_are_images_translations_and_those_translated_back(channels):
    method = cyclegan(channels=channels, identity_weight=0.0)
    data = domains(count=9, channels=channels)
    preview = method.preview(data, {})
    assert list(preview) == ["a2b", "b2a"]
    most = max(channels)
    for direction, back, key in (("a2b", "b2a", "a"), ("b2a", "a2b", "b")):
        translated = method.translate(data[key], direction)
        columns = [data[key], translated, method.translate(translated, back)]
        rows = torch.stack([each.expand(-1, most, -1, -1) for each in columns], dim=1)
        assert rows.shape == (9, 3, most, SIZE, SIZE)
        assert torch.equal(preview[direction], in_blocks(rows))


# What is refused


def test_check_passes_for_images_that_fit_and_leaves_the_pools_empty():
    method = cyclegan(pool_size=3)
    method.check(domains())
    assert method.pool_a.count.item() == method.pool_b.count.item() == 0


@pytest.mark.parametrize("channels", [(1, 3), (3, 1)])
def test_check_shows_images_that_do_not_fit(channels):
    with raises(RuntimeError, word="channels"):
        cyclegan(identity_weight=0.0).check(domains(channels=channels))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adversarial_weight": -1.0}, "adversarial_weight=-1.0"),
        ({"cycle_weight": -2.0}, "cycle_weight=-2.0"),
        ({"identity_weight": -0.5}, "identity_weight=-0.5"),
        ({"pool_size": -1}, "pool_size=-1"),
        ({"sampled_mode": "mean"}, "sampled_mode=mean"),
        ({"channels": (1, 3), "identity_weight": 0.5}, "identity_weight=0.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with raises(ValueError, words):
        cyclegan(**changes)


def test_unlike_channels_are_fine_without_the_identity():
    method = cyclegan(channels=(1, 3), identity_weight=0.0, pool_size=3)
    metrics = method.step([domains(channels=(1, 3))], Progress(0, 2), updater(method, lr=0.1))
    assert torch.isfinite(torch.stack(list(metrics.values()))).all()
