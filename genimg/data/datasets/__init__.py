"""Datasets: where images, labels, captions and pairs come from."""
