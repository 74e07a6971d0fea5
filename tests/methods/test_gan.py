import copy
from typing import Any

import pytest
import tiny
import torch
from errors import raises
from torch import nn

from genimg.errors import ConfigError
from genimg.losses.adversarial import (
    AdversarialLoss,
    AuxiliaryClassification,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)
from genimg.losses.penalties import R1, R2, DiscriminatorPenalty, GeneratorPenalty, WeightClipping
from genimg.methods.discriminator_augment import AdaptiveAugment, Augment, FixedAugment
from genimg.methods.gan import GAN
from genimg.networks.layers import ConditionalBatchNorm2d
from genimg.types import Progress


def build(**changes: Any) -> GAN:
    return tiny.gan(**changes)


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


def adaptive_augment() -> AdaptiveAugment:
    return AdaptiveAugment(groups={"blit": 1.0}, target=0.6, interval=4, speed=1000)


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
        before = weights(gan.generator)
        _, update = run_step(gan, step=step)
        assert "discriminator" in update.calls
        changed = not torch.equal(weights(gan.generator), before)
        assert changed == ("generator" in update.calls)
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
    nothing = tiny.no_condition(4)
    real_logits, fake_logits = before(real_images(), nothing).logits.double(), before(fake, nothing).logits.double()
    expected = -torch.sigmoid(real_logits).log().mean() - (1 - torch.sigmoid(fake_logits)).log().mean()
    assert metrics["loss/discriminator"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["logits/real"].item() == pytest.approx(real_logits.mean().item(), rel=1e-4, abs=1e-6)
    assert metrics["logits/fake"].item() == pytest.approx(fake_logits.mean().item(), rel=1e-4, abs=1e-6)
    # The generator meets the discriminator that has just been updated.
    expected = -torch.sigmoid(gan.discriminator(fake, nothing).logits.double()).log().mean()
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


def test_samples_come_without_gradient_or_side_effects():
    gan = build().train()
    before = {name: buffer.clone() for name, buffer in gan.generator.named_buffers()}
    latent = gan.draw(range(6), 3)
    samples = gan.sample(latent)
    assert samples.shape == (6, 1, 16, 16)
    assert samples.abs().max() <= 1
    assert not samples.requires_grad
    assert torch.equal(copy.deepcopy(gan.generator).eval()(latent["latent"], tiny.no_condition(6)), samples)
    assert gan.training
    assert gan.generator.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in gan.generator.named_buffers())
    nn.init.zeros_(gan.generator.layers[0].weight)
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
    build().check({"image": real_images()})


@pytest.mark.parametrize("misfit", ["image", "generator"])
def test_check_shows_a_shape_that_does_not_fit(misfit):
    if misfit == "image":
        gan, image = build(), torch.zeros(4, 3, 16, 16)
    else:
        gan, image = build(generator=tiny.generator(channels=3)), real_images()
    with raises(RuntimeError if misfit == "image" else ConfigError, word="channels" if misfit == "image" else "generator"):
        gan.check({"image": image})


@pytest.mark.parametrize("interval", [0, -1])
def test_a_generator_interval_below_one_is_refused(interval):
    with raises(ConfigError, f"generator_interval={interval}"):
        build(generator_interval=interval)


def test_the_state_dict_restores_the_networks():
    gan = build()
    run_step(gan)
    torch.manual_seed(9)
    other = build(generator=tiny.generator())
    other.load_state_dict(gan.state_dict())
    drawn = gan.draw(range(3), 0)
    assert torch.equal(other.sample(drawn), gan.sample(drawn))
    assert torch.equal(weights(other), weights(gan))


def with_labels(count: int = 4) -> dict[str, torch.Tensor]:
    return {"image": real_images(count), "label": torch.arange(count) % 3}


HEADS = ["concat", "projection", "auxiliary_classifier"]
AUXILIARY = AuxiliaryClassification(real_weight=1.0, fake_weight=0.5, generator_weight=0.25)


def conditional(head: str, **changes: Any) -> GAN:
    auxiliary = AUXILIARY if head == "auxiliary_classifier" else None
    return tiny.conditional_gan(head, **({"auxiliary": auxiliary} | changes))


@pytest.mark.parametrize("head", HEADS)
def test_a_conditional_gan_asks_for_labels_and_gives_fakes_those_of_the_real_images(head):
    gan = conditional(head)
    assert gan.batch_keys == ("image", "label")
    gan.check({"image": real_images()})
    update = PlainUpdate(gan)
    gan.step([with_labels()], Progress(images=0, batch_size=4), update)
    made = update.batches["generator"][0]
    assert torch.equal(made["fake_condition"], made["label"])


@pytest.mark.parametrize("head", HEADS)
def test_both_networks_depend_on_the_label(head):
    gan = conditional(head)
    nn.init.normal_(gan.generator.layers[0].weight)
    for layer in gan.modules():
        if isinstance(layer, ConditionalBatchNorm2d):
            nn.init.normal_(layer.scale.weight)
    latent = gan.draw(range(4), 0)["latent"]
    zero, one = (gan.generator(latent, torch.full((4,), label)) for label in (0, 1))
    assert not torch.allclose(zero, one, atol=1e-4)
    judged = [gan.discriminator(real_images(), torch.full((4,), label)).logits for label in (0, 1)]
    assert torch.allclose(*judged) == (head == "auxiliary_classifier")  # which judges without knowing


def test_auxiliary_losses_are_weighted_cross_entropies():
    gan = conditional("auxiliary_classifier")
    before = copy.deepcopy(gan.discriminator)
    update = PlainUpdate(gan)
    batch = with_labels()
    metrics = gan.step([batch], Progress(images=0, batch_size=4), update)
    fake = update.batches["discriminator"][0]["fake"].detach()

    def entropy(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        logits = network(images, batch["label"]).class_logits.double()
        return -logits.log_softmax(1)[torch.arange(4), batch["label"]].mean()

    real, made = entropy(before, batch["image"]), entropy(before, fake)
    adversarial = metrics["loss/discriminator"].double()
    assert update.losses["discriminator"].item() == pytest.approx((adversarial + real + 0.5 * made).item(), rel=1e-5)
    expected = metrics["loss/generator"].double() + 0.25 * entropy(gan.discriminator, fake)
    assert update.losses["generator"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_conditions_are_drawn_as_often_as_the_data_has_them():
    gan = conditional("projection")
    rows = torch.tensor([0, 0, 0, 2]).repeat(gan.condition_bank_size // 4)
    gan.set_condition_bank({"label": rows})
    drawn = gan.draw(range(2000), 5)
    assert torch.equal(gan.draw([7, 3], 5)["label"], drawn["label"][[7, 3]])
    shares = torch.bincount(drawn["label"], minlength=3) / 2000
    assert shares[1] == 0
    assert shares[0].item() == pytest.approx(0.75, abs=0.04)  # 4 standard errors
    restored = conditional("projection")
    restored.load_state_dict(gan.state_dict())
    assert torch.equal(restored.draw(range(9), 5)["label"], drawn["label"][:9])


def test_a_conditional_preview_has_one_class_a_row():
    gan = conditional("concat")
    seen = []
    gan.generator.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    pictures = gan.preview({"image": real_images()}, gan.draw(range(16), 0))
    assert seen[0].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert pictures["samples"].shape == (3, 5, *real_images().shape[1:])


def test_several_batches_of_fakes_go_into_the_generators_update_and_one_into_the_discriminators():
    gan = conditional("projection", generator_batches=3)
    counts = []
    gan.discriminator.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    update = PlainUpdate(gan)
    gan.step([with_labels()], Progress(images=0, batch_size=4), update)
    assert counts == [4, 4, 12]
    made = update.batches["generator"][0]
    assert torch.equal(made["fake_condition"], made["label"].repeat(3))
    assert made["latent"].shape == (12, 5)


def test_a_relativistic_generator_compares_with_the_real_images():
    loss = AdversarialLoss(
        discriminator=relativistic_discriminator_loss, generator=relativistic_generator_loss, relativistic=True
    )
    gan = build(loss=loss, generator_batches=2)
    _, update = run_step(gan)
    fake, nothing = update.batches["generator"][0]["fake"], tiny.no_condition
    # The discriminator has been updated before, and its batch norm sees real and fake images apart.
    difference = gan.discriminator(real_images(), nothing(4)).logits.repeat(2) - gan.discriminator(fake, nothing(8)).logits
    expected = torch.nn.functional.softplus(difference.double()).mean()
    assert update.losses["generator"].item() == pytest.approx(expected.item(), rel=1e-4)


class Constant(DiscriminatorPenalty):
    def forward(self, sides):
        return 0.0 * sides.logits(sides.real).sum() + 7.0


class OfGenerator(GeneratorPenalty):
    def forward(self, generator, latent, condition):
        return 0.0 * generator(latent, condition).sum() + 3.0, {"penalty/length": torch.tensor(1.0)}


def test_an_eager_penalty_is_part_of_the_loss_and_a_lazy_one_an_update_of_its_own_times_its_interval():
    penalties = {
        "eager": Constant(interval=1), "lazy": Constant(interval=4), "eager_g": OfGenerator(interval=1),
        "lazy_g": OfGenerator(interval=2),
    }  # fmt: skip
    gan = build(penalties=penalties)
    assert (gan.lazy_regularisation_ratio("discriminator"), gan.lazy_regularisation_ratio("generator")) == (1 / 4, 1 / 2)
    assert build().lazy_regularisation_ratio("discriminator") == 0
    for step, expected in (
        (0, ["forward generator", "discriminator", "discriminator", "generator", "generator"]),
        (1, ["forward generator", "discriminator", "generator"]),
        (2, ["forward generator", "discriminator", "generator", "generator"]),
    ):
        losses: dict[str, list[float]] = {"discriminator": [], "generator": []}

        class Recording(PlainUpdate):
            def __call__(self, group, loss, batch):
                metrics = super().__call__(group, loss, batch)
                losses[group].append(self.losses[group].item())  # noqa: B023
                return metrics

        metrics, update = run_step(gan, step=step, update=Recording(gan))
        assert update.calls == expected
        assert metrics["penalty/eager"].item() == 7.0
        assert losses["discriminator"][0] == pytest.approx(metrics["loss/discriminator"].item() + 7.0, rel=1e-5)
        assert losses["generator"][0] == pytest.approx(metrics["loss/generator"].item() + 3.0, rel=1e-5)
        if step == 0:
            assert losses["discriminator"][1:] == [28.0]
            assert losses["generator"][1:] == [6.0]
            assert metrics["penalty/lazy"].item() == 7.0


def test_lazy_and_eager_penalties_have_the_same_gradient_on_average():
    """Over one interval the lazy gradients, times the interval, are the sum of the eager ones."""

    def summed(interval: int) -> torch.Tensor:
        gan = build(penalties={"r1": R1(gamma=2.0, image_size=16, batch_size=4, interval=interval)})
        total = torch.zeros(weights(gan.discriminator).shape)
        for step in range(4):
            if interval == 1 or step % interval == 0:
                value, _ = gan._penalty("r1", gan.penalties["r1"], interval, {"image": real_images()})
                gradients = torch.autograd.grad(value, list(gan.discriminator.parameters()), allow_unused=True)
                parameters = gan.discriminator.parameters()
                shaped = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
                total += torch.cat([g.flatten() for g in shaped])
        return total

    eager, lazy = summed(1), summed(4)
    assert eager.abs().max() > 0
    assert torch.allclose(eager, lazy, rtol=1e-4, atol=1e-7)


def test_weights_are_clipped_after_the_discriminators_update():
    gan = build(penalties={"weight_clipping": WeightClipping(limit=0.01)})
    run_step(gan)
    assert weights(gan.discriminator).abs().max().item() == pytest.approx(0.01)
    assert weights(gan.generator).abs().max() > 0.01


def test_what_the_discriminator_sees_is_augmented_and_a_penalty_looks_through_it():
    class Darker(Augment):
        def __init__(self):
            super().__init__()
            self.observed, self.begun = [], []

        def forward(self, images):
            return images * 0.5

        def begin(self, batch_size):
            self.begun.append(batch_size)

        def observe(self, real_logits):
            self.observed.append(real_logits)

        def metrics(self):
            return {"discriminator_augment/p": torch.tensor(0.5)}

    augment = Darker()
    gan = build(discriminator_augment=augment, penalties={"r1": R1(gamma=2.0, image_size=16, batch_size=4, interval=1)})
    before = copy.deepcopy(gan.discriminator)
    metrics, _ = run_step(gan)
    nothing = tiny.no_condition(4)
    assert torch.equal(augment.observed[0], before(0.5 * real_images(), nothing).logits.detach())
    assert augment.begun == [4]
    assert metrics["discriminator_augment/p"].item() == 0.5
    real = real_images().requires_grad_(True)
    (gradient,) = torch.autograd.grad(before(0.5 * real, nothing).logits.sum(), real)
    assert metrics["penalty/r1"].item() == pytest.approx(gradient.square().sum(dim=(1, 2, 3)).mean().item(), rel=1e-4)


def test_penalties_are_float32_under_bfloat16():
    gan = build(penalties={"r1": R1(gamma=2.0, image_size=16, batch_size=4, interval=1)})
    found = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value, _ = copy.deepcopy(gan)._penalty("r1", gan.penalties["r1"], 1, {"image": real_images()})
        found.append(value)
        assert value.dtype == torch.float32
    assert torch.equal(*found)


class Counted(Augment):
    """A random shift, so that another draw would show; and how often it is asked."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images + 0.5 * torch.rand(len(images), 1, 1, 1)


def of_gradients(reuse_forward: bool, interval: int = 1) -> dict[str, nn.Module]:
    settings = {"image_size": 16, "batch_size": 4, "interval": interval, "reuse_forward": reuse_forward}
    return {"r1": R1(gamma=2.0, **settings), "r2": R2(gamma=3.0, **settings)}


def discriminator_gradients(gan: GAN) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Metrics and gradients of the discriminator's loss of fixed images."""
    fake = real_images(8)[4:]
    latent = torch.zeros(4, 5)
    loss, metrics = gan._discriminator_loss({"image": real_images(), "fake": fake, "latent": latent})
    gradients = torch.autograd.grad(loss, list(gan.discriminator.parameters()))
    return metrics, torch.cat([gradient.flatten() for gradient in gradients])


def test_a_penalty_of_the_updates_own_forward_has_the_gradient_of_one_with_its_own():
    results, network = [], tiny.discriminator(normalisation="layer")
    for reuse in (False, True):
        gan = build(discriminator=copy.deepcopy(network), penalties=of_gradients(reuse))
        passes = []
        gan.discriminator.features.register_forward_hook(lambda *_: passes.append(1))  # noqa: B023
        results.append((*discriminator_gradients(gan), len(passes)))
    (separate, one, four), (reused, other, two) = results
    assert (four, two) == (4, 2)
    for name in ("penalty/r1", "penalty/r2", "loss/discriminator"):
        torch.testing.assert_close(reused[name], separate[name], rtol=1e-5, atol=1e-7)
    assert separate["penalty/r1"] > 1e-4
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_a_reused_forward_has_the_augmentation_of_the_update():
    augment = Counted()
    gan = build(
        discriminator=tiny.discriminator(normalisation="layer"), discriminator_augment=augment, penalties=of_gradients(True)
    )
    discriminator_gradients(gan)
    assert augment.calls == 2


def test_a_reused_forward_is_in_the_precision_of_the_update_and_near_that_in_float32():
    found, network = [], tiny.discriminator(normalisation="layer")
    for reuse in (False, True):
        gan = build(discriminator=copy.deepcopy(network), penalties=of_gradients(reuse))
        with torch.autocast("cpu", torch.bfloat16):
            found.append(discriminator_gradients(gan))
    (separate, one), (reused, other) = found
    assert reused["penalty/r1"].dtype == torch.float32
    assert not torch.equal(reused["penalty/r1"], separate["penalty/r1"])  # not in float32
    assert reused["penalty/r1"].item() == pytest.approx(separate["penalty/r1"].item(), rel=0.02)
    assert torch.cosine_similarity(one, other, dim=0) > 0.999


def test_a_reused_forward_does_not_go_through_torch_compile():
    gan = build(discriminator=tiny.discriminator(normalisation="layer"), penalties=of_gradients(True))
    gan.discriminator.compile(backend=lambda *_: pytest.fail("the update went through torch.compile"))
    _, gradients = discriminator_gradients(gan)
    assert gradients.abs().max() > 0


def test_penalties_call_the_eager_forward_of_a_compiled_network():
    gan = build(penalties={"r1": R1(gamma=2.0, image_size=16, batch_size=4, interval=1)})
    expected, _ = copy.deepcopy(gan)._penalty("r1", gan.penalties["r1"], 1, {"image": real_images()})
    gan.discriminator.compile(backend=lambda *_: pytest.fail("the penalty went through torch.compile"))
    value, _ = gan._penalty("r1", gan.penalties["r1"], 1, {"image": real_images()})
    assert torch.equal(value, expected)
    (gradient,) = torch.autograd.grad(value, gan.discriminator.features.layers[0].weight)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"penalties": {"odd": nn.Identity()}}, "penalties.odd"),
        ({"discriminator": tiny.discriminator(head="projection", num_classes=3)}, "discriminator"),
        ({"generator_batches": 0}, "generator_batches=0"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes, words):
    with raises(ValueError, word=words):
        build(**changes)


def test_an_auxiliary_classifier_without_weights_is_refused():
    with pytest.raises(ConfigError) as caught:
        conditional("auxiliary_classifier", auxiliary=None).check({"image": real_images()})
    assert caught.value.key == "auxiliary"


def test_an_augmentation_that_does_not_fit_the_images_is_named_by_its_path():
    gan = build(discriminator_augment=FixedAugment(groups={"color": 1.0}, p=0.5))
    with pytest.raises(ConfigError) as caught:
        gan.check({"image": torch.zeros(2, 2, 16, 16)})
    assert caught.value.key == "discriminator_augment.groups.color"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {
                "loss": AdversarialLoss(
                    discriminator=lambda real, fake: (real - fake).mean(), generator=lambda fake: -fake.mean(), unbounded=True
                )
            },
            "needs a Lipschitz-constrained critic",
        ),
        ({"penalties": {"r1": R1(gamma=1.0, image_size=16, batch_size=4, interval=1)}}, "discriminator's batch norm mixes"),
        (
            {
                "loss": AdversarialLoss(
                    discriminator=lambda real, fake: (real - fake).mean(), generator=lambda fake: -fake.mean(), boundary=None
                ),
                "discriminator_augment": adaptive_augment(),
            },
            "does not show overfitting",
        ),
    ],
)
def test_unwise_choices_are_warned_of(changes, words, caplog):
    gan = build(**changes)
    assert not caplog.text  # not when it is made to be sampled from
    if gan.discriminator_augment is not None:
        gan.discriminator_augment.begin(4)
    gan.check({"image": real_images()})
    assert words in caplog.text


@pytest.mark.parametrize("boundary", [0.0, 0.5])
def test_ada_sees_logits_from_the_losss_boundary(boundary):
    augment = adaptive_augment()
    loss = AdversarialLoss(
        discriminator=least_squares_discriminator_loss, generator=least_squares_generator_loss, boundary=boundary
    )
    gan = build(loss=loss, discriminator_augment=augment)
    seen, judged = [], []
    augment.observe = seen.append
    gan.discriminator.register_forward_hook(lambda _, __, output: judged.append(output.logits))
    augment.begin(4)
    gan._discriminator_loss({"image": real_images()})
    assert torch.equal(seen[0], judged[0] - boundary)
    assert not seen[0].requires_grad


def test_a_held_discriminator_is_not_warned_of(caplog):
    held = tiny.discriminator(spectral_norm=True, normalisation="none")
    loss = AdversarialLoss(
        discriminator=lambda real, fake: (real - fake).mean(), generator=lambda fake: -fake.mean(), unbounded=True
    )
    build(discriminator=held, loss=loss).check({"image": real_images()})
    assert not caplog.text


def test_standing_statistics_are_taken_before_sampling_and_depend_on_the_weights_alone():
    gan = build(standing_stats_batches=2)
    run_step(gan)
    before = gan.sample(gan.draw(range(4), 0))
    gan.before_sampling()
    first = gan.sample(gan.draw(range(4), 0))
    gan.before_sampling()
    assert torch.equal(gan.sample(gan.draw(range(4), 0)), first)
    assert not torch.equal(first, before)
    plain = build()
    run_step(plain)
    plain.before_sampling()
    assert torch.equal(plain.sample(plain.draw(range(4), 0)), before)


def test_a_lazy_penalty_of_the_generator_counts_the_generators_own_updates():
    gan = build(penalties={"g": OfGenerator(interval=4)}, generator_interval=2)
    lazily = [step for step in range(17) if "penalty/g" in run_step(gan, step=step)[0]]
    assert lazily == [0, 8, 16]
    assert "penalty/length" in run_step(gan, step=0)[0]


def test_fresh_latents_make_other_images_after_the_discriminators_update():
    made, seen = [], []
    gan = build(fresh_latents=True, generator_batches=2)
    generate = gan._generate

    def recorded(batch, *, batches):
        result = generate(batch, batches=batches)
        made.append((result["latent"], result["fake"].requires_grad))
        return result

    gan._generate = recorded
    gan.loss = AdversarialLoss(
        discriminator=lambda real, fake: seen.append("discriminator") or (real + fake).mean(),
        generator=lambda fake: seen.append(len(fake)) or fake.mean(),
    )
    seen.clear()  # of the calls that check the functions
    run_step(gan)
    (first, _), (second, has_graph) = made
    assert has_graph
    assert (len(first), len(second)) == (4, 8)
    assert not torch.isin(first, second).any()
    assert seen == ["discriminator", 8]


def test_dequantisation_adds_less_than_a_level_to_the_discriminators_real_images_alone():
    gan = build(dequantisation=1 / 128)
    judged = []
    gan.discriminator.register_forward_pre_hook(lambda _, inputs: judged.append(inputs[0].detach()))
    run_step(gan)
    noise = judged[0] - real_images()
    assert noise.min() >= 0
    assert noise.max() < 1 / 128 + 1e-6
    assert noise.mean().item() == pytest.approx(1 / 256, rel=0.1)
    assert noise.var().item() == pytest.approx(1 / 128**2 / 12, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dequantisation": -1.0}, "dequantisation"), ({"standing_stats_batches": -1}, "standing_stats_batches"),
        ({"generator_lazy_interval": 1}, "generator_lazy_interval"),
    ],
)  # fmt: skip
def test_settings_of_recipes_out_of_range_are_refused(changes, word):
    with raises(ValueError, word):
        build(**changes)
