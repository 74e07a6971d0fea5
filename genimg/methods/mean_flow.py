"""MeanFlow: a network that predicts the average velocity between two times, so one step can generate an image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from genimg.diffusion.noise import KEPT, NOISE, TIME, normal
from genimg.diffusion.time_pairs import LogitNormalPairs, TimePair
from genimg.errors import ConfigError
from genimg.losses.few_steps import AdaptiveLoss
from genimg.methods.base import Update, require_shape
from genimg.methods.conditional import ConditionalMethod, shared_encoder
from genimg.methods.diffusion_training import require_network_settings
from genimg.methods.modes import eval_mode
from genimg.methods.options import SamplingOptions, setting
from genimg.networks.directional_derivative import directional_derivative
from genimg.types import Batch, Metrics, Microbatches, Progress, height_width
from genimg.utils.mounting import mounting
from genimg.utils.rng import mixed_keys, normal_latents, uniform_numbers


@dataclass(frozen=True)
class MeanFlowOptions(SamplingOptions):
    """Options of sampling from a MeanFlow model.

    Raises:
        ValueError: If an option is out of range.
    """

    steps: int = setting("Number of steps, 1 or more", 1, usual=(1, 8))
    guidance: int | float = setting(
        "Classifier-free guidance scale; 1: none, above 1: images closer to the condition", 1.0, usual=(0, 8)
    )

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be 1 or more")
        if not (self.guidance >= 0 and math.isfinite(self.guidance)):
            raise ValueError(f"guidance={self.guidance:g} must be 0 or more; 1 for none")

    @property
    def num_evaluations(self) -> int:
        """Number of times that the network is evaluated for one image; guidance doubles it."""
        return self.steps * (1 if self.guidance == 1 else 2)


class MeanFlow(ConditionalMethod):
    """Geng et al., "Mean flows for one-step generative modeling", NeurIPS 2025.

    On the straight line z_t = (1 - t) x + t e from an image x to noise e, the network u(z_t, t, r) predicts the average
    velocity from time t back to r, so z_r = z_t - (t - r) u. The definition of u, (t - r) u = integral of the velocity from r
    to t, gives an identity without the integral: u = v - (t - r) du/dt, where du/dt is the derivative along the line
    (equation 6). The network is trained to satisfy this identity, with v = e - x and no gradient through the right-hand side.

    The noise and times of a training sample, and whether its condition is dropped, depend only on the seed and its position in
    training.

    Args:
        network: Network, (z [N, C, H, W], times t and t - r [N, 2], condition, keep [N] or None) -> u [N, C, H, W], with an
            encoder ``condition``. Where ``keep`` is 0, it must ignore the condition.
        times: Distribution of the times t and r.
        loss: Loss of the predicted velocity.
        sampling: Default options of sampling.
        condition_dropout: Probability of training without the condition, from 0 to below 1. Guidance needs a value above 0.
        image_size: Size of the images in pixels, one number or [height, width].
        channels: Number of channels of the images.

    Raises:
        ValueError: If a number is out of range.
        ConfigError: If the network does not take two times.
    """

    loss_type = AdaptiveLoss
    inference_networks = ("network",)

    def __init__(
        self,
        *,
        network: nn.Module,
        times: LogitNormalPairs,
        loss: AdaptiveLoss,
        sampling: MeanFlowOptions,
        condition_dropout: float,
        image_size: int | Sequence[int],
        channels: int,
    ) -> None:
        super().__init__()
        require_network_settings(network, {"num_times": 2, "augment_dim": 0})
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"condition_dropout={condition_dropout} must be from 0 to below 1")
        self.network = network
        self.times = times
        self.loss = loss
        self.shape = (channels, *height_width(image_size))
        self._read_conditions(shared_encoder(network=network))
        self.condition_dropout = condition_dropout if self.condition_key is not None else 0.0
        self.batch_keys = (*self.batch_keys, "noise_key")
        self._sampling = sampling
        with mounting("sampling", vars(sampling)):
            self.check_options(sampling)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"network": list(self.network.parameters())}

    # Training

    def step(self, batch: Microbatches, progress: Progress, update: Update) -> Metrics:
        return update("network", self._loss, batch)

    def _loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        image, key, keep = batch["image"].float(), batch["noise_key"], None
        if self.condition_dropout:
            keep = uniform_numbers(mixed_keys(key, KEPT), ()) >= self.condition_dropout
        noise, pair = normal(mixed_keys(key, NOISE), image.shape[1:]), self.times.at(mixed_keys(key, TIME))
        time, condition = pair.later[:, None, None, None], self._condition(batch)
        state, velocity = (1.0 - time) * image + time * noise, noise - image
        target = self._target(state, velocity, pair, condition, keep)
        losses, errors = self.loss.of_images(self._average(self.network, state, *pair, condition, keep), target)
        loss = losses.mean()
        return loss, {"loss/mean_flow": loss.detach(), "loss/squared_error": errors.mean()}

    def _target(self, state: Tensor, velocity: Tensor, pair: TimePair, condition: Tensor, keep: Tensor | None) -> Tensor:
        """Return v - (t - r) du/dt (equation 6) for states z and their velocities v, both [N, C, H, W].

        On a CPU, the derivative is computed only for samples with r < t. On other devices, the host would have to wait until
        their number is known. The derivative is computed without dropout, which would add noise to it.
        """
        rows = torch.arange(len(state), device=state.device)
        if state.device.type == "cpu":
            rows = rows[pair.later > pair.earlier]
            if not len(rows):
                return velocity
        later, earlier = pair.later[rows], pair.earlier[rows]
        average = partial(
            self._average,
            self.network.forward,  # not ``self.network``, because compiled networks have no forward-mode derivative
            earlier=earlier,
            condition=condition[rows],
            keep=None if keep is None else keep[rows],
        )
        with eval_mode(self.network):
            _, change = directional_derivative(average, (state[rows], later), (velocity[rows], torch.ones_like(later)))
        distance = (later - earlier)[:, None, None, None]
        return velocity.index_add(0, rows, -distance * change)

    @staticmethod
    def _average(
        network: Callable[..., Tensor],
        state: Tensor,
        later: Tensor,
        earlier: Tensor,
        condition: Tensor,
        keep: Tensor | None,
    ) -> Tensor:
        """Return the average velocities u(z, t, r) [N, C, H, W] of states z at the later times t.

        Unlike in flow matching, times are not multiplied by 1,000, which would make the derivative with respect to time 1,000
        times as large.
        """
        return network(state, torch.stack([later, later - earlier], dim=1), condition, keep)

    def check(self, batch: Batch) -> None:
        with torch.no_grad(), eval_mode(self.network):
            image = batch["image"]
            batch = self._with_conditions(image) | {"noise_key": torch.arange(len(image), device=image.device)}
            ones = torch.ones(len(image), device=image.device)
            output = self._average(self.network, image.float(), ones, 0.0 * ones, self._condition(batch), None)
            require_shape("network", output, image, "the data's images")
            self._loss(batch)

    # Sampling

    @property
    def sampling_options(self) -> MeanFlowOptions:
        return self._sampling

    def draw(self, indices: Sequence[int], seed: int) -> Batch:
        return {"latent": normal_latents(seed, indices, math.prod(self.shape))} | self._draw_conditions(indices, seed)

    def check_options(self, options: MeanFlowOptions) -> None:
        if options.guidance != 1 and not self.condition_dropout:
            unguided = "reads no condition" if self.condition_key is None else "was trained without condition_dropout"
            raise ConfigError(
                f"guidance={options.guidance:g} has no effect on a model that {unguided}: choose 1", key="guidance"
            )

    @torch.no_grad()
    def sample(self, batch: Batch, options: MeanFlowOptions | None = None) -> Tensor:
        options, condition = options or self.sampling_options, self._condition(batch)
        state = batch["latent"].view(-1, *self.shape)
        times = [1.0 - step / options.steps for step in range(options.steps + 1)]
        with eval_mode(self.network):
            for later, earlier in itertools.pairwise(times):
                state = state - (later - earlier) * self._guided(state, later, earlier, condition, options.guidance)
        return state.clamp(-1.0, 1.0)

    def _guided(self, state: Tensor, later: float, earlier: float, condition: Tensor, guidance: float) -> Tensor:
        """Return the average velocity with classifier-free guidance (Ho & Salimans 2022); a scale of 1 means none."""
        ones, keep = torch.ones_like(state[:, 0, 0, 0]), None  # the batch size may vary in an exported program
        if guidance != 1:
            keep = torch.cat([0.0 * ones, ones])
            state, condition, ones = (torch.cat([each, each]) for each in (state, condition, ones))
        average = self._average(self.network, state, later * ones, earlier * ones, condition, keep)
        if keep is None:
            return average
        without, given = average.chunk(2)
        return without + guidance * (given - without)

    # Previews

    def preview(self, batch: Batch, drawn: Batch) -> dict[str, Tensor]:
        """Return samples with the default options."""
        return {"samples": self._sample_by_class(drawn)}
