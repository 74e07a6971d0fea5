"""Every autoencoder with every bound, likelihood and condition that it takes, through the command line.

Each row trains, is stopped and resumed bit for bit, and is sampled. All pairs of model and bound are there, with likelihoods
in turn; ``test_build`` builds all triples.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from command_table import options, succeed, walk
from omegaconf import OmegaConf
from sampling import sampled

from genimg.utils.paths import config_dir

COMMON = [
    "data.image_size=16", "data.num_images=16", "trainer.batch_size=4", "trainer.preview_images=4", "precision=fp32",
    "device=cpu", "evaluation=none", "trainer.checkpoint_interval=1 steps", "trainer.preview_interval=2 steps",
]  # fmt: skip
LIKELIHOODS = (
    "bernoulli", "bernoulli_dynamic", "bernoulli_static", "gaussian", "gaussian_learnt", "gaussian_per_pixel",
    "logistic_mixture", "squared_error",
)  # fmt: skip
BOUNDS = ("elbo", "beta_vae", "elbo_capacity", "iwae")
BOUNDED = ("vae", "vae_resnet", "vae_fully_connected", "vae_hierarchical")  # vae_small is vae, with other settings
# What a model makes of two latents is shown in pictures of its own, for which the data's labels are welcome.
TWO_LATENTS = ["model=vae_fully_connected", *tiny.AUTOENCODERS["vae_fully_connected"], "model.latent_dim=2"]


def cell(model: str, *settings: str) -> list[str]:
    return [f"model={model}", *tiny.AUTOENCODERS[model], *settings]


# Of two latents, and of other families: a line a row, with what makes it one.
OTHERS = {
    "two_latents": TWO_LATENTS,
    "two_latents_labels": [*TWO_LATENTS, "conditioning=concat"],
    "vae_gan": cell("vae_gan", "conditioning=concat"),
    "wae": cell("wae"),
    "wae_labels": cell("wae_small", "conditioning=concat", "model.num_components=1"),
    "rae": cell("rae"),
    "rae_gp": cell("rae", "loss=rae_gp", "conditioning=concat"),
    "rae_sn": cell("rae", "loss=rae_sn"),
    "vq_vae": cell("vq_vae"),
    "vq_transformer_labels": cell("vq_transformer", "conditioning=label"),
    "vq_vae_stages": cell("vq_vae", "model.autoencoder_until=1 steps", "model.prior_from=1 steps", "conditioning=concat"),
    "vq_vae_gradient": cell("vq_vae", "model.quantizer.decay=null", "model.quantizer.restart_below=null", "loss=l1"),
}


def targets(group: str) -> dict[str, str | None]:
    """What each option makes, also one that changes another."""
    found = {}
    for path in sorted((Path(config_dir()) / group).glob("*.yaml")):
        node = OmegaConf.load(path)
        base = next((entry for entry in node.get("defaults", []) if isinstance(entry, str) and entry != "_self_"), None)
        found[path.stem] = node.get("_target_", base)
    while not all(target is None or "." in target for target in found.values()):
        found = {name: found.get(target, target) for name, target in found.items()}
    return {name: found[name] for name in options(group)}


def test_the_table_has_every_model_bound_and_likelihood() -> None:
    assert {name for name, target in targets("model").items() if target == "genimg.methods.vae.VAE"} == {"vae_small", *BOUNDED}
    assert {name for name, target in targets("loss").items() if str(target).startswith("genimg.losses.elbo.")} == set(BOUNDS)
    assert options("likelihood") - {"none"} == set(LIKELIHOODS)


def bounds() -> list[tuple[str, str, str, str]]:
    """Model, bound, likelihood and conditioning: all pairs of the first two, with the others in turn."""
    pairs = [(model, loss) for model in BOUNDED for loss in BOUNDS]
    places = [BOUNDED.index(model) + BOUNDS.index(loss) for model, loss in pairs]
    return [
        (*pair, LIKELIHOODS[number % len(LIKELIHOODS)], "concat" if place % 2 else "none")
        for number, (pair, place) in enumerate(zip(pairs, places, strict=True))
    ]


@pytest.mark.parametrize(("model", "loss", "likelihood", "way"), sampled(bounds(), lambda row: row))
def test_every_model_trains_resumes_and_samples_with_every_bound(
    model: str, loss: str, likelihood: str, way: str, tmp_path: Path
) -> None:
    resume_and_sample(cell(model, f"loss={loss}", f"likelihood={likelihood}", f"conditioning={way}"), tmp_path)


@pytest.mark.parametrize("name", sampled(OTHERS, lambda name: [OTHERS[name][0], "labels" in name]))
def test_every_other_autoencoder_trains_resumes_and_samples(name: str, tmp_path: Path) -> None:
    resume_and_sample(OTHERS[name], tmp_path)


def resume_and_sample(arguments: list[str], folder: Path) -> None:
    walk([*COMMON, *arguments], folder, ["sample", "ckpt=parts", "num_images=2"], steps=2)
    assert (folder / "parts/samples-seed0/000001.png").stat().st_size > 0


EXPERIMENTS = [name for name in sorted(options("experiment")) if tiny.model_of(name) in tiny.AUTOENCODERS]


@pytest.mark.parametrize("experiment", sampled(EXPERIMENTS, lambda name: [tiny.model_of(name)]))
def test_every_experiment_takes_two_steps_on_tiny_images(experiment: str, tmp_path: Path) -> None:
    sizes = tiny.AUTOENCODERS[tiny.model_of(experiment)]
    # Drawn shapes have no test split to hold out.
    images = ["data=shapes", "data.validation=0", "trainer.duration=8 images", "trainer.checkpoint_interval=8 images"]
    succeed([["train", f"experiment={experiment}", *COMMON, *sizes, *images, "run_dir=run"]], tmp_path)
    assert (tmp_path / "run/checkpoints/last.pt").is_file()
