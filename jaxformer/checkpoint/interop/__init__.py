"""Import of pretrained models as runs, and export of runs as folders that transformers loads."""
