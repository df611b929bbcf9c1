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

# Tests compile far more than they run: half of it is LLVM's optimisations, after all of XLA's own.
# Processes that stand for a user's (`tests.runs`) go without these flags.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_COMPILATION}"
