"""These tests need the extra `parity`: make parity."""

from importlib.util import find_spec

NEEDED = ("accelerate", "librosa", "lm_eval", "torch", "transformers")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]
