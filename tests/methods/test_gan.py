import copy

import pytest
import torch
from torch import nn

from genimg.interfaces import Progress
from genimg.losses.adversarial import (
    AdversarialLoss,
    cross_entropy_discriminator_loss,
    nonsaturating_generator_loss,
)
from genimg.methods.gan import GAN
from genimg.networks.dcgan import Discriminator, Generator


def build(*, generator_interval: int = 1, half_life: int = 1000, ramp_up: float = 1e9, **networks: nn.Module) -> GAN:
    torch.manual_seed(0)
    defaults = {
        "generator": Generator(latent_dim=5, image_size=16, channels=1, width=4),
        "discriminator": Discriminator(image_size=16, channels=1, width=4),
    }
    return GAN(
        **(defaults | networks),
        loss=AdversarialLoss(discriminator=cross_entropy_discriminator_loss, generator=nonsaturating_generator_loss),
        latent_dim=5,
        generator_interval=generator_interval,
        ema_half_life=half_life,
        ema_ramp_up=ramp_up,
    )


class PlainUpdate:
    """The simplest thing that a method may be given: gradient descent, one group at a time, with a record of the calls."""

    def __init__(self, method: GAN, learning_rate: float = 0.1) -> None:
        self.groups = method.parameter_groups()
        self.learning_rate = learning_rate
        self.calls = []
        self.losses = {}
        self.batches = {}

    def forward(self, group, function, batch):
        self.calls.append(f"forward {group}")
        return [microbatch | function(microbatch) for microbatch in batch]

    def __call__(self, group, loss, batch):
        self.calls.append(group)
        self.batches[group] = batch
        results = [loss(microbatch) for microbatch in batch]
        self.losses[group] = sum(value for value, _ in results) / len(results)
        gradients = torch.autograd.grad(self.losses[group], self.groups[group])
        with torch.no_grad():
            for parameter, gradient in zip(self.groups[group], gradients, strict=True):
                parameter -= self.learning_rate * gradient
        return results[0][1]


def real_images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).clone()


def run_step(gan: GAN, *, step: int = 0, update: PlainUpdate | None = None, num_microbatches: int = 1):
    update = update or PlainUpdate(gan)
    batch = [{"image": real_images()} for _ in range(num_microbatches)]
    batch_size = 4 * num_microbatches
    metrics = gan.step(batch, Progress(images=batch_size * step, batch_size=batch_size), update)
    return metrics, update


def test_fakes_are_made_once_then_the_discriminator_then_the_generator_is_updated():
    gan = build()
    calls = []
    gan.generator.register_forward_hook(lambda *_: calls.append("generator"))
    _, update = run_step(gan)
    assert update.calls == ["forward generator", "discriminator", "generator"]
    assert calls == ["generator"]
    assert update.batches["discriminator"][0]["fake"] is update.batches["generator"][0]["fake"]


def test_generator_is_updated_every_generator_interval_steps():
    gan = build(generator_interval=3)
    updated = []
    for step in range(7):
        before = weights(gan.generator), weights(gan.generator_ema)
        _, update = run_step(gan, step=step)
        assert "discriminator" in update.calls
        changed = not torch.equal(weights(gan.generator), before[0])
        assert changed == ("generator" in update.calls) == (not torch.equal(weights(gan.generator_ema), before[1]))
        updated.append(changed)
    assert updated == [True, False, False, True, False, False, True]


def test_both_updates_change_their_own_network_only():
    gan = build()
    seen = {}

    class Recording(PlainUpdate):
        def __call__(self, group, loss, batch):
            before = {"generator": weights(gan.generator), "discriminator": weights(gan.discriminator)}
            result = super().__call__(group, loss, batch)
            after = {"generator": weights(gan.generator), "discriminator": weights(gan.discriminator)}
            seen[group] = {name for name in before if not torch.equal(before[name], after[name])}
            return result

    run_step(gan, update=Recording(gan))
    assert seen == {"discriminator": {"discriminator"}, "generator": {"generator"}}


def test_losses_are_those_of_the_paper_for_the_fakes_of_the_step():
    gan = build()
    before = copy.deepcopy(gan.discriminator)
    metrics, update = run_step(gan)
    fake = update.batches["discriminator"][0]["fake"].detach()
    real_logits, fake_logits = before(real_images()).double(), before(fake).double()
    expected = -torch.sigmoid(real_logits).log().mean() - (1 - torch.sigmoid(fake_logits)).log().mean()
    assert metrics["loss/discriminator"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["logits/real"].item() == pytest.approx(real_logits.mean().item(), rel=1e-4, abs=1e-6)
    assert metrics["logits/fake"].item() == pytest.approx(fake_logits.mean().item(), rel=1e-4, abs=1e-6)
    # The generator meets the discriminator that has just been updated.
    expected = -torch.sigmoid(gan.discriminator(fake).double()).log().mean()
    assert metrics["loss/generator"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_metrics_are_detached_scalars():
    metrics, _ = run_step(build())
    assert set(metrics) == {"loss/discriminator", "loss/generator", "logits/real", "logits/fake"}
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


def test_every_microbatch_gets_fakes_of_its_own():
    _, update = run_step(build(), num_microbatches=2)
    first, second = (microbatch["fake"] for microbatch in update.batches["generator"])
    assert first.shape == second.shape == (4, 1, 16, 16)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("generator_interval", [1, 2])
def test_the_average_counts_all_images_since_the_generators_last_update(generator_interval):
    gan = build(generator_interval=generator_interval, half_life=16)
    before = weights(gan.generator_ema).double()
    run_step(gan, step=2)
    decay = 0.5 ** (4 * generator_interval / 16)
    expected = decay * before + (1 - decay) * weights(gan.generator).double()
    assert torch.allclose(weights(gan.generator_ema).double(), expected, rtol=0, atol=1e-7)


def test_the_averages_ramp_counts_the_images_of_this_step():
    gan = build(half_life=10**9, ramp_up=0.5)
    before = weights(gan.generator_ema).double()
    run_step(gan, step=2)  # 8 images before, 12 after
    decay = 0.5 ** (4 / (0.5 * 12))
    expected = decay * before + (1 - decay) * weights(gan.generator).double()
    assert torch.allclose(weights(gan.generator_ema).double(), expected, rtol=0, atol=1e-7)


def test_parameter_groups_cover_every_trainable_parameter_once():
    gan = build()
    groups = gan.parameter_groups()
    assert set(groups) == {"discriminator", "generator"}
    grouped = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert sorted(grouped) == sorted(id(parameter) for parameter in gan.parameters() if parameter.requires_grad)


def test_drawn_latents_depend_on_seed_and_index_alone():
    gan = build()
    drawn = gan.draw(range(6), 3)["latent"]
    assert drawn.shape == (6, 5)
    assert torch.equal(gan.draw([4, 1], 3)["latent"], drawn[[4, 1]])
    assert not torch.equal(gan.draw(range(6), 4)["latent"], drawn)


def test_samples_come_from_the_averaged_weights_without_gradient_or_side_effects():
    gan = build().train()
    assert gan.sampled_weights == "ema"
    latent = gan.draw(range(6), 3)
    samples = gan.sample(latent)
    assert samples.shape == (6, 1, 16, 16)
    assert samples.abs().max() <= 1
    assert not samples.requires_grad
    nn.init.zeros_(gan.generator.layers[0].weight)
    assert torch.equal(gan.sample(latent), samples)
    assert gan.training
    assert gan.generator.training
    nn.init.zeros_(gan.generator_ema.network.layers[0].weight)
    assert not torch.equal(gan.sample(latent), samples)


def test_a_sample_does_not_depend_on_the_batch_that_it_is_drawn_in():
    gan = build()
    run_step(gan)
    whole = gan.sample(gan.draw(range(6), 3))
    parts = torch.cat([gan.sample(gan.draw([index], 3)) for index in range(6)])
    assert torch.allclose(parts, whole, rtol=0, atol=1e-6)


def test_preview_shows_the_drawn_samples():
    gan = build()
    drawn = gan.draw(range(3), 0)
    preview = gan.preview({"image": real_images()}, drawn)
    assert list(preview) == ["samples"]
    assert torch.equal(preview["samples"], gan.sample(drawn))


def test_check_passes_for_images_that_fit():
    build().check(real_images())


@pytest.mark.parametrize("misfit", ["image", "generator"])
def test_check_shows_a_shape_that_does_not_fit(misfit):
    if misfit == "image":
        gan, image = build(), torch.zeros(4, 3, 16, 16)
    else:
        gan, image = build(generator=Generator(latent_dim=5, image_size=16, channels=3, width=4)), real_images()
    with pytest.raises(RuntimeError, match="channels"):
        gan.check(image)


@pytest.mark.parametrize("interval", [0, -1])
def test_a_generator_interval_below_one_is_refused(interval):
    with pytest.raises(ValueError, match=rf"model\.generator_interval={interval} must be 1 or more steps"):
        build(generator_interval=interval)


def test_the_state_dict_restores_networks_and_average():
    gan = build()
    run_step(gan)
    torch.manual_seed(9)
    other = build(generator=Generator(latent_dim=5, image_size=16, channels=1, width=4))
    other.load_state_dict(gan.state_dict())
    drawn = gan.draw(range(3), 0)
    assert torch.equal(other.sample(drawn), gan.sample(drawn))
    assert torch.equal(weights(other), weights(gan))
