"""Fixtures: the real images that may lie beside the checkout, in ../shared/data, and what several files need."""

from __future__ import annotations

import logging
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("command_table", "errors")  # whose assertions show their values then, as those of tests do

REAL_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all",
        action="store_true",
        help="run every row of the slow tables, not only a sample that covers every value of their columns (tests/sampling.py)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what needs ``--all``, unless it is named on the command line."""
    if config.getoption("--all"):
        return
    beyond = [item for item in items if item.get_closest_marker("exhaustive") and item.nodeid not in config.args]
    config.hook.pytest_deselected(items=beyond)
    items[:] = [item for item in items if item not in set(beyond)]


def _skip_without(file: Path) -> None:
    if not file.is_file():
        pytest.skip(f"the real images are not beside the checkout: {file} does not exist")


@pytest.fixture(scope="session")
def real_mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``data.root`` that holds MNIST/raw, with all 60,000 + 10,000 digits."""
    _skip_without(REAL_DATA / "unpack")
    destination = tmp_path_factory.mktemp("real_mnist")
    subprocess.run([sys.executable, str(REAL_DATA / "unpack"), str(destination), "mnist"], check=True, capture_output=True)
    return destination


@pytest.fixture(scope="session")
def real_cifar10_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds cifar10/train/CLASS/N.jpg, with the first 100 images of each class.

    Without the unpacker, because writing all 50,000 files takes up to half a minute.
    """
    archive = REAL_DATA / "cifar10" / "train.tar.xz"
    _skip_without(archive)
    destination = tmp_path_factory.mktemp("real_cifar10")
    with tarfile.open(archive) as members:
        for member in members:
            if member.isfile() and int(Path(member.name).stem) < 100:
                members.extract(member, destination / "cifar10", filter="data")
    return destination


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """He-initialised weights of Inception's shape: with PyTorch's own initialisation the features would vanish."""
    import torch
    from torch import nn
    from torch_fidelity import feature_extractor_inceptionv3 as module

    path = tmp_path_factory.mktemp("inception") / "he.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *arguments, **keywords: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *arguments, **keywords: None)
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    yield path
    path.unlink()  # 96 MB, which pytest would keep


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    """Hydra sets up the root logger of whichever process composes a run, and later tests look at what is logged."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)  # Python's own; a fixture of a whole module may have composed a run before this test
    handlers, raising = root.handlers[:], logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    logging.raiseExceptions = raising


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads cost many times what they save on little work, the more so beside other processes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unchanged_process(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[None]:
    """For commands that run in the tests' own process, which saves importing torch."""
    import torch
    from fork_server import mode_of
    from hydra._internal.hydra import Hydra

    monkeypatch.setattr(Hydra, "get_mode", mode_of(Hydra.get_mode))
    precision = torch.get_float32_matmul_precision()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    yield
    torch.set_float32_matmul_precision(precision)
