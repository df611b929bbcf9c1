"""Every test runs on the CPU, without network, with compiled programs kept between runs.

The settings are environment variables, so that processes started by a test have them too.
"""

import gc
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Tests compile far more than they run, and most of that is fusions' emitters and optimisations of
# LLVM, after all of XLA's own. `test_end_to_end.py` trains as a user does.
quick_compilation = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if version("jaxlib").startswith("0.10."):  # others may not have the former emitters any more
    quick_compilation.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quick_compilation])


@pytest.fixture(scope="module", autouse=True)
def _programs_are_freed() -> Iterator[None]:
    """A process may map only so much memory in pieces (vm.max_map_count), of which every compiled
    program takes some."""
    gc.freeze()  # what is imported stays; looking for garbage in it took a tenth of the time
    gc.set_threshold(100_000, 20, 100)
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def bucket() -> Iterator[None]:
    """`gs://runs` leads to a bucket on this machine."""
    from tests.buckets import bucket_server  # for tests only that need it

    with bucket_server():
        yield
