"""A trained network alone, in a file that other programs can run."""

from genimg.exporting import samplers, translators  # so that `exportable` knows their methods

__all__ = ["samplers", "translators"]
