"""What the config asks for, checked against what the machine has."""

import pytest
import torch
from errors import raises

from genimg.errors import ConfigError
from genimg.training.device import Precision, choose_device, choose_precision

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """Pretend to have some CUDA GPUs, or an Apple one."""

    def pretend(*, cuda=0, mps=False):
        current = [0]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.__setitem__(0, device))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(1, False, "cuda"), (1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_cuda_then_mps_then_the_cpu(machine, cuda, mps, expected):
    machine(cuda=cuda, mps=mps)
    assert choose_device("auto").type == expected


def test_a_named_device_is_that_device(machine):
    machine(cuda=2)
    assert choose_device("cpu") == CPU
    assert choose_device("cuda:1") == torch.device("cuda", 1)


def test_a_numbered_gpu_becomes_the_current_one(machine):
    machine(cuda=3)
    first = choose_device("cuda")
    assert choose_device("cuda:2") == torch.device("cuda", 2)
    assert torch.cuda.current_device() == 2
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda", 2)
    assert first == torch.device("cuda", 0)


def test_a_refused_gpu_changes_nothing(machine):
    machine(cuda=2)
    with raises(ConfigError, "device=cuda:2"):
        choose_device("cuda:2")
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
@pytest.mark.parametrize(("version", "reason"), [("13.0", "sees no GPU"), (None, "was built without CUDA")])
def test_cuda_without_a_gpu_says_why_and_what_to_do(machine, monkeypatch, name, version, reason):
    machine()
    monkeypatch.setattr(torch.version, "cuda", version)
    with raises(ConfigError, f"device={name}"):
        choose_device(name)


def test_mps_without_an_apple_gpu_says_what_to_do(machine):
    machine()
    with raises(ConfigError, "device=mps"):
        choose_device("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda0", "CPU", "", "cpu:zero", "auto:0", "cuda:x"])
def test_an_unknown_device_is_refused_by_name(machine, name):
    machine(cuda=1)
    with raises(ConfigError, f"device={name}"):
        choose_device(name)


def test_a_gpu_number_without_its_kind_is_refused_by_name(machine):
    machine(cuda=1)
    with raises(ConfigError, "device=0"):
        choose_device(0)  # what Hydra makes of device=0 on the command line


def test_a_gpu_that_is_not_there_is_refused_by_name(machine):
    machine(cuda=2)
    with raises(ConfigError, "device=cuda:7"):
        choose_device("cuda:7")


@pytest.mark.parametrize("name", ["fp16", "float32", "FP32", ""])
def test_an_unknown_precision_is_refused_with_those_there_are(name):
    with raises(ConfigError, f"precision={name}"):
        choose_precision(name, CPU)


def test_tf32_on_the_cpu_is_refused_because_it_would_do_nothing():
    with raises(ConfigError, "precision=tf32"):
        choose_precision("tf32", CPU)
    assert choose_precision("tf32", torch.device("cuda")).name == "tf32"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx2": True, "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_precision_follows_the_processors_instructions(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", CPU) == Precision(expected, CPU)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_precision_follows_the_gpus_generation(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda")).name == expected


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_what_the_precision_says(name, dtype):
    left, right = torch.ones(2, 2), torch.ones(2, 2)
    with Precision(name, CPU).autocast():
        assert (left @ right).dtype == dtype


@pytest.mark.parametrize(
    ("name", "matmul", "tf32"), [("fp32", "highest", False), ("tf32", "high", True), ("bf16", "high", True)]
)
def test_tensor_float_32_is_allowed_only_where_it_was_requested(monkeypatch, name, matmul, tf32):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.get_float32_matmul_precision()
    try:
        Precision(name, torch.device("cuda")).apply_globally()
        assert torch.get_float32_matmul_precision() == matmul
        assert torch.backends.cudnn.allow_tf32 is tf32
    finally:
        torch.set_float32_matmul_precision(before)
