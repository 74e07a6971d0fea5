"""``python -m genimg.eval`` is genimg-eval: what torchrun starts, ``torchrun --nproc-per-node=8 -m genimg.eval ...``."""

from genimg.cli import evaluate

if __name__ == "__main__":
    evaluate()
