"""genimg-eval as a module, for torchrun: ``torchrun --nproc-per-node=8 -m genimg.eval ...``."""

from genimg.cli import evaluate

if __name__ == "__main__":
    evaluate()
