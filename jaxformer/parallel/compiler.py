"""The options of the TPU compiler."""

import os
import re

import jax

Options = dict[str, str | bool]

# Fusions of matrix products are faster with half of a core's vector memory at their disposal.
# Products in pieces, each computed while the next one is sent, take twice as long as whole ones, by
# the compiler's own estimate (fsdp 16 × tensor 4 on a v5p-128).
TPU: Options = {
    "xla_tpu_scoped_vmem_limit_kib": "65536",
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
}

# Collectives by the SparseCores, while the TensorCores compute. Only they can reduce-scatter over
# all sides of a torus; TensorCores all-reduce instead, which sends twice as much. On v7x, libtpu
# uses them by default. The last three are MaxText's for v5p and v6e (xla_flags_library.py).
_OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_"
SPARSE_CORES: Options = {
    _OFFLOAD + "all_gather": True,
    _OFFLOAD + "2d_all_gather": True,
    _OFFLOAD + "3d_all_gather": True,
    _OFFLOAD + "reduce_scatter": True,
    _OFFLOAD + "nd_reduce_scatter": True,
    _OFFLOAD + "all_reduce": True,
    _OFFLOAD + "ragged_all_to_all": True,
    "xla_tpu_use_tc_device_shape_on_sc": True,
    "xla_sc_disable_megacore_partitioning": True,
    "xla_sc_enable_instruction_fusion": False,
}
HAVE_SPARSE_CORES = ("TPU v5", "TPU v5p", "TPU v6 lite")


def compiler_options(device: jax.Device) -> Options:
    """The options of a train or evaluation step, without those that LIBTPU_INIT_ARGS sets."""
    if device.platform != "tpu":
        return {}
    options = TPU | (SPARSE_CORES if device.device_kind in HAVE_SPARSE_CORES else {})
    given = re.findall(r"--(\w+)", os.environ.get("LIBTPU_INIT_ARGS", ""))
    return {name: value for name, value in options.items() if name not in given}


def described(options: Options) -> str:
    """The options in words."""
    offloaded = any(name.startswith(_OFFLOAD) for name in options)
    collectives = ", collectives by the SparseCores" if offloaded else ""
    return f"{len(options)} options{collectives} (LIBTPU_INIT_ARGS takes precedence)"
