"""Datasets, the order in which they are read, and where their samples live."""
