"""These tests need the extra `parity`: make parity."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("transformers") and find_spec("torch") else ["test_*.py"]
