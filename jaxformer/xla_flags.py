"""Flags for XLA's CPU compiler, set before JAX starts it.

XLA hands groups of operations on a CPU to YNNPACK. In jaxlib 0.10 to 0.12 such a group computes a
wrong product if the product's right operand is broadcast within the group, as a matrix of zeros is:
YNNPACK reads beyond the few numbers that were broadcast, and what lies there spoils the sum (even
when multiplied by zero, if it is a NaN). A group that holds more than the product grows from a
reduction. Without reductions, YNNPACK computes only single products, whose operands are whole in
memory.
"""

import os
import sys
import warnings
from importlib.metadata import version

NAME = "xla_cpu_experimental_ynn_fusion_type"
FLAG = f"--{NAME}=-reduce"
# Versions of jaxlib that need the flag and know it; a process with an unknown flag is aborted.
FIRST_AFFECTED, FIRST_UNAFFECTED = (0, 10), (0, 13)


def set_xla_flags() -> None:
    """Add `FLAG` to XLA_FLAGS, unless the option is set there or jaxlib does not need it.

    JAX reads XLA_FLAGS when it starts a backend. If it has already started, a warning says so.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if NAME in flags or not _affected(version("jaxlib")):
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}".strip()
    if _cpu_has_started():
        warnings.warn(
            "JAX started before jaxformer was imported, so its CPU compiler may compute wrong "
            "matrix products (see jaxformer/xla_flags.py); import jaxformer before the first use "
            f"of JAX, or start Python with XLA_FLAGS={FLAG}",
            stacklevel=3,
        )


def _affected(jaxlib: str) -> bool:
    major, minor = jaxlib.split(".")[:2]
    return FIRST_AFFECTED <= (int(major), int(minor)) < FIRST_UNAFFECTED


def _cpu_has_started() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    return (
        bridge is not None
        and bridge.backends_are_initialized()
        and bridge.default_backend() == "cpu"
    )
