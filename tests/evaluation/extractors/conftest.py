"""Files that are no weights, which every extractor must refuse."""

import pytest
import torch
from torch import nn

NOT_WEIGHTS = {
    "random bytes": lambda path: path.write_bytes(bytes(range(256))),
    "an empty file": lambda path: path.write_bytes(b""),
    "a list": lambda path: torch.save([1, 2], path),
    "other weights": lambda path: torch.save(nn.Linear(2, 2).state_dict(), path),
    "code": lambda path: torch.save(nn.Linear(2, 2), path),
}


@pytest.fixture(params=NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def write_something_else(request):
    """A function that writes a file of another kind to a path."""
    return request.param
