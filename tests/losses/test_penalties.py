import copy
import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import tiny
import torch
from errors import raises
from scipy import stats
from torch import nn
from torch.func import functional_call

from genimg.losses import consistency as consistency_module
from genimg.losses import penalties
from genimg.losses.consistency import Consistency, LatentConsistency, LatentDiversity, randomly_moved
from genimg.losses.penalties import (
    DRAGAN,
    R1,
    R2,
    GradientPenalty,
    LeCam,
    PenaltyInputs,
    WeightClipping,
    squared_gradient_norms,
)
from genimg.schedules import Linear as LinearSchedule
from genimg.schedules import ScheduledNumbers

SHAPE = (2, 3, 4)  # C, H, W: three different numbers


def images(seed: int, count: int = 6) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def nothing_perturbed(std: float):
    pytest.fail("this penalty needs no perturbed images")


def sides(judge: Callable, real: torch.Tensor, fake: torch.Tensor, *, plain=None, perturb=nothing_perturbed) -> PenaltyInputs:
    return PenaltyInputs(real=real, fake=fake, logits=judge, plain_logits=plain or judge, perturb=perturb)


class Linear(nn.Module):
    """D(x) = <w, x> + 3, whose gradient is w everywhere; remembers where it was asked."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.points = []

    def forward(self, points):
        self.points.append(points.detach().clone())
        return (points * self.weight).sum(dim=(1, 2, 3)) + 3.0


class Quadratic(Linear):
    """D(x) = 1/2 sum_i a_i x_i^2, whose gradient at x is a x."""

    def forward(self, points):
        self.points.append(points.detach().clone())
        return 0.5 * (points.square() * self.weight).sum(dim=(1, 2, 3))


WEIGHT = images(7, 1)[0]
REAL, FAKE = images(1), images(2) + 0.5
NORM = math.sqrt(sum(value**2 for value in WEIGHT.flatten().tolist()))


def r1(**changes) -> R1:
    return R1(**{"gamma": 3.0, "image_size": [3, 4], "batch_size": 6, "interval": 1} | changes)


def r2(**changes) -> R2:
    return R2(**{"gamma": 3.0, "image_size": [3, 4], "batch_size": 6, "interval": 1} | changes)


def gradient_penalty(**changes) -> GradientPenalty:
    return GradientPenalty(**{"weight": 10.0, "center": 1.0, "interval": 1} | changes)


def dragan(**changes) -> DRAGAN:
    return DRAGAN(**{"weight": 10.0, "interval": 1} | changes)


def consistency(**changes) -> Consistency:
    return Consistency(**{"real_weight": 10.0, "fake_weight": 4.0, "max_shift_share": 0.25, "interval": 1} | changes)


def latent_consistency(**changes) -> LatentConsistency:
    return LatentConsistency(**{"weight": 5.0, "noise": 0.07, "interval": 1} | changes)


def lecam(**changes) -> LeCam:
    return LeCam(**{"weight": 0.3, "decay": 0.75, "start": 0, "interval": 1} | changes)


def latent_diversity(**changes) -> LatentDiversity:
    return LatentDiversity(**{"weight": 0.5, "noise": 0.07, "interval": 1} | changes)


def ramp(start: float, end: float) -> LinearSchedule:
    return LinearSchedule(start=start, end=end, duration=100)


def squared_norm(values: torch.Tensor) -> float:
    return sum(value**2 for value in values.flatten().tolist())


# Penalties on the gradient.

OF_A_LINEAR_DISCRIMINATOR = {
    "r1": (r1(), 1.5 * NORM**2),
    "r2": (r2(), 1.5 * NORM**2),
    "gradient_penalty": (gradient_penalty(), 10.0 * (NORM - 1.0) ** 2),
    "another_center": (gradient_penalty(weight=2.0, center=0.25), 2.0 * (NORM - 0.25) ** 2),
    "zero_centred": (gradient_penalty(center=0.0), 10.0 * NORM**2),
    "dragan": (dragan(weight=4.0), 4.0 * (NORM - 1.0) ** 2),
}


@pytest.mark.parametrize("name", OF_A_LINEAR_DISCRIMINATOR)
def test_a_linear_discriminator_is_penalised_by_the_norm_of_its_weights(name):
    penalty, expected = OF_A_LINEAR_DISCRIMINATOR[name]
    value = penalty(sides(Linear(WEIGHT), REAL, FAKE))
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", OF_A_LINEAR_DISCRIMINATOR)
def test_gradient_penalties_are_means_over_images_whose_gradient_is_taken_through_the_augmentation(name):
    penalty, _ = OF_A_LINEAR_DISCRIMINATOR[name]
    expected = penalty(sides(Linear(0.25 * WEIGHT), REAL, FAKE)).item()
    judge = Linear(WEIGHT)
    through = sides(lambda points: judge(0.25 * points), REAL.repeat(3, 1, 1, 1), FAKE.repeat(3, 1, 1, 1), plain=judge)
    assert penalty(through).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("penalty", "at"), [(r1(), REAL), (r2(), FAKE)], ids=["r1", "r2"])
def test_r1_looks_at_real_and_r2_at_generated_images(penalty, at):
    judge = Quadratic(WEIGHT)
    value = penalty(sides(judge, REAL, FAKE))
    expected = 1.5 * np.mean([squared_norm(WEIGHT * image) for image in at])
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert len(judge.points) == 1
    assert torch.equal(judge.points[0], at)


@pytest.mark.parametrize("center", [1.0, 0.0, 2.5])
def test_the_gradient_penalty_looks_between_pairs_of_images(center):
    judge = Quadratic(WEIGHT)
    torch.manual_seed(0)
    value = gradient_penalty(center=center)(sides(judge, REAL, FAKE))
    (points,) = judge.points
    expected = 10.0 * np.mean([(math.sqrt(squared_norm(WEIGHT * point)) - center) ** 2 for point in points])
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_the_points_are_uniform_on_the_lines_from_fake_to_real_one_number_for_each_image():
    real, fake = images(3, 4000), images(4, 4000)
    judge = Linear(WEIGHT)
    torch.manual_seed(0)
    gradient_penalty()(sides(judge, real, fake))
    (points,) = judge.points
    position = ((points - fake) * (real - fake)).sum(dim=(1, 2, 3)) / (real - fake).square().sum(dim=(1, 2, 3))
    t = position[:, None, None, None]
    assert torch.allclose(points, t * real + (1 - t) * fake, rtol=0, atol=1e-5)
    assert stats.kstest(position.double().numpy(), stats.uniform.cdf).pvalue > 0.01


@pytest.mark.parametrize("center", [1.0, 0.0])
def test_where_real_and_generated_images_agree_the_gradient_penalty_looks_at_them(center):
    judge = Quadratic(WEIGHT)
    value = gradient_penalty(center=center)(sides(judge, REAL, REAL.clone()))
    assert torch.equal(judge.points[0], REAL)
    expected = 10.0 * np.mean([(math.sqrt(squared_norm(WEIGHT * image)) - center) ** 2 for image in REAL])
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_dragan_looks_between_real_images_and_copies_perturbed_by_half_the_batchs_deviation():
    real = images(5, 400) * 3.0 + 2.0
    judge = Quadratic(WEIGHT)
    torch.manual_seed(0)
    value = dragan()(sides(judge, real, images(6, 400)))
    (points,) = judge.points
    torch.manual_seed(0)
    noise, alpha = torch.rand_like(real).double(), torch.rand(400, 1, 1, 1).double()  # one number for each image
    expected = real.double() + alpha * 0.5 * np.std(real.double().numpy(), ddof=1) * noise
    assert torch.allclose(points.double(), expected, rtol=0, atol=1e-5)
    expected = 10.0 * np.mean([(math.sqrt(squared_norm(WEIGHT * point)) - 1.0) ** 2 for point in points])
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_dragans_points_are_as_far_as_a_uniform_number_of_each_image():
    real = images(5, 4000)
    judge = Linear(WEIGHT)
    torch.manual_seed(0)
    dragan()(sides(judge, real, real))
    noise = (judge.points[0] - real).double().numpy() / (0.5 * np.std(real.double().numpy(), ddof=1))
    # The largest of 24 uniform numbers is u^(1/24); times an independent uniform number its density is 24/23 (1 - y^23).
    furthest = noise.reshape(4000, -1).max(axis=1)
    assert stats.kstest(furthest, lambda y: 24 / 23 * (y - y**24 / 24)).pvalue > 0.01


def test_every_images_gradient_is_its_own():
    norms = squared_gradient_norms(Quadratic(WEIGHT), REAL)
    assert norms.shape == (6,)
    assert norms.tolist() == pytest.approx([squared_norm(WEIGHT * image) for image in REAL], rel=1e-5)
    assert REAL.grad is None
    assert not REAL.requires_grad


@pytest.mark.parametrize("kind", [R1, R2])
@pytest.mark.parametrize(
    ("image_size", "batch_size", "expected"),
    [(64, 32, 0.0256), ([64, 64], 32, 0.0256), ([48, 32], 16, 0.0192), ([3, 5], 1, 0.003), (1024, 32, 6.5536)],
)
def test_automatic_gamma_follows_pixels_and_batch_size(kind, image_size, batch_size, expected):
    penalty = kind(gamma="auto", image_size=image_size, batch_size=batch_size, interval=1)
    assert penalty.gamma == pytest.approx(expected, rel=1e-12)
    value = penalty(sides(Linear(WEIGHT), REAL, FAKE))
    assert value.item() == pytest.approx(expected / 2 * NORM**2, rel=1e-5)


def test_a_given_gamma_does_not_depend_on_the_size():
    values = [
        r1(gamma=2, image_size=size, batch_size=count)(sides(Linear(WEIGHT), REAL, FAKE))
        for size, count in product((8, 64), (1, 9))
    ]
    assert [value.item() for value in values] == pytest.approx([NORM**2] * 4, rel=1e-5)


def test_a_schedule_drives_gamma():
    penalty = r1(gamma=ramp(0.0, 8.0))
    numbers = ScheduledNumbers(penalty)
    for count, gamma in ((0, 0.0), (25, 2.0), (100, 8.0), (500, 8.0)):
        numbers.advance(count, 10)
        assert numbers.values() == {"gamma": gamma}
        assert penalty(sides(Linear(WEIGHT), REAL, FAKE)).item() == pytest.approx(gamma / 2 * NORM**2, rel=1e-5)


# Consistency.


def darker(judged: torch.Tensor, max_shift_share: float) -> torch.Tensor:
    return 0.5 * judged + 4 * max_shift_share


@pytest.mark.parametrize("fake_weight", [4.0, 0.0])
def test_consistency_under_a_known_transformation(monkeypatch, fake_weight):
    monkeypatch.setattr(consistency_module, "randomly_moved", darker)
    judge = Linear(WEIGHT)
    through = sides(lambda _: pytest.fail("consistency is without the augmentation"), REAL, FAKE, plain=judge)
    value = consistency(fake_weight=fake_weight, max_shift_share=0.5)(through)

    def difference(group: torch.Tensor) -> float:
        """<w, x> - <w, x/2 + 2>."""
        inner = [(0.5 * WEIGHT * image).sum().item() - 2 * WEIGHT.sum().item() for image in group]
        return np.mean(np.square(inner))

    assert value.item() == pytest.approx(10.0 * difference(REAL) + fake_weight * difference(FAKE), rel=1e-4)
    assert len(judge.points) == (4 if fake_weight else 2)


def test_consistency_is_0_for_images_that_moving_does_not_change():
    torch.manual_seed(0)
    flat = torch.arange(6.0)[:, None, None, None].expand(6, *SHAPE)
    value = consistency()(sides(Quadratic(WEIGHT), flat, -flat))
    assert value.item() == pytest.approx(0.0, abs=1e-9)  # sums of moved copies are rounded otherwise
    assert consistency()(sides(Quadratic(WEIGHT), REAL, FAKE)).item() > 0.01


def test_consistency_judges_images_and_their_moved_copies():
    judge = Linear(WEIGHT)
    torch.manual_seed(0)
    value = consistency()(sides(judge, REAL, FAKE))
    real, moved_real, fake, moved_fake = judge.points
    assert torch.equal(real, REAL)
    assert torch.equal(fake, FAKE)
    for original, moved in ((real, moved_real), (fake, moved_fake)):
        assert all(
            any(torch.equal(one, each) for each in candidates(image, 1, 1).values())  # a quarter of 3 and of 4 pixels, rounded
            for image, one in zip(original, moved, strict=True)
        )
    with torch.no_grad():
        differences = [
            (judge(one) - judge(other)).square().mean().item() for one, other in ((real, moved_real), (fake, moved_fake))
        ]
    assert value.item() == pytest.approx(10.0 * differences[0] + 4.0 * differences[1], rel=1e-5)


def candidates(image: torch.Tensor, tall: int, wide: int) -> dict[tuple[bool, int, int], torch.Tensor]:
    """All that can become of an image [C, H, W], cut out of it as numpy reflects its borders."""
    found = {}
    _, height, width = image.shape
    for mirrored in (False, True):
        start = image.numpy()[:, :, ::-1] if mirrored else image.numpy()
        padded = np.pad(start, ((0, 0), (tall, tall), (wide, wide)), mode="reflect")
        for down, right in product(range(-tall, tall + 1), range(-wide, wide + 1)):
            top, left = tall + down, wide + right
            found[mirrored, down, right] = torch.tensor(padded[:, top : top + height, left : left + width].copy())
    return found


@pytest.mark.parametrize(("share", "tall", "wide"), [(0.0, 0, 0), (0.25, 1, 1), (0.34, 1, 1), (0.4, 1, 2), (0.5, 2, 2)])
def test_moved_images_against_a_loop_with_the_same_random_numbers(share, tall, wide):
    originals = images(8, 20)  # 3 x 4 pixels
    kept = originals.clone()
    torch.manual_seed(3)
    moved = randomly_moved(originals, share)
    torch.manual_seed(3)
    flip = torch.rand(20) < 0.5
    down, right = (torch.randint(-most, most + 1, (20,)) for most in (tall, wide))
    expected = [
        candidates(image, tall, wide)[bool(flip[index]), int(down[index]), int(right[index])]
        for index, image in enumerate(originals)
    ]
    assert torch.equal(moved, torch.stack(expected))
    assert torch.equal(originals, kept)


@pytest.mark.parametrize(("side", "pixels"), [(28, 4), (32, 4), (64, 8), (128, 16), (256, 32)])
def test_an_eighth_of_the_side_is_as_far_as_images_move(side, pixels):
    """4 pixels at 32, as in CR and DiffAugment."""
    ramp = torch.arange(float(side)).view(1, 1, 1, side).expand(3000, 1, side, side)
    torch.manual_seed(0)
    middle = randomly_moved(ramp, 0.125)[:, 0, 0, side // 2]
    shift = torch.minimum((middle - side // 2).abs(), (middle - (side - 1 - side // 2)).abs())
    assert shift.max().item() == pixels


def test_every_mirroring_and_shift_is_equally_frequent():
    image = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(9))  # so large that all 50 differ
    torch.manual_seed(0)
    moved = randomly_moved(image.expand(5000, -1, -1, -1), 0.35).flatten(1)
    counts = [(moved == each.flatten()).all(dim=1).sum().item() for each in candidates(image, 2, 2).values()]
    assert len(counts) == 50
    assert sum(counts) == 5000  # each of them is exactly one of the candidates
    assert stats.chisquare(counts).pvalue > 0.01


def test_without_a_shift_images_are_mirrored_or_left():
    originals = images(10, 1000)
    torch.manual_seed(0)
    moved = randomly_moved(originals, 0)
    left = (moved == originals).flatten(1).all(dim=1)
    mirrored = (moved == originals.flip(-1)).flatten(1).all(dim=1)
    assert (left ^ mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.064)  # 4 standard errors


def test_latent_consistency_equals_hand_computation():
    anew, near, asked = images(12), images(11), []

    def perturb(std: float) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(std)
        return anew, near

    judge = Linear(WEIGHT)
    through = sides(lambda _: pytest.fail("it is without the augmentation"), REAL, FAKE, plain=judge, perturb=perturb)
    value = latent_consistency(noise=0.2)(through)
    expected = 5.0 * np.mean(
        [((WEIGHT * fake).sum() - (WEIGHT * one).sum()).item() ** 2 for fake, one in zip(anew, near, strict=True)]
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert asked == [0.2]
    same = sides(judge, REAL, FAKE, perturb=lambda std: (FAKE, FAKE.clone()))
    assert latent_consistency()(same).item() == 0.0


# LeCam.


def lecam_by_hand(real: list[float], fake: list[float], averages: tuple[float, float], decay: float = 0.75):
    """Value and new averages, in Python's own numbers."""
    average_real = decay * averages[0] + (1 - decay) * sum(real) / len(real)
    average_fake = decay * averages[1] + (1 - decay) * sum(fake) / len(fake)
    on_real = sum(max(logit - average_fake, 0.0) ** 2 for logit in real) / len(real)
    on_fake = sum(max(average_real - logit, 0.0) ** 2 for logit in fake) / len(fake)
    return 0.3 * (on_real + on_fake), (average_real, average_fake)


def logits_of(group: torch.Tensor) -> list[float]:
    return [(WEIGHT * image).sum().item() + 3.0 for image in group]


def test_lecam_over_several_steps_equals_hand_computation_also_from_a_checkpoint():
    judge, penalty, averages = Linear(WEIGHT), lecam(), (0.0, 0.0)
    for step in range(6):
        if step == 3:
            restored = lecam()
            restored.load_state_dict(penalty.state_dict())
            penalty = restored
        real, fake = images(20 + step, 4) + 1.0, images(30 + step, 5) - 1.0
        expected, averages = lecam_by_hand(logits_of(real), logits_of(fake), averages)
        assert penalty(sides(judge, real, fake)).item() == pytest.approx(expected, rel=1e-4)
        state = penalty.state_dict()
        assert (state["average_real"].item(), state["average_fake"].item()) == pytest.approx(averages, rel=1e-4)
    assert set(state) == {"average_real", "average_fake"}
    assert abs(averages[0] - averages[1]) > 0.5  # so that an exchange of the two would have been found


def test_a_discriminator_at_the_other_sides_average_is_not_penalised():
    penalty = lecam(decay=0.0)
    ones = torch.ones(3, *SHAPE)
    assert penalty(sides(lambda group: group.mean(dim=(1, 2, 3)), ones, ones)).item() == 0.0
    opposed = penalty(sides(lambda group: group.mean(dim=(1, 2, 3)), ones, -ones))
    assert opposed.item() == pytest.approx(0.3 * (2.0**2 + 2.0**2), rel=1e-6)


def test_only_logits_on_their_own_side_of_the_other_average_are_penalised():
    """As in the authors' code; the paper's equation 6 has no maximum."""
    penalty = lecam(decay=0.0)
    level = {"real": torch.tensor([3.0, -1.0]), "fake": torch.tensor([2.0, -4.0])}  # means 1 and -1
    judge = lambda group: group.mean(dim=(1, 2, 3))  # noqa: E731
    real, fake = (level[side].view(2, 1, 1, 1).expand(2, *SHAPE) for side in ("real", "fake"))
    # Real: 3 lies 4 above -1 and -1 not above it. Fake: -4 lies 5 below 1 and 2 not below it.
    assert penalty(sides(judge, real, fake)).item() == pytest.approx(0.3 * (4.0**2 / 2 + 5.0**2 / 2), rel=1e-6)


def test_lecam_starts_with_the_averages_of_the_last_batch():
    judge, penalty = Linear(WEIGHT), lecam(start=30)
    numbers = ScheduledNumbers(penalty)
    for step in range(5):
        numbers.advance(10 * step, 10)
        real, fake = images(20 + step, 4) + 1.0, images(30 + step, 5) - 1.0
        value = penalty(sides(judge, real, fake))
        if step < 3:
            averages = (np.mean(logits_of(real)), np.mean(logits_of(fake)))
            expected = 0.0
        else:
            expected, averages = lecam_by_hand(logits_of(real), logits_of(fake), averages)
        assert value.item() == pytest.approx(expected, rel=1e-4)
        assert (penalty.average_real.item(), penalty.average_fake.item()) == pytest.approx(averages, rel=1e-4)


def test_lecam_of_several_microbatches_has_the_gradient_of_the_averages_that_each_one_met():
    judge, penalty, averages = Linear(WEIGHT), lecam(), (0.0, 0.0)
    values, by_hand = [], []
    for seed in (1, 2, 3):
        real, fake = images(seed, 4) + 1.0, images(seed + 50, 4)
        values.append(penalty(sides(judge, real, fake)))
        _, averages = lecam_by_hand(logits_of(real), logits_of(fake), averages)
        by_hand.append((real, fake, averages))
    torch.stack(values).sum().backward()
    expected = torch.zeros_like(WEIGHT)  # of 0.3 mean max(0, +-(D(x) - a))^2: 0.6 mean (D(x) - a) x where it is not 0
    for real, fake, (average_real, average_fake) in by_hand:
        for group, average, sign in ((real, average_fake, 1), (fake, average_real, -1)):
            for image, logit in zip(group, logits_of(group), strict=True):
                if sign * (logit - average) > 0:
                    expected += 0.6 * (logit - average) * image / len(group)
    assert torch.allclose(judge.weight.grad, expected, rtol=1e-4, atol=1e-5)


def test_lecams_averages_are_those_of_all_processes(monkeypatch):
    monkeypatch.setattr(penalties, "sum_over_ranks", lambda means: means + torch.tensor([4.0, -7.0]))
    monkeypatch.setattr(penalties, "world_size", lambda: 2)
    penalty = lecam()
    penalty(sides(Linear(WEIGHT), REAL, FAKE))
    assert penalty.average_real.item() == pytest.approx(0.25 * (np.mean(logits_of(REAL)) + 4.0) / 2, rel=1e-5)
    assert penalty.average_fake.item() == pytest.approx(0.25 * (np.mean(logits_of(FAKE)) - 7.0) / 2, rel=1e-5)


# Gradients with respect to the discriminator's weights.


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)  # so that random numbers, too, have the precision of the differences
    yield
    torch.set_default_dtype(torch.float32)


def smooth_discriminator() -> nn.Module:
    layers = [nn.Linear(24, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 1)]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, 0.0, 0.5)
    return nn.Sequential(nn.Flatten(), *layers, nn.Flatten(0))


class Logits(nn.Module):
    """A discriminator of the package, as a function of images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny.discriminator(normalisation="layer", image_size=16)
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, 0.0, 0.2)

    def forward(self, group: torch.Tensor) -> torch.Tensor:
        return self.network(group, tiny.no_condition(len(group))).logits


EVERY_PENALTY = {
    "r1": r1,
    "r2": r2,
    "gradient_penalty": gradient_penalty,
    "zero_centred": lambda: gradient_penalty(center=0.0),
    "dragan": dragan,
    "consistency": consistency,
    "latent_consistency": latent_consistency,
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("make", "shape"), [(smooth_discriminator, SHAPE), (Logits, (1, 16, 16))], ids=["smooth", "dcgan"])
@pytest.mark.parametrize("name", EVERY_PENALTY)
def test_the_gradient_in_the_weights_equals_finite_differences(name, make, shape):
    torch.manual_seed(0)
    network, penalty = make(), EVERY_PENALTY[name]()
    real, fake, near = (torch.randn(4, *shape) for _ in range(3))
    weights = {key: value.detach().clone().requires_grad_() for key, value in network.named_parameters()}
    direction = {key: torch.randn_like(value) for key, value in weights.items()}

    def value(step: float) -> torch.Tensor:
        moved = {key: weights[key] + step * direction[key] for key in weights}
        torch.manual_seed(1)
        return penalty(
            sides(lambda group: functional_call(network, moved, (group,)), real, fake, perturb=lambda std: (fake, near))
        )

    gradients = torch.autograd.grad(value(0.0), list(weights.values()), allow_unused=True)
    given = {key: gradient for key, gradient in zip(weights, gradients, strict=True) if gradient is not None}
    derivative = sum((gradient * direction[key]).sum().item() for key, gradient in given.items())
    difference = (value(1e-7) - value(-1e-7)).item() / 2e-7  # a longer step goes over the bends of DCGAN's leaky ReLUs
    assert abs(difference) > 1e-2
    assert derivative == pytest.approx(difference, rel=1e-5)


OF_GRADIENTS = {name: EVERY_PENALTY[name] for name in ("r1", "r2", "gradient_penalty", "zero_centred", "dragan")}
AT_ZERO = {"r1": 0.0, "r2": 0.0, "gradient_penalty": 10.0, "zero_centred": 0.0, "dragan": 10.0}


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_a_gradient_of_0_has_a_finite_derivative(name):
    judge = Linear(torch.zeros(SHAPE))
    value = OF_GRADIENTS[name]()(sides(judge, REAL, FAKE))
    assert value.item() == pytest.approx(AT_ZERO[name], abs=1e-5)
    value.backward()
    assert torch.equal(judge.weight.grad, torch.zeros(SHAPE))


@pytest.mark.parametrize(("name", "center"), [("r1", None), ("r2", None), ("gradient_penalty", 1.0), ("zero_centred", 0.0)])
def test_an_image_without_gradient_leaves_the_derivatives_of_the_others(name, center):
    """Of 1/2 sum a x^2 at the images 0 and x, of which 0 has no gradient: d||a x||/da = a x^2 / ||a x||."""
    x = images(12, 1)
    pair = torch.cat([torch.zeros_like(x), x])
    judge = Quadratic(WEIGHT)
    OF_GRADIENTS[name]()(sides(judge, pair, pair.clone())).backward()
    towards, norm = WEIGHT * x[0].square(), math.sqrt(squared_norm(WEIGHT * x[0]))
    expected = 1.5 * towards if center is None else 10.0 * (norm - center) * towards / norm
    assert torch.allclose(judge.weight.grad, expected, rtol=1e-4, atol=1e-5)


def test_a_lazy_penalty_has_the_value_of_an_eager_one():
    """The method multiplies by the interval."""
    for make in (r1, r2, dragan, gradient_penalty, consistency, lecam, latent_consistency):
        values = []
        for interval in (1, 16):
            penalty = make(interval=interval)
            assert penalty.interval == interval
            torch.manual_seed(0)
            values.append(penalty(sides(Quadratic(WEIGHT), REAL, FAKE, perturb=lambda std: (FAKE, REAL))).item())
        assert values[0] == values[1] > 0


# The generator's half of zCR.


class LinearGenerator(nn.Module):
    """G(z) = z M + the condition; remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(5, 24, generator=torch.Generator().manual_seed(0)))
        self.given = []

    def forward(self, latent, condition):
        self.given.append((latent, condition))
        return (latent @ self.matrix).view(-1, *SHAPE) + condition[:, None, None, None]


def test_latent_diversity_equals_hand_computation():
    generator, latent, condition = LinearGenerator(), torch.randn(2000, 5), torch.arange(2000.0)
    generator.compile(backend=lambda *_: pytest.fail("the penalty went through torch.compile"))
    torch.manual_seed(0)
    value, metrics = latent_diversity(weight=3.0, noise=0.2)(generator, latent, condition)
    (there, first), (near, second) = generator.given
    assert metrics == {}
    assert torch.equal(there, latent)
    assert first is second is condition
    noise = (near - there) / 0.2
    assert stats.kstest(noise.double().numpy().ravel(), stats.norm.cdf).pvalue > 0.01
    moved = 0.2 * noise.double() @ generator.matrix.double()
    assert value.item() == pytest.approx(-3.0 * moved.square().sum().item() / (2000 * 24), rel=1e-3)
    (gradient,) = torch.autograd.grad(value, generator.matrix)
    expected = -6.0 / (2000 * 24) * (0.2 * noise.double()).t() @ moved  # of mean (n M)^2: 2 n^T n M
    assert torch.allclose(gradient.double(), expected, rtol=1e-3, atol=1e-7)


def test_latent_diversity_fits_every_generator():
    assert latent_diversity().check(nn.Identity()) is None


# Weight clipping.


def test_weights_are_clipped_on_both_sides_and_those_within_stay():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        network[0].weight.copy_(torch.linspace(-1, 1, 12).view(4, 3))
        network[0].bias.copy_(torch.tensor([-0.3, -0.2, 0.2, 0.7]))
    network[1].running_mean.fill_(5.0)
    before = copy.deepcopy(network)
    WeightClipping(limit=0.3).clip(network)
    for parameter, original in zip(network.parameters(), before.parameters(), strict=True):
        expected = [min(max(value, -0.3), 0.3) for value in original.flatten().tolist()]
        assert parameter.flatten().tolist() == pytest.approx(expected, rel=1e-6)
        within = original.abs() < 0.3
        assert torch.equal(parameter[within], original[within])
        assert parameter.requires_grad
        assert parameter.is_leaf
    assert torch.equal(network[1].running_mean, torch.full((4,), 5.0))


# What is refused.


@pytest.mark.parametrize("interval", [0, -2])
@pytest.mark.parametrize("make", [r1, r2, gradient_penalty, dragan, consistency, latent_consistency, lecam, latent_diversity])
def test_an_interval_below_one_step_is_refused(make, interval):
    with raises(ValueError, f"interval={interval}"):
        make(interval=interval)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda value: r1(gamma=value), "gamma"),
        (lambda value: r2(gamma=value), "gamma"),
        (lambda value: gradient_penalty(weight=value), "weight"),
        (lambda value: dragan(weight=value), "weight"),
        (lambda value: consistency(real_weight=value), "real_weight"),
        (lambda value: latent_consistency(weight=value), "weight"),
        (lambda value: latent_consistency(noise=value), "noise"),
        (lambda value: lecam(weight=value), "weight"),
        (lambda value: latent_diversity(weight=value), "weight"),
        (lambda value: latent_diversity(noise=value), "noise"),
        (lambda value: WeightClipping(limit=value), "limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("value", [0.0, -0.5, math.nan])
def test_what_has_no_effect_or_the_opposite_one_is_refused(make, name, value):
    with raises(ValueError, f"{name}={value}"):
        make(value)
    make(0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: r1(gamma="automatic"), "gamma=automatic"),
        (lambda: r2(gamma="1.0"), "gamma=1.0"),
        (lambda: consistency(fake_weight=-1.0), "fake_weight=-1.0"),
        (lambda: consistency(max_shift_share=-3), "max_shift_share=-3"),
        (lambda: consistency(max_shift_share=4), "max_shift_share=4"),
        (lambda: randomly_moved(REAL, 0.9), "max_shift_share=0.9"),
        (lambda: r1(reuse_forward=True, interval=16), "reuse_forward=true"),
        (lambda: r2(reuse_forward=True, interval=2), "reuse_forward=true"),
        (lambda: r1(gamma=ramp(-1.0, 1.0)), "gamma=-1.0"),
        (lambda: lecam(decay=1.0), "decay=1.0"),
        (lambda: lecam(decay=-0.1), "decay=-0.1"),
    ],
)
def test_other_values_out_of_range_are_refused(make, words):
    with raises(ValueError, words):
        make()


def test_a_penalty_needs_a_formula():
    with raises(TypeError, word="abstract"):
        penalties.DiscriminatorPenalty(interval=1)
    with raises(TypeError, word="abstract"):
        penalties.GeneratorPenalty(interval=1)
