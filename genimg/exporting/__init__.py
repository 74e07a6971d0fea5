"""Export a trained network to a file that other programs can run."""

from genimg.exporting import samplers, translators  # registers their methods with `exportable`

__all__ = ["samplers", "translators"]
