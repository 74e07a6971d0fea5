"""genimg: config-driven training of image generation models."""

__version__ = "0.1.0"
