"""Helpers for processes, files, random numbers and text that do not depend on training."""
