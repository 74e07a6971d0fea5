"""``python -m genimg.train`` is genimg-train: what torchrun starts, ``torchrun --nproc-per-node=8 -m genimg.train ...``."""

from genimg.cli import train

if __name__ == "__main__":
    train()
