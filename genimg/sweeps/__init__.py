"""Sweeps: jobs as processes of their own, a few at a time, for Hydra's sweepers and for Optuna's studies."""
