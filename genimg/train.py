"""genimg-train as a module, for torchrun: ``torchrun --nproc-per-node=8 -m genimg.train ...``."""

from genimg.cli import train

if __name__ == "__main__":
    train()
