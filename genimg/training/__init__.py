"""The trainer and its parts: updates, checkpoints, schedules, logs."""
