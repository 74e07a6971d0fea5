"""float64 is computed where it exists: on the tensor's device, or on the CPU for Apple's GPUs."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_devices import fake_device

import genimg
from genimg.data.tasks.noise import Photons
from genimg.diffusion.noise import state_type
from genimg.evaluation.gaussian import FeatureSums, InceptionScoreSums
from genimg.utils.exact import double, float64_device, has_float64

PACKAGE = Path(genimg.__file__).parent


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.float64])
def test_numbers_are_converted_and_stay_on_the_cpu(dtype):
    numbers = torch.tensor([0, 1, 3]).to(dtype)
    result = double(numbers)
    assert result.dtype == torch.float64
    assert result.tolist() == numbers.tolist()


@pytest.mark.parametrize(("kind", "place"), [("cuda", "cuda"), ("mps", "cpu")])
def test_a_device_without_float64_leaves_it_to_the_cpu(monkeypatch, kind, place):
    with fake_device(monkeypatch, kind) as device:
        result = double(device.tensor(2, 3))
    assert has_float64(torch.device(kind)) == (place == kind)
    assert float64_device(torch.device(kind)).type == place
    assert result.dtype == torch.float64
    assert result.device.type == place


def test_a_solvers_state_is_float32_where_there_is_no_float64(monkeypatch):
    for kind, dtype in (("cuda", torch.float64), ("mps", torch.float32)):
        with fake_device(monkeypatch, kind) as device:
            assert state_type(device.tensor(1)) == dtype


@pytest.mark.parametrize("sums", [FeatureSums(), InceptionScoreSums(4, 2)])
def test_running_sums_of_apple_features_are_on_the_cpu(monkeypatch, sums):
    with fake_device(monkeypatch, "mps") as device:
        for _ in range(2):
            sums.add(device.tensor(2, 5))
    tensors = [value for value in vars(sums).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 3
    assert all(tensor.device.type == "cpu" for tensor in tensors)
    assert all(tensor.dtype in (torch.float64, torch.int64) for tensor in tensors)


def test_photons_of_apple_images_are_counted_on_the_cpu(monkeypatch):
    photons = Photons(30.0)
    tables = photons._make_tables()
    monkeypatch.setattr(photons, "_make_tables", lambda: tables)
    monkeypatch.setattr(
        "genimg.data.tasks.noise.uniform_field", lambda keys, shape, device: torch.rand(2, *shape, device=device)
    )
    with fake_device(monkeypatch, "mps") as device:
        result = photons(device.tensor(2, 1, 4, 4), np.arange(2, dtype=np.uint64))
    assert list(photons._tables) == [torch.device("cpu")]
    assert result.device.type == "mps"
    assert result.dtype == torch.float32


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_tensors_become_float64_by_this_function_only(path):
    """``.double()``, and float64 with a device, would fail on Apple's GPUs."""
    if path.name == "exact.py" or ("float64" not in (text := path.read_text()) and ".double(" not in text):
        return
    for call in calls(ast.parse(text)):
        assert not (isinstance(call.func, ast.Attribute) and call.func.attr == "double"), ast.unparse(call)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert not (given.get("dtype") == "torch.float64" and "device" in given), ast.unparse(call)
