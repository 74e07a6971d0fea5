"""Every GAN's networks with every kind of loss, conditioning, penalty and augmentation, through the command line.

Each row trains and is sampled. Each network, loss, conditioning, penalty and augmentation is also stopped, resumed bit for bit
and evaluated; losses and conditionings are so with one network alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from command_table import options, run, succeed, walk
from sampling import sampled

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
PENALTIES = {  # and what each looks at
    "gradient_penalty": "gradient", "zero_centred_gradient_penalty": "gradient", "dragan": "gradient", "r1": "gradient",
    "r2": "gradient", "consistency": "images", "latent_consistency": "latents", "latent_diversity": "latents",
    "lecam": "averages", "weight_clipping": "weights",
}  # fmt: skip
AUGMENTATIONS = {"diffaugment": "fixed", "ada": "adaptive", "r3gan": "fixed"}
USED = (["sample", "ckpt=parts", "num_images=2"], ["eval", "ckpt=parts", "num_images=16"])


def test_the_table_has_every_network_loss_conditioning_penalty_and_augmentation() -> None:
    def of_gans(group: str, prefix: str) -> set[str]:
        texts = {name: (Path(config_dir()) / group / f"{name}.yaml").read_text() for name in options(group)}
        return {name for name, text in texts.items() if prefix in text or "\n  - dcgan\n" in text or "\n  - sngan\n" in text}

    assert of_gans("model", "genimg.methods.gan.GAN") - {"dcgan_small"} == set(NETWORKS)  # that of dcgan, with other settings
    assert of_gans("loss", "AdversarialLoss") == set(LOSSES)
    assert options("conditioning") == {"none", "text", "clip_text", "label", "caption", *HEADS, *NORMALISED}
    assert options("penalty") == {"path_length", "r1_lazy", "r1_r3gan", "r2_r3gan", *PENALTIES}  # forms of r1 and r2
    assert options("discriminator_augment") == {"none", *AUGMENTATIONS}


def ways_of(network: str) -> tuple[list[str], list[str]]:
    """Which conditionings a network takes, and which it refuses."""
    if network in OWN_DISCRIMINATOR:
        return ["projection", "text"], ["concat", "auxiliary_classifier", *NORMALISED]
    return [*HEADS, *NORMALISED, "text"], []


def rows() -> list[tuple[str, str, str]]:
    """Network, loss and conditioning: dcgan with all, the others with three losses, without a bound and of pairs among them."""
    losses = {network: LOSSES if network == "dcgan" else ("hinge", "wasserstein", "relativistic") for network in NETWORKS}
    of_losses = [(network, loss, "none") for network in NETWORKS for loss in losses[network]]
    return of_losses + [(network, "usual", way) for network in NETWORKS for way in ways_of(network)[0]]


@pytest.mark.parametrize(("network", "loss", "way"), sampled(rows(), lambda row: row))
def test_every_network_trains_with_losses_and_conditionings_of_every_kind(
    network: str, loss: str, way: str, tmp_path: Path
) -> None:
    chosen = [] if loss == "usual" else [f"loss={loss}"]
    arguments = [*COMMON, f"model={network}", f"conditioning={way}", *chosen, *NETWORKS[network]]
    if network == "dcgan" or loss == "hinge" or way == "projection":
        walk(arguments, tmp_path, *USED)
        assert (tmp_path / "parts/samples-seed0/000001.png").stat().st_size > 0
    else:
        trained = ["train", *arguments, "trainer.duration=2 steps", "run_dir=parts"]
        succeed([trained, USED[0]], tmp_path)


@pytest.mark.parametrize("network", OWN_DISCRIMINATOR)
def test_a_network_refuses_conditionings_that_it_has_no_place_for(network: str, tmp_path: Path) -> None:
    refused = ways_of(network)[1]
    commands = [["train", *COMMON, *NETWORKS[network], f"model={network}", f"conditioning={way}"] for way in refused]
    outcomes, output = run(commands, tmp_path)
    assert outcomes == [2] * len(refused), output
    assert "Traceback" not in output
    assert output.count(" is not supported by ") == len(refused), output


EAGER = [(name, kind, "eager") for name, kind in PENALTIES.items()]
LAZY = [("r1", "gradient", "lazy"), ("gradient_penalty", "gradient", "lazy"), ("path_length", "styles", "lazy")]


@pytest.mark.parametrize(("penalty", "kind", "pace"), sampled([*EAGER, *LAZY], lambda row: row[1:]))
def test_every_penalty_trains_and_resumes_eager_and_lazy(penalty: str, kind: str, pace: str, tmp_path: Path) -> None:
    lazy = [f"penalty.{penalty}.interval=2"] if pace == "lazy" else []
    if kind == "styles":
        arguments = ["model=stylegan2_small", *STYLES, f"penalty=[r1,{penalty}]"]
    else:
        dcgan = ["model=dcgan", "model.generator.width=4", "model.discriminator.features.normalisation=none"]
        arguments = [*dcgan, f"penalty=[{penalty}]"]
    walk([*COMMON, *arguments, *lazy], tmp_path, *USED)


@pytest.mark.parametrize("augmentation", sampled(AUGMENTATIONS, lambda name: [AUGMENTATIONS[name]]))
def test_every_augmentation_trains_and_resumes_with_a_penalty_that_looks_through_it(augmentation: str, tmp_path: Path) -> None:
    dcgan = ["model=dcgan", "model.generator.width=4", "penalty=[r1]", "conditioning=projection"]
    walk([*COMMON, *dcgan, f"discriminator_augment={augmentation}"], tmp_path, *USED)


EXPERIMENTS = [name for name in sorted(options("experiment")) if tiny.model_of(name) in tiny.SIZES]


@pytest.mark.parametrize("experiment", sampled(EXPERIMENTS, lambda name: [tiny.model_of(name)]))
def test_every_experiment_takes_two_steps_on_tiny_images(experiment: str, tmp_path: Path) -> None:
    sizes = tiny.SIZES[tiny.model_of(experiment)]
    if any("widths" in size for size in sizes) and "64" in experiment:
        sizes = [*sizes, "model.discriminator.features.bottom_size=4"]
    images = [
        "data=shapes", "evaluation=none", "trainer.duration=16 images", "trainer.checkpoint_interval=16 images",
        "trainer.preview_interval=16 images",
    ]  # fmt: skip
    common = [argument for argument in COMMON if not argument.startswith(("evaluation", "trainer.checkpoint", "model."))]
    succeed([["train", f"experiment={experiment}", *common, *images, *sizes, "run_dir=run"]], tmp_path)
    assert (tmp_path / "run/checkpoints/last.pt").is_file()
