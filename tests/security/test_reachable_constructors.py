"""Everything that a checkpoint's config can name, and what each of it can be given.

A parameter that decides which file is opened, which code runs or which host is asked must carry a mark of
``genimg.utils.machine_local``, so that a checkpoint's config does not set it. These tests walk all that the config layer
instantiates, and fail for a new constructor with such a parameter and no mark.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from errors import raises
from torch import nn
from torch.optim import Optimizer

from genimg.config.instantiate import _GROUPS, ALLOWED, Builder, importable_parameters, local_parameters
from genimg.errors import ConfigError

TELLING = {
    "path", "paths", "root", "folder", "folders", "file", "files", "filename", "filenames", "dir", "directory", "directories",
    "url", "urls", "uri", "program", "programs", "command", "commands", "script", "cache", "module", "modules", "factory",
    "allow", "import", "imports", "package", "packages", "repo", "repository", "host", "hostname", "address", "endpoint",
    "environment", "env", "variable", "variables", "token", "password", "account", "project", "hub", "weights", "checkpoint",
    "checkpoints", "ckpt", "download", "downloads", "tokenizer", "archive", "socket", "plugin", "library", "code", "callback",
    "output", "backend", "captions", "sha256", "digest", "entity",
}  # fmt: skip
"""Words in the name of a parameter that decides what is opened, run or asked."""

BUILT = ("Tensor", "Module", "ndarray", "NDArray", "float", "Number", "Pixels")
"""Types in a parameter's annotation of which a config holds numbers alone, or nodes that are looked at themselves."""

HARMLESS = {
    "genimg.data.datasets.builtin.ArrayDataset.captions",  # the captions themselves
    "genimg.evaluation.extractors.classifier.Classifier.sha256",  # what the digest of a marked path must be
    "genimg.evaluation.extractors.custom.CustomExtractor.weights_sha256",
    "genimg.evaluation.extractors.custom.Module.sha256",
    "genimg.methods.latent_space.FrozenAutoencoder.sha256",  # a record, compared with that of packed latents
    "genimg.methods.consistency.ConsistencyModel.path",
    "genimg.methods.latent_diffusion.LatentDiffusion.path",
    "genimg.methods.reflow.Reflow.path",
    "genimg.diffusion.denoiser.Denoiser.path",  # a path from images to noise
    "genimg.diffusion.predictions.prediction_of.path",
    "genimg.diffusion.predictions.require_fitting_prediction.path",
    "genimg.diffusion.reverse.log_density.path",
    "genimg.diffusion.reverse.to_noise.path",
    "genimg.diffusion.samplers.Trajectory.path",
    "genimg.methods.diffusion.Diffusion.path",
    "genimg.methods.diffusion_sampling.check_options.path",
    "genimg.methods.diffusion_sampling.spacing_of.path",
    "genimg.methods.diffusion_translation.DiffusionTranslation.path",
    "genimg.methods.gan.as_discriminator_output.output",
    "genimg.methods.base.require_shape.output",
    "genimg.training.ema.chosen_weights.weights",  # the name of an average
    "genimg.training.wandb.WandbRecorder.project",  # a logger is taken from the command line alone
    "genimg.training.wandb.WandbRecorder.entity",
    "genimg.training.mlflow.MlflowRecorder.tracking_uri",
    "genimg.training.trackio.TrackioRecorder.project",
}
"""Parameters with such a name that decide nothing of the kind."""

IMAGES = {
    "genimg.data.datasets.builtin.folder", "genimg.data.datasets.builtin.imagenet", "genimg.data.datasets.builtin.mnist",
    "genimg.data.datasets.builtin.fashion_mnist", "genimg.data.datasets.builtin.cifar10",
    "genimg.data.datasets.builtin.cifar100", "genimg.data.datasets.npz.npz", "genimg.data.datasets.paired.paired",
    "genimg.data.datasets.unpaired.unpaired", "genimg.data.datasets.prepared.prepared", "genimg.data.tasks.masks.Files",
    "genimg.data.datasets.builtin.FileDataset", "genimg.data.datasets.paired.PairedDataset",
    "genimg.data.datasets.prepared.PreparedDataset",
    "genimg.data.datasets.prepared.is_prepared", "genimg.data.datasets.huggingface.huggingface",
    "genimg.data.datasets.huggingface.RowImages", "genimg.data.datasets.lmdb.lmdb", "genimg.data.datasets.lmdb.LmdbImages",
    "genimg.data.datasets.webdataset.webdataset", "genimg.data.datasets.webdataset.TarImages",
    "genimg.data.datasets.webdataset.WebDataset",
}  # fmt: skip
"""What reads the images that a run was trained on: docs/security.md says when; it stands below ``data`` and ``task`` alone."""


def modules(name: str) -> Iterator[types.ModuleType]:
    module = importlib.import_module(name)
    yield module
    for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
        try:
            yield importlib.import_module(info.name)
        except ImportError:  # an optional package is not installed
            continue


@cache
def reachable() -> dict[str, Any]:
    """Return all classes and functions that a checkpoint's config can name, by the names of where they are defined."""
    builder, found = Builder(named=frozenset()), {}
    for prefix in ALLOWED:
        for module in modules(prefix):
            for name in dir(module):
                try:
                    target = builder.locate(f"{module.__name__}.{name}", "x")
                except ConfigError:
                    continue
                found[f"{target.__module__}.{target.__qualname__}"] = target
    return found


def test_what_is_reachable_is_found() -> None:
    assert len(reachable()) > 300
    for name in ("genimg.losses.perceptual.Perceptual", "genimg.data.datasets.builtin.mnist", "torch.nn.modules.linear.Linear"):
        assert name in reachable()
    for name in ("genimg.evaluation.extractors.program.Program", "torch.nn.parallel.distributed.DistributedDataParallel"):
        assert name not in reachable()


def unmarked(targets: dict[str, Any]) -> list[str]:
    """Return the parameters that decide what is opened, run or asked, and that a checkpoint's config may set."""
    found = []
    for name, target in targets.items():
        marked = local_parameters(target).keys() | importable_parameters(target)
        for parameter in inspect.signature(target).parameters.values():
            words = set(parameter.name.lower().split("_"))
            annotation = str(parameter.annotation)
            is_path = re.search(r"\bPath\b|PathLike|IO\[", annotation)
            is_built = any(re.search(rf"\b{kind}\b", annotation) for kind in BUILT) and "Path" not in annotation
            if ((words & TELLING and not is_built) or is_path) and parameter.name not in marked:
                found.append(f"{name}.{parameter.name}")
    return found


def of_images(name: str) -> bool:
    return any(name.startswith(f"{target}.") for target in IMAGES)


def test_every_parameter_that_decides_what_is_opened_is_marked() -> None:
    own = {name: target for name, target in reachable().items() if name.startswith("genimg.")}
    left = [name for name in unmarked(own) if name not in HARMLESS and not of_images(name)]
    assert not left, "mark these as LocalPath, FoundPath or MachineLocal, or say above why they are harmless"


def test_marks_have_names_that_the_walk_looks_for() -> None:
    """So that a new parameter of the same kind would be noticed."""
    for name, target in reachable().items():
        for parameter in local_parameters(target).keys() | importable_parameters(target):
            assert set(parameter.split("_")) & {*TELLING, "classifier"}, f"{name}.{parameter}"


def test_a_new_constructor_without_a_mark_would_be_noticed() -> None:
    def encoder(*, tokenizer_path: str) -> None: ...

    class Weights:
        def __init__(self, *, width: int, where: "Path | None") -> None: ...  # noqa: F821, UP037

    found = unmarked({"a": encoder, "b": Weights})
    assert found == ["a.tokenizer_path", "b.where"]


@pytest.mark.parametrize("target", sorted(IMAGES))
def test_images_are_read_below_data_and_task_alone(target: str) -> None:
    for group in ("model", "loss", "conditioning", "evaluation", "optimizer", "augment"):
        with raises(ConfigError, word="belongs"):
            Builder(named=frozenset()).build({"part": {"_target_": target, "_partial_": True}}, group)


def test_extractors_stand_below_evaluation_alone() -> None:
    node = {"_target_": "genimg.evaluation.extractors.inception.Inception", "weights": None, "sha256": None}
    with raises(ConfigError, "model.generator._target_", word="evaluation"):
        Builder(named=frozenset()).build({"generator": node}, "model")


def test_all_that_opens_files_belongs_to_one_group() -> None:
    for name, target in reachable().items():
        if not local_parameters(target) or name.startswith(tuple(_GROUPS)):
            continue
        assert name in {
            "genimg.losses.perceptual.LPIPSLoss",
            "genimg.losses.perceptual.Perceptual",
            "genimg.losses.lpips.LPIPSNetwork",
            "genimg.networks.text.ClipText",
            "genimg.evaluation.image_metrics.LPIPS",
            "genimg.losses.image_distance.LPIPSDistance",
        }


@pytest.mark.parametrize(
    "name",
    ["torch.hub.load", "torch.load", "torch.ops.load_library", "torch.classes.load_library", "torch.jit.load",
     "torch.nn.functional.relu", "torch.nn.init.normal_", "torch.nn.utils.clip_grad_norm_", "torch.nn.parallel.data_parallel",
     "torch.nn.DataParallel", "torch.nn.parallel.DistributedDataParallel", "torch.nn.modules.module.os",
     "torch.nn.modules.importlib", "torch.nn.Parameter", "torch.nn.Buffer", "torch.optim.swa_utils.update_bn",
     "torch.optim.optimizer.functools.partial", "torch.nn.quantized.Linear", "torch.utils.cpp_extension.load",
     "genimg.methods.ema.get_ema_multi_avg_fn", "torch.nn.modules.__loader__", "torch.optim.lr_scheduler.LambdaLR"],
)  # fmt: skip
def test_other_parts_of_torch_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        Builder(named=frozenset()).locate(name, "model")


ACTING = re.compile(
    r"\b(open|exec|eval|compile|__import__|import_module|getenv|environ|popen|system|subprocess|socket|urlopen|load_library"
    r"|hub|pickle|torch\.load|load_state_dict_from_url|init_process_group|dlopen)\s*[\[(.]"
)


def of_torch() -> dict[str, Any]:
    return {name: target for name, target in reachable().items() if name.startswith("torch.")}


def test_torchs_layers_and_optimizers_open_nothing_and_run_nothing() -> None:
    assert len(of_torch()) > 150
    for name, target in of_torch().items():
        assert inspect.isclass(target), name
        assert issubclass(target, nn.Module | Optimizer), name
        assert name.startswith(("torch.nn.modules.", "torch.optim.", "torch.nn.utils.parametrize.", "torch.nn.cpp.",
                                "torch.nn.attention.", "torch.nn.backends.", "torch.nn.utils.")), name  # fmt: skip
        assert not issubclass(target, torch.jit.ScriptModule), name
        for base in target.__mro__:
            if base in (nn.Module, Optimizer) or not base.__module__.startswith("torch."):
                continue
            constructor = vars(base).get("__init__")
            if inspect.isfunction(constructor):
                source = inspect.getsource(constructor)
                assert not ACTING.search(source), f"{name}: {ACTING.search(source)}"


def test_torchs_parameters_name_no_files() -> None:
    layers, sizes = {"modules", "module", "cpp_module"}, {"output_size", "output_padding", "output_ratio"}
    assert {name.rpartition(".")[2] for name in unmarked(of_torch())} <= layers | sizes
