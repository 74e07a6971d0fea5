"""Check that an exported file makes the same images as its checkpoint."""

from __future__ import annotations

from genimg.errors import CheckpointError, UserError
from genimg.exporting.formats import Run
from genimg.exporting.parts import ExportedNetwork
from genimg.utils.exact import double

TOLERANCE = 1e-4
"""Largest allowed absolute difference of images in [-1, 1]: 1/78 of an 8-bit level."""

_BATCHES = (1, 3, 8)
_SEED = 20_000  # differs from the seeds of the first samples, which users look at


def trials(part: ExportedNetwork) -> list[tuple[int, int, int]]:
    """Return the batch sizes, heights and widths to try; the sizes are 0 if the network has no input images."""
    if part.sides is None:
        return [(count, 0, 0) for count in _BATCHES]
    multiple, least, usual = part.sides.multiple, part.sides.least, part.sides.usual
    sizes = [(least, least + multiple), usual, (least + 2 * multiple, least)]
    return [(count, *(usual if part.sides.fixed else size)) for count, size in zip(_BATCHES, sizes, strict=True)]


def largest_difference(part: ExportedNetwork, run: Run) -> float:
    """Return the largest difference between the images of an exported file and of its checkpoint for random inputs.

    Raises:
        UserError: If it is more than ``TOLERANCE``; another format may help.
        CheckpointError: If the checkpoint's images are not finite.
        AssertionError: If the images have different shapes.
    """
    largest = 0.0
    for number, (count, height, width) in enumerate(trials(part)):
        inputs = part.draw(count, _SEED + number, height, width)
        expected, found = part.reference(*inputs), run(*inputs)
        if not expected.isfinite().all():
            raise CheckpointError(
                "the checkpoint returns NaN for random inputs: its training has diverged; use another checkpoint"
            )
        assert found.shape == expected.shape, f"{part.name}: {list(found.shape)}, but the checkpoint {list(expected.shape)}"
        difference = (double(found) - double(expected)).abs().max().item()
        if not difference <= TOLERANCE:  # also true for NaN
            raise UserError(
                f"the exported {part.name} differs from the checkpoint by {difference:.2g} for a batch of {count}, more than "
                f"{TOLERANCE:g}: no file was written; try another format"
            )
        largest = max(largest, difference)
    return largest
