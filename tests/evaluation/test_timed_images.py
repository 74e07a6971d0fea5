"""The time per image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import gan

from genimg.evaluation import timed_images
from genimg.evaluation.image_sets import GeneratedImages
from genimg.evaluation.timed_images import TimedImages


def test_images_stay_the_same_and_the_first_batch_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 8.0, 10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(timed_images.time, "perf_counter", lambda: next(clock))
    made = GeneratedImages(gan().eval(), count=12, seed=3, device=torch.device("cpu"))
    timed = TimedImages(made)
    assert len(timed) == 12
    for start, stop, seconds in ((0, 4, 8 / 4), (4, 8, 2 / 4), (8, 12, 3 / 8)):
        indices = np.arange(start, stop)
        assert torch.equal(timed.images(indices)[0], made.images(indices)[0])
        assert timed.seconds_per_image == seconds
    assert timed.describe() == made.describe()
    timed.check()
