"""Datasets of images, labels, captions and pairs."""
