"""Every test runs on the CPU, without network, with compiled programs kept between runs.

The settings are environment variables, so that processes started by a test have them too.
"""

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
