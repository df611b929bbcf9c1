"""`python eval.py RUN_OR_CHECKPOINT [--json] [key.path=value ...]`: evaluate a trained model."""

import sys

from jaxformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
