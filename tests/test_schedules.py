"""Numbers as functions of the images seen: their values, what may be driven, and that the trainer drives it."""

import ast
import copy
import importlib
import inspect
import math
import types
import typing
from pathlib import Path

import pytest
import tiny
import torch
from errors import raises
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

import genimg
from genimg.api.data import build_dataset
from genimg.config.instantiate import Builder
from genimg.losses.elbo import ELBO
from genimg.losses.likelihoods import Bernoulli
from genimg.losses.penalties import R1
from genimg.schedules import (
    Cosine,
    Linear,
    Schedule,
    Scheduled,
    ScheduledNumbers,
    Step,
    declared,
    extremes,
    is_positive,
    is_within,
)
from genimg.training.schedules import Constant, OptimizerSchedules
from genimg.utils.durations import NumImages
from genimg.utils.paths import config_dir

ROOT = Path(genimg.__file__).resolve().parent


def test_a_line_passes_through_its_points():
    schedule = Linear(start=5.0, end=1.0, duration=NumImages(1000), begin=NumImages(200))
    points = {0: 5.0, 200: 5.0, 400: 4.0, 600: 3.0, 1000: 1.0, 10**9: 1.0}
    assert {images: schedule.at(images, 8) for images in points} == pytest.approx(points, rel=1e-12)


def test_a_cosine_passes_through_its_points_and_is_exact_at_both_ends():
    schedule = Cosine(start=0.0, end=0.6, duration=NumImages(1200))
    points = {200: 0.6 * (2.0 - math.sqrt(3.0)) / 4.0, 300: 0.6 * (2.0 - math.sqrt(2.0)) / 4.0, 400: 0.15, 600: 0.3, 800: 0.45}
    assert {images: schedule.at(images, 8) for images in points} == pytest.approx(points, rel=1e-12)
    assert (schedule.at(0, 8), schedule.at(1200, 8), schedule.at(10**9, 8)) == (0.0, 0.6, 0.6)


def test_a_step_is_zero_before_its_beginning():
    step = Step(begin=NumImages(100))
    assert [step.at(images, 10) for images in (0, 99, 100, 500)] == [0.0, 0.0, 1.0, 1.0]


def test_extremes_are_the_smallest_and_the_largest_number():
    falling = Linear(start=5.0, end=1.0, duration=NumImages(10))
    assert extremes(falling) == (1.0, 5.0)
    assert extremes(falling.map(lambda value: -value)) == (-5.0, -1.0)
    assert extremes(3) == (3, 3)
    assert is_within(falling, 1, 5)
    assert not is_within(falling, 1.5)
    assert is_positive(Linear(start=0.0, end=1.0, duration=NumImages(10)))
    assert not is_positive(0.0)
    assert not is_positive(math.nan)
    assert not is_positive(Linear(start=-1.0, end=1.0, duration=NumImages(10)))


@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"duration": 0}, "duration=0"),
        ({"begin": 100}, "duration=100"),
        ({"end": 1.0}, "start=1.0"),
        ({"start": math.nan}, "start=nan"),
        ({"end": math.inf}, "end=inf"),
    ],
)
def test_a_schedule_that_is_none_is_refused(kind, settings, words):
    with raises(ValueError, word=words):
        kind(**({"start": 1.0, "end": 2.0, "duration": 100} | settings))


# What may be driven


class Pair:
    share = Scheduled()

    def __init__(self, share):
        self.share = share


class Holder(nn.Module):
    weight = Scheduled()

    def __init__(self, weight, share=1.0):
        super().__init__()
        self.weight = weight
        self.pair = Pair(share)
        self._hidden = (Pair(share),)


def test_all_numbers_below_a_module_are_driven_together():
    line = Linear(start=0.0, end=10.0, duration=NumImages(100))
    root = nn.ModuleDict({"one": Holder(line), "two": Holder(2.0, share=line)})
    assert (root["one"].weight, root["two"].weight) == (0.0, 2.0)
    numbers = ScheduledNumbers(root)
    numbers.advance(50, 10)
    assert numbers.values() == {"one.weight": 5.0, "two.pair.share": 5.0, "two._hidden.share": 5.0}
    assert (root["one"].weight, root["two"].weight, root["two"].pair.share) == (5.0, 2.0, 5.0)
    assert not root.state_dict()


def test_a_copy_has_numbers_of_its_own():
    one = Holder(Linear(start=0.0, end=10.0, duration=NumImages(100)))
    other = copy.deepcopy(one)
    ScheduledNumbers(other).advance(100, 1)
    assert (one.weight, other.weight) == (0.0, 10.0)


def test_another_number_replaces_a_schedule():
    holder = Holder(Linear(start=0.0, end=10.0, duration=NumImages(100)))
    holder.weight = 3.0
    ScheduledNumbers(holder).advance(100, 1)
    assert holder.weight == 3.0


def classes(*packages):
    """Every class of these packages that is built from a config."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = importlib.import_module(".".join(path.relative_to(ROOT.parent).with_suffix("").parts))
            for _, kind in inspect.getmembers(module, inspect.isclass):
                if kind.__module__ == module.__name__:
                    yield kind


CONSTANT = {
    # Settings of what is built once, or that a trained state depends on.
    "AdversarialLoss": {"boundary"}, "Truncated": {"limit"}, "GradientPenalty": {"center"}, "LeCam": {"decay"},
    "PathLength": {"decay"}, "ReconstructionLoss": {"epsilon"}, "GAN": {"dequantisation"}, "CodeOptions": None,
    "LatentOptions": {"truncation"}, "StyleOptions": {"truncation"},
    "CUT": {"mirror_probability"}, "Consistency": {"max_shift_share"}, "DeterministicAutoencoder": set(),
    "Gaussian": None, "ExportSpec": None, "DiffusionOptions": None, "DenoisingLoss": {"gamma"},
    "Diffusion": {"condition_dropout", "sigma_data"}, "MeanFlow": {"condition_dropout"}, "MeanFlowOptions": None,
    "AdaptiveLoss": {"power", "offset"}, "ConsistencyLoss": {"offset"}, "ConsistencyOptions": None,
    "ConsistencyModel": {"sigma_data", "ratio"},
    "Linear": None, "Cosine": None, "_Stages": None, "VQVAE": {"data_variance"}, "LabelledAugment": {"p"},
    "DiffusionTranslation": {"sigma_data"}, "LatentDiffusion": {"condition_dropout", "sigma_data"},
    "Reflow": {"condition_dropout", "sigma_data"}, "EfficientNetLiteDistance": {"pixel_weight"},
}  # fmt: skip


def test_every_number_of_a_method_penalty_or_loss_can_be_driven():
    """A constructor's float is declared with Scheduled, or stands in the table above."""
    found = 0
    for kind in classes("losses", "methods"):
        exceptions = CONSTANT.get(kind.__name__, set())
        if exceptions is None or "__init__" not in vars(kind) or "likelihood" in kind.__module__.rpartition(".")[2]:
            continue
        hints = typing.get_type_hints(kind.__init__)
        for name, hint in hints.items():
            options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
            if name == "return" or not (float in options or Schedule in options) or name in exceptions:
                continue
            assert Schedule in options, f"{kind.__name__}.{name} takes no schedule"
            found += 1
    assert found > 30


def test_what_a_class_takes_a_schedule_for_it_declares():
    """Otherwise the schedule would be stored, and read as a schedule."""
    renamed = {"FixedAugment": {"p": "probability"}}
    for kind in classes("losses", "methods"):
        if "__init__" not in vars(kind):
            continue
        for name, hint in typing.get_type_hints(kind.__init__).items():
            if Schedule in typing.get_args(hint):
                attribute = renamed.get(kind.__name__, {}).get(name, name)
                assert attribute is None or attribute in declared(kind), (kind.__name__, name)


# In a config


BUILDER = Builder(epoch_size=1000, batch_size=10)
RAMP = {"_target_": "genimg.schedules.Linear", "start": 0.0, "end": 4.0, "duration": "2 epochs"}


def test_a_schedule_stands_in_a_config_where_a_number_does():
    node = {"_target_": "genimg.losses.penalties.R1", "gamma": RAMP, "image_size": 8, "batch_size": 10, "interval": 1}
    penalty = BUILDER.build(node, "penalty.r1")
    ScheduledNumbers(penalty).advance(500, 10)
    assert penalty.gamma == 1.0


def test_a_duration_is_a_number_of_images_where_a_schedule_takes_numbers():
    node = RAMP | {"end": "5M images"}
    assert extremes(BUILDER.build(node, "x")) == (0.0, 5e6)
    assert extremes(BUILDER.build(RAMP | {"end": 7}, "x")) == (0.0, 7.0)


@pytest.mark.parametrize(
    ("node", "key"),
    [
        ({"_target_": "genimg.methods.latent.Truncated", "dim": 4, "limit": RAMP}, "model.limit"),
        ({"_target_": "torch.nn.Linear", "in_features": 4, "out_features": RAMP}, "model.out_features"),
        ({"_target_": "torch.nn.Sequential", "_args_": [RAMP]}, "model._args_[0]"),
    ],
)
def test_a_schedule_where_none_is_taken_is_refused(node, key):
    with raises(ValueError, word=key):
        BUILDER.build(node, "model")


@pytest.mark.parametrize("interval", [1, 16])
def test_schedules_of_an_optimizer_are_set_in_its_groups_and_corrected_for_lazy_penalties(interval):
    gan = tiny.gan(penalties={"r1": R1(gamma=1.0, image_size=16, batch_size=10, interval=interval)})
    config = {
        "optimizer": {
            "_target_": "torch.optim.Adam", "lr": RAMP | {"start": 1e-3, "end": 3e-3}, "weight_decay": RAMP,
            "betas": [0.0, RAMP | {"start": 0.9, "end": 0.99}],
        },
        "optimizer_overrides": {"generator": {"lr": 7e-4}},
        "schedule": {"_target_": "genimg.training.schedules.Constant", "warmup": "0 images"},
    }  # fmt: skip
    optimizers = tiny.optimizers_of(config, gan, BUILDER)
    schedules = tiny.schedules_of(config, gan, BUILDER)
    base = schedules.base_rates(optimizers)
    for images, rate, decay, beta in ((0, 1e-3, 0.0, 0.9), (500, 1.5e-3, 1.0, 0.9225), (9000, 3e-3, 4.0, 0.99)):
        schedules.apply(optimizers, base, images, 10)
        c = interval / (interval + 1) if interval > 1 else 1.0
        (group,) = optimizers["discriminator"].param_groups
        assert (group["lr"], group["weight_decay"]) == pytest.approx((rate * c, decay), rel=1e-12)
        assert group["betas"] == pytest.approx([0.0, beta**c], rel=1e-12)
        (group,) = optimizers["generator"].param_groups
        assert (group["lr"], group["betas"][1]) == pytest.approx((7e-4, beta), rel=1e-12)
    named = schedules.values(optimizers)
    assert named.keys() == {f"{name}.{key}" for name in ("discriminator", "generator") for key in ("weight_decay", "betas.1")}
    for optimizer in optimizers.values():  # what a checkpoint holds are numbers
        assert not any(isinstance(value, Schedule) for group in optimizer.param_groups for value in group.values())


def test_a_step_uses_the_settings_that_were_set():
    """The first update of Adam by a gradient of 1 is the rate, whatever its betas."""
    weight = nn.Parameter(torch.zeros(()))
    optimizers = {"net": torch.optim.Adam([weight], lr=0.5)}
    line = Linear(start=1.0, end=3.0, duration=NumImages(100))
    schedules = OptimizerSchedules(Constant(warmup=NumImages(100)), {"net": {"lr": line}})
    schedules.apply(optimizers, schedules.base_rates(optimizers), 40, 10)
    weight.grad = torch.ones(())
    optimizers["net"].step()
    assert weight.item() == pytest.approx(-0.5 * 1.8, rel=1e-6)  # half warmed up, 40 % of the way from 1 to 3


def test_the_r3gan_experiment_follows_its_source():
    """The CIFAR10 preset of the authors' train.py and the cosine of its training loop, in their own numbers."""
    overrides = ["experiment=r3gan_cifar10", "data=shapes", "data.num_images=64", "model.generator.widths=[32]"]
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=[*overrides, "run_dir=unused"]), resolve=True)
    builder = Builder(epoch_size=50_000, batch_size=512)
    method = tiny.method_of(config, build_dataset(config, builder), builder)
    optimizers, schedules = (
        tiny.optimizers_of(config, method, builder),
        tiny.schedules_of(config, method, builder),
    )
    profile = builder.build(config["ema"], "ema")["exponential"]
    base, numbers = schedules.base_rates(optimizers), ScheduledNumbers(method, {"ema.exponential": profile})
    ranges = {
        "penalties.r1.gamma": (0.05, 0.005), "penalties.r2.gamma": (0.05, 0.005), "ema.exponential.half_life": (0.0, 5e6),
        "discriminator_augment.probability": (0.0, 0.55), "beta2": (0.9, 0.99), "lr": (2e-4, 5e-5),
    }  # fmt: skip
    for images in (0, 512, 1_000_448, 5_000_192, 10_000_384, 15_000_064, 19_999_744, 20_000_256, 250_000_384):
        numbers.advance(images, 512)
        schedules.apply(optimizers, base, images, 512)
        found = numbers.values()
        for optimizer in optimizers.values():
            (group,) = optimizer.param_groups
            assert group["betas"][0] == 0.0
            found |= {"beta2": group["betas"][1], "lr": group["lr"]}
            assert found.keys() == ranges.keys()
            share = 0.5 * (1 + math.cos(math.pi * min(images / 2e7, 1.0)))
            for name, (start, end) in ranges.items():
                # Genimg's 20M and 5M images are whole batches, at most 512 more.
                expected = start + (1 - share) * (end - start)
                assert found[name] == pytest.approx(expected, rel=1e-4, abs=1e-4 * abs(end - start)), (name, images)
    half_life, share = found["ema.exponential.half_life"], 0.5 ** (512 / 5e6)
    assert profile.decay(512, 250_000_896) == pytest.approx(share, rel=1e-6)
    assert half_life == pytest.approx(5e6, rel=1e-4)


def test_a_warm_up_beside_a_schedule_is_refused():
    settings = {"likelihood": Bernoulli(binarisation="none"), "num_samples": 1, "free_bits": 0.0}
    line = Linear(start=0.0, end=3.0, duration=NumImages(100))
    with raises(ValueError, "warm_up", word="kl_weight"):
        ELBO(**settings, kl_weight=line, warm_up=NumImages(5), capacity=None, capacity_growth=NumImages(0))
    with raises(ValueError, "capacity_growth", word="schedule"):
        ELBO(**settings, kl_weight=1.0, warm_up=NumImages(0), capacity=line, capacity_growth=NumImages(5))


def test_no_module_but_the_schedules_reads_the_images_seen_for_a_number():
    """A ramp written by hand would divide images by a duration."""
    for package in ("losses", "methods"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                    names = {each.id for each in ast.walk(node.left) if isinstance(each, ast.Name)}
                    names |= {each.attr for each in ast.walk(node.left) if isinstance(each, ast.Attribute)}
                    assert not names & {"images_seen", "progress"}, (path, node.lineno)


def test_the_trainer_calls_nothing_where_nothing_changes():
    assert not ScheduledNumbers(nn.Linear(1, 1))
    assert not OptimizerSchedules(Constant(warmup=NumImages(0)))
    assert OptimizerSchedules(Constant(warmup=NumImages(10)))
    assert OptimizerSchedules(Constant(warmup=NumImages(0)), {"net": {"lr": Linear(start=1.0, end=3.0, duration=NumImages(9))}})
