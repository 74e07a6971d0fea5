"""Checks of numbers, which name the one at fault and take what is just right."""

import pytest

from genimg.errors import ConfigError
from genimg.utils.numbers import require_least


def test_numbers_may_be_the_least_and_no_less() -> None:
    require_least(2, frames=2, num_images=3)
    with pytest.raises(ConfigError) as caught:
        require_least(2, frames=2, num_images=1)
    assert caught.value.key == "num_images"
