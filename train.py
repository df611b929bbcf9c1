"""`python train.py CONFIG [key.path=value ...]`: train a model, or resume a run."""

import sys

from jaxformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
