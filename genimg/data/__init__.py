"""Datasets, their sampling order and their storage."""
