import itertools

import pytest
import torch

from genimg.diffusion.paths import StraightLine, VarianceExploding, VariancePreserving

LINEAR = VariancePreserving(num_times=1000, schedule="linear", beta_min=1e-4, beta_max=0.02)
EDM = VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0)
LINE = StraightLine(shift=1.0)


@pytest.mark.parametrize(("schedule", "betas"), [("linear", (1e-4, 0.02)), ("squaredcos_cap_v2", (None, None))])
def test_schedules_are_those_of_diffusers(schedule, betas):
    diffusers = pytest.importorskip("diffusers")
    given = {} if betas[0] is None else {"beta_start": betas[0], "beta_end": betas[1]}
    theirs = diffusers.DDPMScheduler(beta_schedule=schedule, **given).alphas_cumprod
    path = VariancePreserving(num_times=1000, schedule="linear" if given else "cosine", beta_min=betas[0], beta_max=betas[1])
    times = torch.arange(1, 1001)
    torch.testing.assert_close(path.scale(times.float()) ** 2, theirs, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(path.scale(times.float()) ** 2 + path.sigma(times.float()) ** 2, torch.ones(1000))
    assert path.scale(torch.zeros(1)).item() == 1.0
    assert path.embedded(times).tolist() == list(range(1000))


@pytest.mark.parametrize("path", [LINEAR, EDM, LINE], ids=["vp", "edm", "line"])
@pytest.mark.parametrize("steps", [1, 2, 18, 50])
def test_grids_fall_from_the_end_to_the_image(path, steps):
    for spacing in path.spacings:
        if spacing == "quadratic" and steps == 50:
            continue
        grid = path.grid(steps, spacing)
        assert len(grid) == steps + 1
        assert grid[0] == path.end
        assert grid[-1] == 0.0
        assert all(a > b for a, b in itertools.pairwise(grid))


@pytest.mark.parametrize(("steps", "spacing"), [(1001, "uniform"), (500, "quadratic")])
def test_more_steps_than_noise_levels_are_refused(steps, spacing):
    with pytest.raises(ValueError, match=f"^steps={steps}"):
        LINEAR.grid(steps, spacing)


@pytest.mark.parametrize("path", [LINEAR, EDM, LINE], ids=["vp", "edm", "line"])
def test_states_are_straight_lines_in_the_path_s_coordinates(path):
    image, noise = torch.randn(2, 5, dtype=torch.float64)
    for a, b in ((1.0, 0.0), (path.end * 0.9 // 1 if path.end > 1 else 0.9, 0.0)):
        first, second = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        states = [(path.scale(t) * image + path.sigma(t) * noise) / path.stretch(t) for t in (first, second)]
        if not torch.isfinite(states[0]).all():
            continue
        slope = (states[0] - states[1]) / (path.coordinate(first) - path.coordinate(second))
        torch.testing.assert_close(slope, path.slope(image, noise), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "name"), [
    (lambda: VariancePreserving(num_times=9, schedule="cosine", beta_min=None, beta_max=None), "num_times"),
    (lambda: VariancePreserving(num_times=10, schedule="linear", beta_min=0.1, beta_max=0.01), "beta_min"),
    (lambda: VariancePreserving(num_times=10, schedule="cosine", beta_min=0.1, beta_max=None), "beta_min"),
    (lambda: VariancePreserving(num_times=10, schedule="other", beta_min=None, beta_max=None), "schedule"),
    (lambda: VarianceExploding(sigma_min=1.0, sigma_max=0.5, rho=7.0), "sigma_min"),
    (lambda: VarianceExploding(sigma_min=0.1, sigma_max=0.5, rho=0.0), "rho"),
    (lambda: StraightLine(shift=0.0), "shift"),
], ids=["num_times", "betas", "cosine", "schedule", "sigma_min", "rho", "shift"])  # fmt: skip
def test_settings_out_of_range_are_named(make, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        make()
