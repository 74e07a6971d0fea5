import numpy as np
import pytest
import torch
from errors import raises

from genimg.errors import CheckpointError, ConfigError
from genimg.training import checkpoint, posthoc_ema
from genimg.training.ema import PowerFunction, exponent_of
from genimg.training.posthoc_ema import Snapshot, coefficients, correlations, weights_of_length


def profile(length: float, end: float, t: np.ndarray) -> np.ndarray:
    """A profile's density at times ``t``; 0 after its end."""
    exponent = exponent_of(length)
    return np.where(t <= end, (exponent + 1) / end * (np.minimum(t, end) / end) ** exponent, 0.0)


def test_correlations_are_the_integrals_of_the_products():
    t = (np.arange(400_000) + 0.5) / 400_000
    ends, lengths = np.array([0.3, 1.0, 0.7]), (0.05, 0.1, 0.2)
    found = correlations(ends, np.array([exponent_of(x) for x in lengths]), ends, np.array([exponent_of(x) for x in lengths]))
    curves = np.stack([profile(length, end, t) for length, end in zip(lengths, ends, strict=True)])
    np.testing.assert_allclose(found, curves @ curves.T / len(t), rtol=2e-4)


def averaged(values: np.ndarray, length: float, until: int) -> float:
    """The power-function average of one weight that has ``values[i]`` in step i, after ``until`` steps."""
    made = PowerFunction(length=length, num_snapshots=0)
    total = 0.0
    for step, value in enumerate(values[:until], start=1):
        decay = made.decay(1, step)
        total = decay * total + (1 - decay) * float(value)
    return total


@pytest.fixture
def run():
    """A weight that wanders, and snapshots of two averages of it at 16 times."""
    values = np.cumsum(np.random.default_rng(0).normal(size=3200)) / 50
    snapshots = [
        Snapshot(length, step, {"w": torch.tensor([averaged(values, length, step)]), "n": torch.tensor([step])}, ("n",))
        for length in (0.05, 0.1) for step in range(200, 3201, 200)
    ]  # fmt: skip
    return values, snapshots


@pytest.mark.parametrize(("length", "tolerance"), [(0.05, 1e-6), (0.1, 1e-6), (0.07, 5e-4), (0.15, 5e-4), (0.2, 1e-3)])
def test_other_lengths_are_those_that_training_would_have_kept(run, length, tolerance):
    values, snapshots = run
    made = weights_of_length(snapshots, len(values), length)
    assert made["w"].dtype == torch.float32
    assert made["w"].item() == pytest.approx(averaged(values, length, len(values)), abs=tolerance * np.abs(values).max())
    assert made["n"].item() == 3200


def test_factors_add_up_to_one_even_of_few_snapshots():
    assert coefficients([50, 100, 150, 200] * 2, [0.05] * 4 + [0.1] * 4, 200, 0.08).sum() == pytest.approx(1.0, abs=1e-12)


def test_snapshots_of_a_part_of_the_training_do_not_determine_long_averages(run):
    values, snapshots = run
    late = [each for each in snapshots if each.images > 2400]
    assert weights_of_length(late, len(values), 0.08)
    with raises(ConfigError, "weights"):
        weights_of_length(late, len(values), 0.25)


def test_one_average_alone_and_lengths_out_of_range_are_refused(run):
    for snapshots, length in ((run[1][:1], 0.1), (run[1], 0.0), (run[1], 0.3)):
        with pytest.raises(ConfigError) as raised:
            weights_of_length(snapshots, 3200, length)
        assert raised.value.key == "weights"


def test_snapshots_are_written_and_read_up_to_a_time(tmp_path, run):
    for snapshot in run[1][:3]:
        posthoc_ema.save(posthoc_ema.path_of(tmp_path / posthoc_ema.FOLDER, "power", snapshot.images), **vars(snapshot))
    found = posthoc_ema.find(tmp_path, 400, run[1][0].weights)
    assert [(each.images, each.weights["w"].item(), each.copied) for each in found] == [
        (each.images, each.weights["w"].item(), ("n",)) for each in run[1][:2]
    ]


WHOLE = {"length": 0.1, "images": 1, "weights": {"w": torch.zeros(1)}, "copied": ["w"]}


@pytest.mark.parametrize("contents", [
    {}, WHOLE | {"length": 2.0}, WHOLE | {"length": 1e-300}, WHOLE | {"weights": {"w": 3}}, WHOLE | {"images": 0},
    WHOLE | {"weights": {}}, WHOLE | {"weights": {"w": torch.zeros(2)}}, WHOLE | {"copied": ["x"]},
    WHOLE | {"weights": {"w": torch.full((1,), torch.nan)}}, WHOLE | {"weights": {"w": torch.zeros(1).double()}},
], ids=str)  # fmt: skip
def test_other_files_are_refused(tmp_path, contents):
    path = posthoc_ema.path_of(tmp_path / posthoc_ema.FOLDER, "power", 1)
    path.parent.mkdir()
    checkpoint.save(contents, path)
    assert posthoc_ema._is_snapshot(WHOLE, {"w": torch.zeros(1)})
    with pytest.raises(CheckpointError):
        posthoc_ema.find(tmp_path, 10, {"w": torch.zeros(1)})
