"""Pixel metrics of translations against their targets."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from genimg.data.tasks.base import Task
from genimg.evaluation.image_metrics import l1, ms_ssim, ms_ssim_scales, psnr, psnr_luma, ssim, ssim_luma
from genimg.utils.exact import double

_SCALES = 5  # number of scales of the multi-scale structural similarity


def means_over_images(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the mean of each metric [N]; metrics of holes ignore images without holes, and are absent if there are none."""
    found = {}
    for name, values in rows.items():
        kept = values[~values.isnan()] if name.endswith("_hole") else values
        if len(kept):
            found[name] = double(kept).mean().item()
    return found


def similarities(reference: Tensor, image: Tensor, task: Task, source: Tensor) -> dict[str, Tensor]:
    """Return the metrics of uint8 images [N, C, H, W] that need no weights: name -> [N].

    Besides the metrics of the whole image, they include those that papers on the task report. ``psnr_hole`` and ``l1_hole``
    use only the missing pixels, and are NaN if none is missing. ``psnr_y_borderB`` and ``ssim_y_borderB`` use the luma without
    B pixels along each side, and are absent if nothing would be left.
    """
    found = {"psnr": psnr(reference, image), "ssim": ssim(reference, image), "l1": l1(reference, image)}
    if ms_ssim_scales(*image.shape[2:]) >= _SCALES:
        found["ms_ssim"] = ms_ssim(reference, image)
    if (missing := task.missing(source)) is not None:
        found |= {"psnr_hole": psnr(reference, image, missing), "l1_hole": l1(reference, image, missing)}
    if (border := task.border) and min(image.shape[2:]) > 2 * border:
        found[f"psnr_y_border{border}"] = psnr_luma(reference, image, border)
        found[f"ssim_y_border{border}"] = ssim_luma(reference, image, border)
    return found
