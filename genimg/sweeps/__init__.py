"""Sweeps: run jobs as separate processes, a few at a time, for Hydra's sweepers and for Optuna studies."""
