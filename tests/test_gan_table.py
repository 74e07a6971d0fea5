"""Every GAN's networks with every kind of loss, conditioning, penalty and augmentation, through the command line.

Each cell trains. Each network, loss, conditioning, penalty and augmentation is also stopped, resumed bit for bit, sampled and
evaluated; losses and conditionings are so with one network alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from fork_server import run_commands

from genimg.config.messages import is_choice
from genimg.utils.paths import config_dir

COMMON = [
    "data.image_size=16", "data.num_images=64", "trainer.batch_size=8", "trainer.preview_images=4", "precision=fp32",
    "device=cpu", "evaluation.num_images=16", "evaluation.num_real=16", "evaluation.batch_size=16",
    "trainer.checkpoint_interval=1 steps", "evaluation.interval=1000 steps", "model.generator_interval=1",
]  # fmt: skip

NETWORKS = {name: size for name, size in tiny.SIZES.items() if not name.endswith("_small")}
STYLES = NETWORKS["stylegan2"]
LOSSES = (
    "minimax", "nonsaturating", "least_squares", "hinge", "wasserstein", "relativistic", "relativistic_average",
)  # fmt: skip
HEADS = ("concat", "projection", "auxiliary_classifier")
NORMALISED = ("conditional_batchnorm", "shared_embedding", "text_conditional_batchnorm")
OWN_DISCRIMINATOR = ("stylegan2", "r3gan")
PENALTIES = (
    "gradient_penalty", "zero_centred_gradient_penalty", "dragan", "r1", "r2", "consistency", "latent_consistency",
    "latent_diversity", "lecam", "weight_clipping",
)  # fmt: skip


def run(commands: list[list[str]], folder: Path) -> tuple[list[int], str]:
    """Run commands one after the other, and return their exit codes and all that they have printed."""
    environment = os.environ | {"GENIMG_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return run_commands(commands, folder, environment)


def walk(cells: dict[str, list[str]], folder: Path) -> None:
    """Train each cell's arguments in one go and in two, compare, sample and evaluate."""
    commands = []
    for name, arguments in cells.items():
        for run_dir, steps in ((f"{name}/whole", 3), (f"{name}/parts", 2), (f"{name}/parts", 3)):
            commands.append(["train", *COMMON, *arguments, f"trainer.duration={steps} steps", f"run_dir={run_dir}"])
        commands.append(["sample", f"ckpt={name}/parts", "num_images=2"])
        commands.append(["eval", f"ckpt={name}/parts", "num_images=16"])
    outcomes, output = run(commands, folder)
    assert outcomes == [0] * len(commands), output
    for name in cells:
        whole, parts = (
            torch.load(folder / name / run_dir / "checkpoints/last.pt", weights_only=True) for run_dir in ("whole", "parts")
        )
        assert whole["training"]["images"] == parts["training"]["images"] == 24
        for key in ("method", "optimizers", "means"):
            differ = [path for path, same in compare(whole[key], parts[key], key) if not same]
            assert not differ, (name, differ[:5])
        assert (folder / name / "parts/samples-seed0/000001.png").stat().st_size > 0


def compare(one: Any, other: Any, path: str) -> Any:
    """(path, whether equal bit for bit) of every leaf."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            yield from compare(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from compare(a, b, f"{path}[{i}]")
    else:
        yield path, torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def options(group: str) -> set[str]:
    return {path.stem for path in (Path(config_dir()) / group).glob("*.yaml") if is_choice(path.stem)}


def test_the_table_has_every_network_loss_conditioning_penalty_and_augmentation() -> None:
    def of_gans(group: str, prefix: str) -> set[str]:
        texts = {name: (Path(config_dir()) / group / f"{name}.yaml").read_text() for name in options(group)}
        return {name for name, text in texts.items() if prefix in text or "\n  - dcgan\n" in text or "\n  - sngan\n" in text}

    assert of_gans("model", "genimg.methods.gan.GAN") - {"dcgan_small"} == set(NETWORKS)  # that of dcgan, with other settings
    assert of_gans("loss", "AdversarialLoss") == set(LOSSES)
    assert options("conditioning") == {"none", "text", "clip_text", *HEADS, *NORMALISED}
    assert options("penalty") == {"path_length", "r1_lazy", "r1_r3gan", "r2_r3gan", *PENALTIES}  # forms of r1 and r2
    assert options("discriminator_augment") == {"none", "diffaugment", "ada", "r3gan"}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains_with_losses_of_every_kind(network: str, tmp_path: Path) -> None:
    cells = {loss: [f"model={network}", f"loss={loss}", *NETWORKS[network]] for loss in LOSSES}
    if network == "dcgan":
        walk(cells, tmp_path)
        return
    walk({"hinge": cells.pop("hinge")}, tmp_path)
    others = {loss: cells[loss] for loss in ("wasserstein", "relativistic")}  # without a bound, and of pairs of logits
    commands = [["train", *COMMON, *cell, "trainer.duration=2 steps", f"run_dir={loss}"] for loss, cell in others.items()]
    outcomes, output = run(commands, tmp_path)
    assert outcomes == [0] * len(commands), output


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_conditioned_in_every_way_that_it_has_a_place_for(network: str, tmp_path: Path) -> None:
    fitting, refused = ways_of(network)
    cells = {way: [f"model={network}", f"conditioning={way}", *NETWORKS[network]] for way in fitting}
    walk(cells if network == "dcgan" else {"projection": cells.pop("projection")}, tmp_path)
    if network != "dcgan":
        trained = [["train", *COMMON, *cell, "trainer.duration=2 steps", f"run_dir={way}"] for way, cell in cells.items()]
        sampled = [["sample", f"ckpt={way}", "num_images=2"] for way in cells]
        outcomes, output = run([*trained, *sampled], tmp_path)
        assert outcomes == [0] * 2 * len(cells), output
    commands = [["train", *COMMON, *NETWORKS[network], f"model={network}", f"conditioning={way}"] for way in refused]
    outcomes, output = run(commands, tmp_path)
    assert outcomes == [2] * len(refused), output
    assert "Traceback" not in output
    assert output.count(" is not supported by ") == len(refused), output


def ways_of(network: str) -> tuple[list[str], list[str]]:
    """Which conditionings a network takes, and which it refuses."""
    if network in OWN_DISCRIMINATOR:
        return ["projection", "text"], ["concat", "auxiliary_classifier", *NORMALISED]
    return [*HEADS, *NORMALISED, "text"], []


def test_every_penalty_trains_and_resumes_eager_and_lazy(tmp_path: Path) -> None:
    base = ["model=dcgan", "model.generator.width=4", "model.discriminator.features.normalisation=none"]
    cells = {name: [*base, f"penalty=[{name}]"] for name in PENALTIES}
    cells |= {f"{name}-lazy": [*base, f"penalty=[{name}]", f"penalty.{name}.interval=2"] for name in ("r1", "gradient_penalty")}
    style = ["model=stylegan2_small", *STYLES, "penalty=[r1,path_length]", "penalty.path_length.interval=2"]
    walk(cells | {"path_length": style}, tmp_path)


def test_every_augmentation_trains_and_resumes_with_a_penalty_that_looks_through_it(tmp_path: Path) -> None:
    base = ["model=dcgan", "model.generator.width=4", "penalty=[r1]", "conditioning=projection"]
    cells = {name: [*base, f"discriminator_augment={name}"] for name in ("diffaugment", "ada", "r3gan")}
    walk(cells, tmp_path)


@pytest.mark.parametrize("experiment", [name for name in sorted(options("experiment")) if tiny.model_of(name) in tiny.SIZES])
def test_every_experiment_takes_two_steps_on_tiny_images(experiment: str, tmp_path: Path) -> None:
    sizes = tiny.SIZES[tiny.model_of(experiment)]
    if any("widths" in size for size in sizes) and "64" in experiment:
        sizes = [*sizes, "model.discriminator.features.bottom_size=4"]
    images = [
        "data=shapes", "evaluation=none", "trainer.duration=16 images", "trainer.checkpoint_interval=16 images",
        "trainer.preview_interval=16 images",
    ]  # fmt: skip
    common = [argument for argument in COMMON if not argument.startswith(("evaluation", "trainer.checkpoint", "model."))]
    outcomes, output = run([["train", f"experiment={experiment}", *common, *images, *sizes, "run_dir=run"]], tmp_path)
    assert outcomes == [0], output
    assert (tmp_path / "run/checkpoints/last.pt").is_file()
