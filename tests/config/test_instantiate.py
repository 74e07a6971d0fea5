"""Every YAML composes and instantiates; what a config may not say is refused with the key and the way out."""

import collections
import dataclasses
import functools
import re
import tarfile
import tempfile
from pathlib import Path

import efficientnet
import numpy as np
import pytest
import tiny
import torch
import torchvision.datasets
from errors import raises
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from sampling import sampled
from torch import nn

from genimg.api.data import build_dataset
from genimg.config import instantiate
from genimg.config.compatibility import check_pairing
from genimg.config.evaluation import build_evaluator, build_scheduled_evaluator
from genimg.config.instantiate import ALLOWED, Builder
from genimg.config.messages import is_choice
from genimg.config.schema import COMMANDS, options_of
from genimg.data.datasets.builtin import ArrayDataset, ImageDataset
from genimg.data.packing import pack
from genimg.errors import ConfigError, DataError
from genimg.evaluation.base import ModelEvaluator
from genimg.evaluation.extractors.classifier import shipped_weights
from genimg.evaluation.image_sets import GeneratedImages
from genimg.evaluation.likelihood import LikelihoodEvaluator
from genimg.methods.base import Method
from genimg.methods.capabilities import Generates, Reconstructs
from genimg.training.schedules import Cosine, RateSchedule
from genimg.training.state import TrainerSettings
from genimg.utils.paths import config_dir

CONFIGS = Path(config_dir())
BUILDER = Builder(epoch_size=1000, batch_size=10)
TINY = ("data.image_size=16", "data.num_images=4")


def options(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml") if is_choice(path.stem))


def compose_config(*overrides, name="train"):
    """The config of a command line, unresolved. ``local`` is a machine's own and stays out."""
    without_local = ["local=null"] if (CONFIGS / "local").is_dir() else []
    fixed = ["run_dir=unused", *without_local] if name == "train" else []
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return compose(name, overrides=[*fixed, *overrides])


def resolve(*overrides):
    return OmegaConf.to_container(compose_config(*overrides), resolve=True)


def targets(node):
    """Every ``_target_`` below a node."""
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [target for value in node.values() for target in targets(value)]
    return [target for item in node for target in targets(item)] if isinstance(node, list) else []


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GENIMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GENIMG_DATA", raising=False)


# Composing and instantiating what is shipped


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_yaml_composes_and_all_its_interpolations_resolve(path):
    *group, stem = path.relative_to(CONFIGS).with_suffix("").parts
    if group == ["local"]:
        pytest.skip("a machine's own settings")
    if not group:
        required = {"sample": ["ckpt=x"], "features": ["data=mnist", "name=x"], "prepare": ["data=mnist", "output=x"]}
        config = compose_config(*required.get(stem, []), name=stem)
        assert set(config) >= set(OmegaConf.load(path)) - {"defaults", "hydra"}
        OmegaConf.to_container(config, resolve=True)
        return
    named = re.match(rf"# @package {group[0]}\.(\w+)", path.read_text())  # an option of a list, such as penalty=[r1]
    chosen = f"{group[0]}=[{stem}]" if named else f"{'/'.join(group)}={stem}"
    needed = ["data.root=x"] if group == ["experiment"] and stem.endswith("_64") else []
    composed = compose_config(chosen, *needed)
    # A base leaves open what its options fill in, so that only they can be resolved.
    config = OmegaConf.to_container(composed, resolve=not stem.endswith("base"))
    written = OmegaConf.to_container(OmegaConf.load(path))
    if named:
        place = named[1]
        assert stem.startswith(place)
        assert set(config[group[0]]) == {place}
        own = {k: v for k, v in written.items() if k != "defaults" and "$" not in str(v)}
        assert config[group[0]][place].items() >= own.items()
    elif group[0] in config:
        assert set(config[group[0]]) >= set(written) - {"defaults"}
        if written.get("_target_", "???") != "???":
            assert config[group[0]]["_target_"] == written["_target_"]


OF_HYDRA = set((CONFIGS / "hydra").rglob("*.yaml"))  # which builds its plugins itself, from the command line's words alone


@pytest.mark.parametrize(
    "path", sorted(set(CONFIGS.rglob("*.yaml")) - OF_HYDRA), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_every_target_in_a_yaml_may_be_built(path):
    for target in targets(OmegaConf.to_container(OmegaConf.load(path))):
        if target not in ("???", "genimg.evaluation.extractors.program.Program"):  # that one needs the user's word
            assert callable(BUILDER.locate(target, "here"))


@functools.cache
def loss_node(loss):
    """What a loss YAML makes: its class, and what its own settings are."""
    node = resolve(f"loss={loss}")["loss"]
    return BUILDER.locate(node["_target_"], "loss"), node


MODELS = tiny.SIZES | tiny.AUTOENCODERS | tiny.TRANSLATORS | tiny.DENOISERS | tiny.RANDOM_TRANSLATORS
MODELS |= tiny.LATENT_AUTOENCODERS | tiny.LATENT_DENOISERS | tiny.REFLOW


def family_of(model):
    """The models of a family have one class: all GANs, and others by the beginning of their name, but for VAE-GAN."""
    return "gan" if model in tiny.SIZES else model if model == "vae_gan" else model.partition("_")[0]


@pytest.mark.parametrize("model", sampled(options("model"), lambda model: [family_of(model)]))
def test_every_model_builds_with_every_loss_of_its_family_and_refuses_the_others(model, tmp_path):
    settings = MODELS[model]
    unpaired = "data=unpaired" in settings
    if unpaired:
        tiny.unpaired_folders(tmp_path)
    data = [f"data.root={tmp_path}", "data.image_size=16"] if unpaired else TINY
    if model in tiny.REFLOW:
        tiny.packed_pairs(tmp_path)
        data = ["data=prepared", f"data.root={tmp_path}", "data.image_size=16"]
    own = resolve(f"model={model}", *settings, *data)
    family = BUILDER.locate(own["model"]["_target_"], "model").loss_type
    fitting = [loss for loss in options("loss") if issubclass(loss_node(loss)[0], family)]
    assert issubclass(BUILDER.locate(own["loss"]["_target_"], "loss"), family)
    for loss in fitting:
        config = resolve(f"model={model}", f"loss={loss}", *settings, *data)
        method = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
        assert isinstance(method, Method)
        assert method.training
        if isinstance(method, Generates):
            assert method.sample(method.draw(range(3), 0)).shape == (3, 3, 16, 16)
    for loss in set(options("loss")) - set(fitting):
        with raises(ConfigError, word="loss") as caught:
            check_pairing(own | {"loss": loss_node(loss)[1]}, BUILDER)
        assert str(caught.value).rpartition("loss=")[2].split(", ") == fitting


@pytest.mark.parametrize("model", ["dcgan_small", "vae_small"])
@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_every_optimizer_builds_for_every_group_of_every_model(model, optimizer):
    config = resolve(f"model={model}", f"optimizer={optimizer}", *TINY)
    method = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    built = tiny.optimizers_of(config, method, BUILDER)
    expected = OmegaConf.to_container(OmegaConf.load(CONFIGS / "optimizer" / f"{optimizer}.yaml"))
    kind = BUILDER.locate(expected.pop("_target_"), "optimizer")
    assert built.keys() == method.parameter_groups().keys()
    for name, parameters in method.parameter_groups().items():
        assert type(built[name]) is kind
        (group,) = built[name].param_groups
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in parameters]
        for key, value in expected.items():
            assert group[key] == (tuple(value) if key == "betas" and isinstance(group[key], tuple) else value)


@pytest.mark.parametrize("option", options("schedule"))
def test_every_schedule_builds(option):
    schedule = BUILDER.build(resolve(f"schedule={option}")["schedule"], "schedule")
    assert isinstance(schedule, RateSchedule)
    assert 0.0 <= schedule.at(5000, 10) <= 1.0


@pytest.mark.parametrize("option", options("trainer"))
def test_every_trainer_builds(option):
    assert isinstance(BUILDER.settings(TrainerSettings, resolve(f"trainer={option}")["trainer"], "trainer"), TrainerSettings)


class Embedding(nn.Module):
    """A stand-in for torch-fidelity's extractors."""

    resolution = 224

    def __init__(self):
        super().__init__()
        self.Mixed_6d = nn.Sequential()
        self.Mixed_6d.branch1x1 = nn.Identity()  # of Inception's spatial features


def exported(network, folder):
    batch = {"input": {0: torch.export.Dim("batch", min=2)}}
    torch.export.save(torch.export.export(network, (torch.zeros(3, 3, 8, 8),), dynamic_shapes=batch), folder / "program.pt2")
    return folder / "program.pt2"


@pytest.mark.parametrize("option", [name for name in options("evaluation") if not name.endswith("base")])
def test_every_evaluation_builds(option, tmp_path, monkeypatch):
    weights, network = tmp_path / "weights.pth", nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    torch.save(network.state_dict(), weights)
    monkeypatch.setattr("torch_fidelity.utils.create_feature_extractor", lambda *arguments, **keywords: Embedding())
    monkeypatch.setattr("torch.hub.load", lambda *arguments, **keywords: network)
    efficientnet.install(tmp_path, monkeypatch, efficientnet.random_state())
    classifier = shipped_weights("mnist_v2")
    needed = {
        "inception": [f"extractor.weights={weights}", "extractor.sha256=null"],
        "adm": [f"extractor.weights={weights}", "extractor.sha256=null"],
        "reconstruction": [f"extractor.weights={weights}", "extractor.sha256=null"],
        "dinov2": [f"extractor.weights={weights}", "extractor.sha256=null"],
        "clip": [f"extractor.weights={weights}", "extractor.sha256=null"],
        "classifier": [f"extractor.classifier={classifier}"],
        "module": ["extractor.name=mine", "extractor.network={_target_:torch.nn.Flatten}"],
        "program": ["extractor.name=mine", f"extractor.program={exported(network, tmp_path)}", "extractor.image_size=8"],
    }
    kind = option.removeprefix("unpaired_").removeprefix("translation_")
    overrides = [f"evaluation={option}", *(f"evaluation.{each}" for each in needed.get(kind, []))]
    builder = BUILDER
    if option == "program":
        with pytest.raises(ValueError, match=r"extractors\.program\.Program is refused"):  # it can run code
            build_evaluator(resolve(*overrides)["evaluation"], BUILDER)
        builder = dataclasses.replace(BUILDER, allowed=(*instantiate.ALLOWED, "genimg.evaluation.extractors.program"))
    evaluator = build_scheduled_evaluator(resolve(*overrides)["evaluation"], builder)
    if option == "none":
        assert evaluator is None
    else:
        assert evaluator is not None
        assert isinstance(evaluator.evaluator, ModelEvaluator)
        assert evaluator.interval == 5 * 1000


class TwoImages:
    """A stand-in for torchvision's datasets of files."""

    def __init__(self, root, train, download):
        self.data = np.zeros((2, 32, 32, 3), dtype=np.uint8)
        self.targets = [0, 1]
        self.classes = ["a", "b"]


class TwoGreyImages(TwoImages):
    def __init__(self, root, train, download):
        super().__init__(root, train, download)
        self.data = np.zeros((2, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("option", [name for name in options("data") if name not in ("base", "given", "module")])
def test_every_dataset_builds_and_makes_batches(option, tmp_path, monkeypatch):
    for name, stand_in in (
        ("MNIST", TwoGreyImages),
        ("FashionMNIST", TwoGreyImages),
        ("CIFAR10", TwoImages),
        ("CIFAR100", TwoImages),
    ):
        monkeypatch.setattr(torchvision.datasets, name, stand_in)
    for name in ("train/a", "train/b", "val/a"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name / "0.png")
    if "paired" in option:
        for name in ("train", "trainA", "trainB"):
            (tmp_path / name).mkdir(exist_ok=True)
            for number in range(2):
                Image.new("RGB", (80, 30)).save(tmp_path / name / f"{number}.png")
    overrides = [f"data={option}"]
    if "root" in compose_config(*overrides).data.keys():  # noqa: SIM118 - `in` alone is False for a missing value
        overrides.append(f"data.root={tmp_path}")
    if option == "npz":
        np.savez(tmp_path / "images.npz", images=np.zeros((2, 32, 32, 3), dtype=np.uint8))
        overrides.append(f"data.path={tmp_path / 'images.npz'}")
    if option == "prepared":
        images = ArrayDataset("two", np.zeros((2, 3, 32, 32), dtype=np.uint8))
        pack(images, tmp_path, shard_size=10_000, num_threads=1, max_corrupt=None, provenance={})
    if option == "webdataset":
        with tarfile.open(tmp_path / "shard.tar", "w") as shard:
            for path in sorted(tmp_path.glob("train/*/0.png")):
                shard.add(path, f"{path.parent.name}.png")
    if option == "lmdb":
        lmdb = pytest.importorskip("lmdb")
        with lmdb.open(str(tmp_path), map_size=2**20) as database, database.begin(write=True) as transaction:
            for path in tmp_path.glob("train/*/0.png"):
                transaction.put(path.parent.name.encode(), path.read_bytes())
    if option == "huggingface":
        datasets = pytest.importorskip("datasets")
        paths = [str(path) for path in tmp_path.glob("train/*/0.png")]
        saved = datasets.Dataset.from_dict({"image": [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]})
        saved.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
        overrides.append(f"data.root={tmp_path / 'saved'}")
    config = resolve(*overrides, "data.num_workers=0")
    source = build_dataset(config, BUILDER)
    assert isinstance(source, ImageDataset)
    data = tiny.loader_of(config, source, BUILDER)
    batch = next(data.batches(0, batch_size=2, seed=0))
    size, channels = config["data"]["image_size"], config["data"]["channels"]
    keys = {"paired": ["source", "target"], "unpaired": ["a", "b"]}.get(option, ["image"])
    assert {key: tuple(images.shape) for key, images in batch.items()} == dict.fromkeys(keys, (2, channels, size, size))


@pytest.mark.parametrize("option", options("augment"))
@pytest.mark.parametrize("storage", ["device", "workers"])
def test_every_augmentation_builds_and_changes_training_images_alone(option, storage):
    settings = [f"augment={option}", "data.image_size=16", "data.num_images=8", "data.num_workers=0"]
    config = resolve(*settings, f"data.storage={storage}")
    source = build_dataset(config, BUILDER)
    data = tiny.loader_of(config, source, BUILDER, keys=("image", "caption"))
    plain = tiny.loader_of(resolve(*settings, "augment=none"), source, BUILDER, keys=("image", "caption"))
    assert (data.augment is None) == (option == "none")
    one, other = (next(each.batches(0, batch_size=8, seed=0)) for each in (data, plain))
    assert torch.equal(one["caption"], other["caption"])
    assert torch.equal(one["image"], other["image"]) == (option == "none")
    assert torch.equal(data.images(np.arange(8)), plain.images(np.arange(8)))


def test_settings_of_an_augmentation_that_is_not_chosen_build_none():
    config = resolve(*TINY) | {"augment": {"crop_padding": 2}}
    source = build_dataset(config, BUILDER)
    assert tiny.loader_of(config, source, BUILDER).augment is None


def test_an_augmentation_of_your_own_must_be_allowed():
    config = resolve(*TINY) | {"augment": {"_target_": "fractions.Fraction"}}
    source = build_dataset(config, BUILDER)
    with raises(ConfigError, "augment._target_=fractions.Fraction"):
        tiny.loader_of(config, source, BUILDER)
    allowed = Builder(allowed=(*ALLOWED, "fractions"))
    with raises(AttributeError, word="check"):  # it was built
        tiny.loader_of(config, source, allowed)


# Values that the build converts


def test_durations_become_images_at_any_depth():
    config = resolve(
        "trainer.duration=2 epochs", "trainer.log_interval=3 steps", "schedule=cosine", "schedule.warmup=0.5k images"
    )
    settings = BUILDER.settings(TrainerSettings, config["trainer"], "trainer")
    assert (settings.duration, settings.log_interval) == (2000, 30)
    schedule = BUILDER.build(config["schedule"], "schedule")
    assert isinstance(schedule, Cosine)
    assert schedule.warmup == 500
    assert schedule.at(1990, 10) > 0 == schedule.at(2000, 10)
    config = resolve("model=dcgan_small", "ema.exponential.half_life=4 epochs", *TINY)
    average = BUILDER.build(config["ema"], "ema")["exponential"]
    assert average.half_life == 4000


BAD_DURATIONS = [
    "trainer.duration=25",
    "trainer.log_interval=soon",
    "schedule.warmup=5 minutes",
    "evaluation.interval=-1 epochs",
]


@pytest.mark.parametrize("override", BAD_DURATIONS)
def test_a_bad_duration_names_its_key(override):
    config = resolve("evaluation=shapes", override)
    build_group = {
        "trainer": lambda: BUILDER.settings(TrainerSettings, config["trainer"], "trainer"),
        "schedule": lambda: BUILDER.build(config["schedule"], "schedule"),
        "evaluation": lambda: build_scheduled_evaluator(config["evaluation"], BUILDER),
    }[override.split(".")[0]]
    with raises(ConfigError, override):
        build_group()


def test_optimizer_overrides_change_their_group_alone():
    config = resolve("model=dcgan", "+optimizer_overrides.discriminator.lr=4e-4", *TINY)
    method = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    built = tiny.optimizers_of(config, method, BUILDER)
    groups = {name: optimizer.param_groups[0] for name, optimizer in built.items()}
    assert {name: group["lr"] for name, group in groups.items()} == {"discriminator": 4e-4, "generator": 2e-4}
    assert {tuple(group["betas"]) for group in groups.values()} == {(0.5, 0.999)}


def test_the_optimizer_override_that_the_help_shows_works_as_it_is_written():
    told = {option.name: option.help for option in options_of(COMMANDS["train"])}
    shown = re.search(r"such as (.+)$", told["optimizer_overrides"])
    assert shown is not None
    config = resolve("model=dcgan_small", shown.group(1).strip().replace("'", ""), *TINY)
    method = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    built = tiny.optimizers_of(config, method, BUILDER)
    assert built["discriminator"].param_groups[0]["lr"] == 4e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+optimizer_overrides.critic.lr=1", "optimizer_overrides.critic"),
        ("+optimizer_overrides.generator.learning_rate=1", "optimizer.learning_rate"),
    ],
)
def test_an_optimizer_override_without_effect_is_refused(override, message):
    config = resolve("model=dcgan_small", override, *TINY)
    method = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    with raises(ConfigError, word=message):
        tiny.optimizers_of(config, method, BUILDER)


# What a config may not name

REFUSED = [
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "torch.load",
    "torch.hub.load",
    "torch.nn.functional.relu",  # classes of torch only: its packages also hold functions that import modules
    "torch.nnx.Linear",
    "genimg",
    "genimg.commands.train.train",
    "genimg.training.checkpoint.load",
    "genimg.data.loader.ImageLoader",
    # things that allowed modules have merely imported
    "genimg.data.datasets.builtin.os.system",
    "genimg.data.datasets.builtin.np.load",
    "genimg.data.datasets.builtin.Path",
    "genimg.data.datasets.builtin.Image",
    "genimg.evaluation.extractors.base.torch.load",
    "genimg.evaluation.extractors.base.hashlib",
    "torch.nn.functional.torch",
    "torch.nn.functional.importlib.import_module",
    "torch.nn.modules.module.torch.load",
    "torch.optim.lr_scheduler.warnings.warn",
    # not a class or function of the module at all
    "genimg.losses.adversarial",
    "genimg.losses.adversarial.__doc__",
    "genimg.data.datasets.builtin.mnist.__globals__",
    "torch.nn.modules.__builtins__",
]


@pytest.mark.parametrize("target", REFUSED)
def test_a_target_outside_the_allowed_packages_is_refused_by_key_and_name(target):
    with raises(ConfigError, f"model.part._target_={target}"):
        BUILDER.locate(target, "model.part")


@pytest.mark.parametrize("target", ["torch.nn.Linear", "torch.optim.Adam", "genimg.losses.elbo.ELBO"])
def test_what_the_allowed_packages_define_may_be_built(target):
    assert BUILDER.locate(target, "here").__name__ == target.rpartition(".")[2]


def test_a_refused_target_says_how_to_allow_a_package_and_then_it_is_allowed():
    with raises(ConfigError, "here._target_", word="fractions"):
        BUILDER.locate("fractions.Fraction", "here")
    builder = Builder(allowed=(*ALLOWED, "fractions"))
    assert builder.build({"_target_": "fractions.Fraction", "numerator": 1, "denominator": 3}, "here") * 3 == 1


def test_a_misspelt_target_names_the_nearest():
    with raises(ConfigError, "model._target_=torch.nn.Linea"):
        BUILDER.locate("torch.nn.Linea", "model")


def test_a_target_that_is_not_a_word_is_refused():
    with raises(ConfigError, "model._target_=5"):
        BUILDER.locate(5, "model")


def code(folder):
    """A node that would make a directory, as a checkpoint's config could hold it."""
    return {"_target_": "tempfile.mkdtemp", "dir": str(folder)}


HIDING_PLACES = {
    "at the top": lambda node: node,
    "in a key": lambda node: {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1, "device": node},
    "in positional arguments": lambda node: {"_target_": "torch.nn.Sequential", "_args_": [node]},
    "in a plain dict": lambda node: {"_target_": "torch.nn.ModuleDict", "modules": {"a": {"b": node}}},
    "in lists": lambda node: {"_target_": "torch.nn.Sequential", "_args_": [[[node]]]},
    "in a tuple": lambda node: {"_target_": "torch.nn.Sequential", "_args_": (node,)},
    "in a tuple in a list": lambda node: {"_target_": "torch.nn.Sequential", "_args_": [(node,)]},
    "in an interpolation": lambda node: {
        "_target_": "torch.nn.Sequential",
        "_args_": [f"${{oc.create:{{_target_:{node['_target_']},dir:'{node['dir']}'}}}}"],
    },
    "in an interpolated target": lambda node: {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": f"${{oc.decode:{node['_target_']}}}", "dir": node["dir"]}],
    },
}


@pytest.mark.parametrize("hide", HIDING_PLACES.values(), ids=HIDING_PLACES)
def test_code_in_a_config_is_refused_wherever_it_hides_and_does_not_run(hide, tmp_path):
    with raises(ConfigError, word="_target_"):
        BUILDER.build(hide(code(tmp_path)), "model")
    assert list(tmp_path.iterdir()) == []


def test_the_hidden_code_is_code(tmp_path):
    tempfile.mkdtemp(dir=code(tmp_path)["dir"])
    assert len(list(tmp_path.iterdir())) == 1


# Keys


def test_an_unknown_key_names_the_nearest():
    config = resolve("model=dcgan_small", "+model.generator.widht=8", *TINY)
    with raises(ConfigError, word="model.generator.widht"):
        tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    with raises(ConfigError, word="trainer.batchsize"):
        BUILDER.settings(TrainerSettings, {**resolve()["trainer"], "batchsize": 3}, "trainer")
    with raises(ConfigError, word="data.num_image"):
        build_dataset(resolve("+data.num_image=3"), BUILDER)
    with raises(ConfigError, word="schedule.qqqqqqq"):
        BUILDER.build(resolve("+schedule.qqqqqqq=3")["schedule"], "schedule")


def test_a_missing_key_is_named():
    config = resolve("model=dcgan_small", "~model.discriminator.features.width", *TINY)
    with raises(ConfigError, "model.discriminator.features.width", word="required"):
        BUILDER.build(config["model"], "model", {"image_size": 16, "channels": 3})
    kept = {key: value for key, value in resolve()["trainer"].items() if key != "keep_last"}
    with raises(ConfigError, "trainer.keep_last", word="required"):
        BUILDER.settings(TrainerSettings, kept, "trainer")
    with raises(ConfigError, "loss.likelihood.scale", word="required"):
        BUILDER.build({"_target_": "genimg.losses.likelihoods.Gaussian", "learnt": False}, "loss.likelihood")


def test_a_value_that_a_constructor_refuses_is_its_own_message():
    with pytest.raises(ConfigError) as caught:
        BUILDER.build(resolve("model=vae", "likelihood.scale=-1")["loss"], "loss")
    assert caught.value.key == "loss.likelihood.scale"


# Parts that do not fit each other


def build_method_of(*overrides):
    config = resolve("model=dcgan_small", *TINY, *overrides)
    return tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)


@pytest.mark.parametrize(
    "override",
    [
        "+model.generator.channels=1",
        "+model.discriminator.features.channels=1",
        "+model.generator.image_size=32",
        "+model.discriminator.features.image_size=32",
    ],
)
def test_networks_that_do_not_fit_the_data_are_refused_with_both_shapes(override):
    with raises(ConfigError, word="model"):
        build_method_of(override)


@pytest.mark.parametrize("override", ["+model.encoder.channels=1", "+model.decoder.channels=1", "+model.decoder.image_size=32"])
def test_autoencoders_that_do_not_fit_the_data_are_refused_with_both_shapes(override):
    with raises(ConfigError, word="model"):
        build_method_of("model=vae_small", override)


@pytest.mark.parametrize(
    ("model", "network", "key"),
    [
        *((model, "generator", "model.latent.dim") for model in tiny.SIZES),
        *((model, "decoder", "model.latent_dim") for model in tiny.AUTOENCODERS if not model.startswith("vq_")),
    ],
)
def test_networks_that_take_other_latents_than_the_model_draws_are_refused(model: str, network: str, key: str) -> None:
    with raises(ConfigError, key) as caught:
        build_method_of(f"model={model}", *(tiny.SIZES | tiny.AUTOENCODERS)[model], f"model.{network}.latent_dim=63")
    assert caught.value.key == key


@pytest.mark.parametrize("model", ["dcgan_small", "vae_small"])
def test_a_size_that_cannot_be_halved_names_the_nearest_that_can(model):
    with raises(ConfigError, "data.image_size", word="[32,32]") as caught:
        build_method_of(f"model={model}", "data.image_size=30")
    assert caught.value.key == "data.image_size"


def test_a_loss_that_does_not_fit_names_those_that_do():
    with raises(ConfigError, word="ELBO"):
        build_method_of("loss=elbo", "likelihood=gaussian")


@pytest.mark.parametrize(
    "override",
    ["loss._target_=genimg.losses.adversarial.negated_generator_loss", "model._target_=genimg.networks.dcgan.Generator"],
)
def test_a_target_of_another_kind_is_refused_and_not_a_crash(override):
    with raises(ConfigError, word="model"):
        build_method_of(override)


def test_data_without_the_labels_that_a_model_needs_is_refused():
    config = resolve("model=dcgan_small", "conditioning=projection", *TINY)
    source = build_dataset(config, BUILDER)
    assert isinstance(tiny.method_of(config, source, BUILDER), Method)
    source.labels = None
    with raises(ConfigError, "conditioning", word="data shapes has none"):
        tiny.method_of(config, source, BUILDER)


def test_a_model_that_leaves_the_number_of_classes_to_the_data_gets_it_everywhere():
    config = resolve("model=dcgan_small", "conditioning=concat", *TINY)
    source = build_dataset(config, BUILDER)
    method = tiny.method_of(config, source, BUILDER)
    assert method.num_classes == method.generator.condition.num_classes == 5
    assert method.discriminator.features.layers[0].in_channels == source.shape[0] + 5


@pytest.mark.parametrize("override", ["penalty=[r1]", "discriminator_augment=ada"])
def test_groups_of_gans_are_refused_for_other_models(override):
    config = resolve("model=vae_small", override, *TINY)
    with raises(ConfigError, override.split("=")[0], word="VAE"):
        check_pairing(config, BUILDER)


@pytest.mark.parametrize("conditioning", ["projection", "auxiliary_classifier", "text"])
def test_ways_of_a_discriminator_to_judge_are_refused_for_models_without_one(conditioning):
    config = resolve("model=vae_small", f"conditioning={conditioning}", *TINY)
    with raises(ConfigError, word=f"conditioning.head={config['conditioning']['head']}"):
        check_pairing(config, BUILDER)


@pytest.mark.parametrize(("overrides", "loss"), [((), "AdversarialLoss"), (("model=restoration",), "ReconstructionLoss")])
def test_a_likelihood_is_refused_for_losses_without_one(overrides, loss):
    config = resolve("model=dcgan_small", *overrides, "likelihood=gaussian", *TINY)
    with raises(ConfigError, "likelihood=Gaussian", word=loss):
        check_pairing(config, BUILDER)


@pytest.mark.parametrize(("loss", "name"), [("elbo", "ELBO"), ("beta_vae", "ELBO"), ("iwae", "ImportanceWeighted")])
def test_a_bound_without_a_likelihood_is_refused(loss, name):
    config = resolve("model=vae_small", f"loss={loss}", "likelihood=none", *TINY)
    with raises(ConfigError, "likelihood=none,", word=name):
        check_pairing(config, BUILDER)


VAES = [name for name in tiny.AUTOENCODERS if name.startswith("vae") and name not in ("vae_small", "vae_gan")]


@pytest.mark.parametrize("likelihood", [name for name in options("likelihood") if name != "none"])
@pytest.mark.parametrize("model", VAES)
def test_every_vae_builds_with_every_likelihood_and_on_labels_and_learns_every_parameter(model, likelihood):
    settings = tiny.AUTOENCODERS[model]
    config = resolve(f"model={model}", f"likelihood={likelihood}", "conditioning=concat", *settings, *TINY)
    method = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    assert (method.num_classes, method.batch_keys) == (5, ("image", "label"))
    assert method.sample(method.draw(range(3), 0)).shape == (3, 3, 16, 16)
    built = tiny.optimizers_of(config, method, BUILDER)
    (group,) = built["autoencoder"].param_groups
    assert sorted(map(id, group["params"])) == sorted(map(id, method.parameters()))


def test_the_fully_connected_vae_has_the_published_parameters():
    config = resolve("model=vae_fully_connected", "data.image_size=28", "data.num_images=4")
    method = BUILDER.build(config["model"], "model", {"image_size": 28, "channels": 1})
    # 784-400-20, with a mean and a log-variance, and 20-400-784.
    counts = 785 * 400 + 401 * 40 + 21 * 400 + 401 * 784
    assert sum(parameter.numel() for parameter in method.parameters()) == counts


def test_a_lazy_penalty_corrects_its_networks_optimizer():
    config = resolve(
        "model=dcgan_small", "penalty=[r1]", "penalty.r1.interval=16", "optimizer=adam_stylegan2",
        "+optimizer_overrides.generator.lr=0.002", *TINY,
    )  # fmt: skip
    method = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    built = tiny.optimizers_of(config, method, BUILDER)
    assert built["discriminator"].defaults["lr"] == pytest.approx(0.0025 * 16 / 17)
    assert built["discriminator"].defaults["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
    assert built["generator"].defaults["lr"] == 0.002
    assert built["generator"].defaults["betas"] == (0.0, 0.99)


def test_checking_the_shapes_leaves_the_weights_and_statistics_alone():
    torch.manual_seed(0)
    checked = build_method_of()
    torch.manual_seed(0)
    config = resolve("model=dcgan_small", *TINY)
    unchecked = BUILDER.build(config["model"], "model", {"image_size": 16, "channels": 3})
    for key, value in unchecked.state_dict().items():
        assert torch.equal(checked.state_dict()[key], value), key


def test_several_lazy_penalties_and_a_rate_of_a_networks_own_are_corrected_together():
    config = resolve(
        "model=dcgan_small", "penalty=[r1,r2]", "penalty.r1.interval=16", "penalty.r2.interval=16", "optimizer=adam",
        "+optimizer_overrides.discriminator.lr=0.004", *TINY,
    )  # fmt: skip
    method = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    built = tiny.optimizers_of(config, method, BUILDER)
    assert built["discriminator"].defaults["lr"] == pytest.approx(0.004 * 16 / 18)
    assert built["discriminator"].defaults["betas"] == pytest.approx((0.9 ** (16 / 18), 0.999 ** (16 / 18)))
    assert built["generator"].defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("penalties", ["[r1_lazy]", "[r1,path_length]", "[r1_lazy,path_length]"])
def test_the_cifar_recipe_of_stylegan2_corrects_the_generators_adam_once_whatever_the_penalties(penalties):
    """training_loop.py of StyleGAN2-ADA: with interval 4 both its rate and the power of its betas are 4/5."""
    config = resolve(
        "experiment=stylegan2_ada_cifar10", f"penalty={penalties}", *tiny.SIZES["stylegan2"], "data=shapes", *TINY
    )  # fmt: skip
    method = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    built = tiny.optimizers_of(config, method, BUILDER)
    assert built["generator"].defaults["lr"] == pytest.approx(0.0025 * 4 / 5)
    assert built["generator"].defaults["betas"] == pytest.approx((0.0, 0.99 ** (4 / 5)))
    share = 16 / 17 if "lazy" in penalties else 1
    assert built["discriminator"].defaults["lr"] == pytest.approx(0.0025 * share)


@pytest.mark.parametrize("penalties", ["[]", "[lecam]"])
def test_penalties_of_the_command_line_replace_those_that_a_recipe_has_set_keys_of(penalties):
    config = resolve("experiment=stylegan2_ada_cifar10", f"penalty={penalties}", *tiny.SIZES["stylegan2"], "data=shapes", *TINY)
    method = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    assert list(method.penalties) == (["lecam"] if "lecam" in penalties else [])


def test_the_lsgan_of_the_experiment_has_the_published_parameters():
    config = resolve("experiment=lsgan_cifar10", "data=shapes", "data.image_size=32")
    groups = tiny.method_of(config, build_dataset(config, BUILDER), BUILDER).parameter_groups()
    counts = {name: sum(p.numel() for p in parameters) for name, parameters in groups.items()}
    assert counts == {"generator": 3_812_355, "discriminator": 2_931_009}


@pytest.mark.parametrize("model", tiny.SIZES)
def test_each_network_reads_its_own_encoder_of_the_conditioning(model):
    config = resolve(f"model={model}", "conditioning=shared_embedding", "conditioning.normalisation=none", *TINY)
    node = config["model"]
    assert node["generator"]["condition"]["_target_"].endswith("LabelEmbedding")
    assert node["discriminator"]["condition"]["_target_"].endswith("OneHot")


def test_an_evaluation_draws_classes_exactly_as_often_as_the_data_has_them():
    config = resolve("model=dcgan_small", "conditioning=projection", "data.image_size=16", "data.num_images=100")
    source = build_dataset(config, BUILDER)
    source.labels = np.sort(np.array([0] * 70 + [1] * 25 + [3] * 4 + [4], dtype=np.int64))
    method = tiny.method_of(config, source, BUILDER)
    images = GeneratedImages(method.eval(), count=200, seed=3, device=torch.device("cpu"))
    labels = torch.cat([images.images(part)[1] for part in np.array_split(np.arange(200), 3)])
    assert torch.bincount(labels, minlength=5).tolist() == [140, 50, 0, 8, 2]
    assert labels.tolist() != sorted(labels.tolist())
    assert torch.equal(images.images(np.array([150, 7]))[1], labels[[150, 7]])


def test_captions_of_a_small_dataset_are_drawn_from_equally_often():
    config = resolve("experiment=text_shapes", "data.image_size=16", "data.num_images=100")
    source = build_dataset(config, BUILDER)
    method = tiny.method_of(config, source, BUILDER)
    counts = method.conditions.unique(dim=0, return_counts=True)[1]
    texts = collections.Counter(source.captions(np.arange(100)))
    assert sorted(counts.tolist()) == pytest.approx(sorted(4096 / 100 * n for n in texts.values()), rel=0.03)


def test_autoencoders_without_a_likelihood_may_hold_images_out_for_their_reconstructions():
    overrides = ["model=rae_small", "data.image_size=32", "data.num_images=100", "data.validation=0.1"]
    config = resolve(*overrides, "evaluation=shapes")
    source = build_dataset(config, BUILDER)
    assert len(source.validation) == 10
    assert isinstance(tiny.method_of(config, source, BUILDER), Reconstructs)
    with pytest.raises(ValueError, match=r"data\.validation=0\.1 has no effect"):
        tiny.method_of(resolve(*overrides, "evaluation=none"), source, BUILDER)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=mnist", "data.root=nowhere", "data.validation=train"], "data.validation=train"),
        (["data.validation=test"], "data.validation=test"),
    ],
)
def test_a_split_that_cannot_be_held_out_is_refused_by_its_key(overrides, words):
    with raises(ConfigError, words):
        build_dataset(resolve(*overrides), BUILDER)


@pytest.mark.parametrize(
    ("overrides", "error", "key"),
    [
        (["data=folder", "data.root=nowhere", "data.image_size=16"], DataError, "data.root"),
        (["data.validation=2"], ConfigError, "data.validation"),
        (["augment=strong", "augment.crop_padding=16"], ConfigError, "augment.crop_padding"),
        (["augment=strong", "augment.hue=2"], ConfigError, "augment.hue"),
        (["task=super_resolution", "task.factor=5"], ConfigError, "task.factor"),
        (["task=inpaint_strokes", "task.mask.width=0.001"], ConfigError, "task.mask.width"),
        (["task=edges", "task.detector.sigma=0"], ConfigError, "task.detector.sigma"),
        (["evaluation=shapes", "evaluation.num_images=1"], ConfigError, "evaluation.num_images"),
        (["evaluation=shapes", "evaluation.metrics.inception_score.splits=0"], ConfigError,
         "evaluation.metrics.inception_score.splits"),
        (["evaluation=shapes", "evaluation.num_images=5"], ConfigError, "evaluation.metrics.inception_score"),
        (["evaluation=shapes", "evaluation.extractor.classifier=nowhere.pt"], DataError, "evaluation.extractor.classifier"),
        (["evaluation=shapes", "evaluation.stop_if={factor: 1, evaluations: 1}"], ConfigError, "evaluation.stop_if.factor"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_data_task_or_evaluation_refuse_has_its_dotted_key(overrides, error, key):
    config = resolve(*(TINY if "data=folder" not in overrides else ()), *overrides)

    def build():
        tiny.loader_of(config, build_dataset(config, BUILDER), BUILDER)
        build_scheduled_evaluator(config["evaluation"], BUILDER)

    with pytest.raises(error) as caught:
        build()
    assert caught.value.key == key
    assert str(caught.value).startswith(key)


def test_another_split_of_an_archive_has_arrays_of_its_own(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images[:20], y_train=np.arange(20) % 2, x_test=images[20:], y_test=np.arange(10) % 3)
    overrides = [
        "data=npz",
        f"data.path={tmp_path / 'a.npz'}",
        "data.image_size=8",
        "data.images=x_train",
        "data.labels=y_train",
    ]
    source = build_dataset(resolve(*overrides, "data.validation=test"), BUILDER)
    assert (len(source), len(source.validation)) == (20, 10)
    assert source.labels.tolist() == [i % 2 for i in range(20)]
    assert source.validation.labels.tolist() == [i % 3 for i in range(10)]
    # It takes nothing from the training, so a recipe that names it goes with evaluation=none, too.
    config = resolve(*overrides, "data.validation=test", "model=rae_small", "evaluation=none", "data.image_size=32")
    tiny.method_of(config, build_dataset(config, BUILDER), BUILDER)
    with raises(ConfigError, "data.validation=tset"):
        build_dataset(resolve(*overrides, "data.validation=tset"), BUILDER)


@pytest.mark.parametrize("experiment", ["vae_mnist", "iwae_mnist", "vae_cifar10"])
def test_recipes_of_likelihoods_evaluate_them_on_all_test_images(experiment):
    config = resolve(f"experiment={experiment}", "data.root=nowhere")
    assert config["data"]["validation"] == "test"
    evaluator = build_scheduled_evaluator(config["evaluation"], dataclasses.replace(BUILDER, epoch_size=100))
    assert evaluator is not None
    assert isinstance(evaluator.evaluator, LikelihoodEvaluator)
    assert (evaluator.final_num_images or evaluator.evaluator.num_images) == 10_000
    assert evaluator.primary == "nll_iw100_nats"


@pytest.mark.parametrize("experiment", ["rae_mnist", "rae_cifar10", "wae_cifar10"])
def test_recipes_of_autoencoders_reconstruct_as_many_test_images_as_their_source(experiment):
    config = resolve(f"experiment={experiment}", "data.root=nowhere")
    assert config["data"]["validation"] == "test"
    assert (config["evaluation"]["num_images"], config["evaluation"]["reconstructions"]) == (10_000, 10_000)


@pytest.mark.real_data
def test_another_split_may_be_held_out(real_mnist_root):
    config = resolve("data=mnist", f"data.root={real_mnist_root}", "data.validation=test")
    source = build_dataset(config, BUILDER)
    assert (len(source), len(source.validation)) == (60_000, 10_000)
    assert source.validation.name == "mnist/test"


def test_held_out_images_are_allowed_where_a_metric_compares_with_them():
    memorisation = "evaluation.metrics.memorisation={_target_:genimg.evaluation.memorisation.Memorisation,quantile:0.05}"
    overrides = ["model=dcgan_small", "data.image_size=16", "data.num_images=100", "data.validation=0.1", "evaluation=shapes"]
    for more in ([], [memorisation]):
        config = resolve(*overrides, *more)
        source = build_dataset(config, BUILDER)
        if more:
            assert isinstance(tiny.method_of(config, source, BUILDER), Method)
            assert build_evaluator(config["evaluation"], BUILDER).needs_held_out
        else:
            with raises(ConfigError, "data.validation=0.1"):
                tiny.method_of(config, source, BUILDER)
