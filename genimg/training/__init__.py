"""The trainer and what it consists of: updates, checkpoints, schedules, logs."""
