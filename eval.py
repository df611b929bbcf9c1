"""`python eval.py RUN_OR_CHECKPOINT [--suite NAME ...] [key.path=value ...]`: evaluate a model."""

import sys

from jaxformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
