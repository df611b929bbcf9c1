"""Comparing architectures fairly: matched sizes, the same batches, sweeps, seeds, intervals."""
