"""The estimate of the image while sampling: plain, or with guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg.data.captions import caption_length, encode
from genimg.diffusion import samplers
from genimg.diffusion.denoiser import Denoiser
from genimg.errors import ConfigError
from genimg.methods.diffusion_options import DiffusionOptions


def check_negative(negative: str | int, condition_key: str | None, num_classes: int) -> None:
    """Check a negative condition.

    Args:
        negative: Caption or label.
        condition_key: Key of the conditions that the model reads; None for none.
        num_classes: Number of classes; 0 for a model that does not read labels.

    Raises:
        ConfigError: If the model cannot use it as a condition.
    """
    what = f"negative={negative}"
    if condition_key is None:
        raise ConfigError(f"{what} has no effect on a model that reads no condition: remove it", key="negative")
    if num_classes and not (isinstance(negative, int) and 0 <= negative < num_classes):
        raise ConfigError(f"{what} is not a class of this model: give a number from 0 to {num_classes - 1}", key="negative")
    if not num_classes and not isinstance(negative, str):
        raise ConfigError(f"""{what} is not text: put it in quotes, such as negative="'{negative}'\"""", key="negative")


def negative_condition(negative: str | int, condition: Tensor) -> Tensor:
    """Return raw conditions of the shape of ``condition``, all equal to the negative condition.

    Args:
        negative: Caption or label.
        condition: Labels [N], or encoded captions [N, L].
    """
    if isinstance(negative, int):
        return torch.full_like(condition, negative)
    length = condition.shape[1]
    caption = encode([negative], min(caption_length([negative]), length))
    return torch.nn.functional.pad(caption, (0, length - caption.shape[1])).to(condition.device).expand(len(condition), -1)


def plain_estimate(denoiser: Denoiser, condition: Tensor) -> samplers.ImageEstimate:
    """Return the function that estimates the image of a state, without guidance.

    Args:
        denoiser: The network.
        condition: Raw conditions [N, ...].
    """

    def denoise(state: Tensor, time: Tensor, level: float) -> Tensor:
        return denoiser.estimate(state.float(), time.float().expand(len(state)), condition).to(state.dtype)

    return denoise


def guided_estimate(
    state: Tensor, time: Tensor, level: float, *, denoiser: Denoiser, condition: Tensor, negative: Tensor | None,
    weaker: samplers.ImageEstimate | None, options: DiffusionOptions,
) -> Tensor:  # fmt: skip
    """Estimate the image with guidance, at noise levels within the interval.

    Classifier-free guidance (Ho & Salimans 2022) extrapolates from the estimate without the condition, or with a negative one,
    and autoguidance (Karras et al. 2024) from that of a weaker model. A scale of 1 means no guidance. The interval is that of
    Kynkaanniemi et al. 2024.

    Args:
        state, time, level: See ``samplers.ImageEstimate``.
        denoiser: The network.
        condition: Raw conditions [N, ...].
        negative: Raw conditions of the same shape from which guidance leads away; None for the null condition.
        weaker: Estimate of a weaker model, from which guidance leads away instead; None for none.
        options: Options with the scale and the interval of guidance.
    """
    noisy, times = state.float(), time.float().expand(len(state))
    if options.guidance == 1 or not options.guidance_from <= level <= options.largest_guided:
        image = denoiser.estimate(noisy, times, condition)
    elif weaker is not None:
        without, given = weaker(state, time, level).float(), denoiser.estimate(noisy, times, condition)
        image = without + options.guidance * (given - without)
    else:
        keep = None if negative is not None else torch.arange(2, device=noisy.device).repeat_interleave(len(noisy))
        conditions = torch.cat([condition if negative is None else negative, condition])
        noisy, times = (torch.cat([each, each]) for each in (noisy, times))
        without, given = denoiser.estimate(noisy, times, conditions, keep).chunk(2)
        image = without + options.guidance * (given - without)
    if options.clip:
        image = image.clamp(-1.0, 1.0)
    return image.to(state.dtype)
