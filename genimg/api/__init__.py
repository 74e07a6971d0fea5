"""The work of the commands, as Python functions."""
