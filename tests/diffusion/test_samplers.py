"""Samplers against diffusers, step by step, and against solutions of the ODE for Gaussian data."""

import math
from functools import partial

import pytest
import torch

from genimg.diffusion import samplers
from genimg.diffusion.paths import StraightLine, VarianceExploding, VariancePreserving
from genimg.diffusion.samplers import Trajectory

DDPM = partial(VariancePreserving, schedule="linear", beta_min=1e-4, beta_max=0.02)
SHAPE = (3, 2, 4, 4)


def noise_of_step(step):
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + step))


def start():
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def predicted_noise(state, time):
    """Any smooth function serves as a network; ``time`` counts from 0, as networks count."""
    return torch.tanh(state * (0.5 + 0.0007 * time) + 0.1)


def denoiser(path, clip):
    def denoise(state, time, level):
        noise = predicted_noise(state, path.embedded(time))
        image = (state - path.sigma(time) * noise) / path.scale(time)
        return image.clamp(-1, 1) if clip else image

    return denoise


def ours(path, steps, solve, *, spacing="uniform", clip=False):
    run = Trajectory(path, path.grid(steps, spacing), denoiser(path, clip), noise_of_step, start())
    return solve(run, run.sigmas[0] * start())


def theirs(scheduler, steps, monkeypatch, **options):
    """Run a scheduler of diffusers with the same network and the same noise."""
    module = pytest.importorskip(type(scheduler).__module__)
    betas = torch.linspace(1e-4, 0.02, scheduler.config.num_train_timesteps, dtype=torch.float64)  # theirs are float32
    scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = betas, 1 - betas, (1 - betas).cumprod(0)
    count = iter(range(steps))
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise_of_step(next(count)), raising=False)
    scheduler.set_timesteps(steps)
    largest = (1 - scheduler.alphas_cumprod[-1]).sqrt()  # of the noise in x_T
    state = start() * (largest if scheduler.init_noise_sigma == 1 else float(scheduler.init_noise_sigma))
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(state, time)
        state = scheduler.step(predicted_noise(scaled, float(time)), time, state, **options).prev_sample
    return state


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("steps", "variance"), [(40, "small"), (10, "small"), (40, "large")])
def test_ancestral_sampling_is_that_of_ddpm(diffusers, monkeypatch, steps, variance, clip):
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=40, variance_type=f"fixed_{variance}", clip_sample=clip, timestep_spacing="trailing", **LINEAR
    )
    made = ours(DDPM(num_times=40), steps, partial(samplers.ancestral, variance=variance), clip=clip)
    torch.testing.assert_close(made, theirs(scheduler, steps, monkeypatch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim(diffusers, monkeypatch, eta, clip):
    scheduler = diffusers.DDIMScheduler(clip_sample=clip, set_alpha_to_one=True, timestep_spacing="trailing", **LINEAR)
    made = ours(DDPM(num_times=1000), 20, partial(samplers.ddim, eta=eta), clip=clip)
    expected = theirs(scheduler, 20, monkeypatch, eta=eta, use_clipped_model_output=True)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    if not eta:
        torch.testing.assert_close(ours(DDPM(num_times=1000), 20, samplers.euler, clip=clip), made, rtol=0, atol=1e-12)


def test_heun(diffusers, monkeypatch):
    scheduler = diffusers.HeunDiscreteScheduler(timestep_spacing="trailing", **LINEAR)
    made = ours(DDPM(num_times=1000), 20, samplers.heun)
    torch.testing.assert_close(made, theirs(scheduler, 20, monkeypatch), rtol=1e-5, atol=1e-5)


def test_second_order_multistep(diffusers, monkeypatch):
    scheduler = diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing", final_sigmas_type="zero", **LINEAR)
    made = ours(DDPM(num_times=1000), 20, samplers.dpmpp_2m)
    torch.testing.assert_close(made, theirs(scheduler, 20, monkeypatch), rtol=1e-5, atol=1e-5)


def test_a_straight_line_is_followed_as_by_diffusers(diffusers):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    path = StraightLine(shift=3.0)
    times = [float(each) for each in torch.arange(8, 0, -1) / 8]
    scheduler.set_timesteps(sigmas=times)
    state = start()
    for time, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        state = scheduler.step(torch.tanh(state + sigma), time, state).prev_sample
    grid = path.grid(8, "uniform")
    assert grid == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    run = Trajectory(path, grid, lambda x, time, level: x - time * torch.tanh(x + time), noise_of_step, start())
    torch.testing.assert_close(samplers.euler(run, start()).float(), state.float(), rtol=1e-5, atol=1e-5)


def test_edm_grid(diffusers):
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(18)
    grid = VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0).grid(18, "power")
    assert grid == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)


PATHS = {
    "vp": (DDPM(num_times=1000), "uniform"),
    "edm": (VarianceExploding(sigma_min=0.002, sigma_max=80.0, rho=7.0), "power"),
    "line": (StraightLine(shift=1.0), "uniform"),
}
STD = 0.5


def gaussian_denoiser(path):
    """The exact denoiser of data N(0, STD^2), for which the ODE maps noise to STD times the noise of the whole path."""

    def denoise(state, time, level):
        scale, sigma = path.scale(time), path.sigma(time)
        return STD**2 * scale / (STD**2 * scale**2 + sigma**2) * state

    return denoise


def transported(path, steps, spacing, solve):
    """Return by how much the path's start is scaled up to its end, where the exact factor is 1."""
    run = Trajectory(path, path.grid(steps, spacing), gaussian_denoiser(path), noise_of_step, start())
    first = torch.tensor(path.end, dtype=torch.float64)
    std = (STD**2 * path.scale(first) ** 2 + path.sigma(first) ** 2).sqrt()
    made = solve(run, std * start())
    return (made / (STD * start())).mean().item()


@pytest.mark.parametrize("name", PATHS)
def test_solvers_reach_the_solution_of_the_ode_at_their_order(name):
    path, spacing = PATHS[name]
    for solve, order in ((samplers.euler, 1), (samplers.heun, 2), (samplers.dpmpp_2m, 2)):
        errors = [abs(transported(path, steps, spacing, solve) - 1.0) for steps in (25, 50, 100)]
        assert errors[2] < {1: 0.05, 2: 0.005}[order], (solve.__name__, errors)
        if name != "vp":  # whose noise levels are too few for the limit of many steps
            assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.45), (solve.__name__, errors)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("variance", [None, "small", "large"])
def test_stochastic_samplers_keep_the_variance_of_the_data(name, variance):
    solve = partial(samplers.ancestral, variance=variance) if variance else partial(samplers.ddim, eta=1.0)
    path, spacing = PATHS[name]
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(20_000, dtype=torch.float64, generator=generator)
    run = Trajectory(
        path, path.grid(1000, spacing), gaussian_denoiser(path),
        lambda step: torch.randn(20_000, dtype=torch.float64, generator=generator), state,
    )  # fmt: skip
    first = torch.tensor(path.end, dtype=torch.float64)
    made = solve(run, (STD**2 * path.scale(first) ** 2 + path.sigma(first) ** 2).sqrt() * state)
    assert made.std().item() == pytest.approx(STD, rel=0.15 if variance == "large" else 0.03)


def test_churn_adds_noise_and_keeps_the_variance():
    path, spacing = PATHS["edm"]
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(20_000, dtype=torch.float64, generator=generator)
    run = Trajectory(
        path, path.grid(100, spacing), gaussian_denoiser(path),
        lambda step: torch.randn(20_000, dtype=torch.float64, generator=generator), state,
    )  # fmt: skip
    made = samplers.heun(run, 80.0 * state, churn=40.0)
    assert made.std().item() == pytest.approx(STD, rel=0.03)
    assert torch.corrcoef(torch.stack([made, state]))[0, 1] < 0.9  # while the ODE alone keeps the order of the noise
