"""genimg-verify as a module, for torchrun: ``torchrun --nproc-per-node=8 -m genimg.verify ...``."""

from genimg.cli import verify

if __name__ == "__main__":
    verify()
