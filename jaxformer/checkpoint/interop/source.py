"""A source of pretrained weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    dtype: str  # numpy's or ml_dtypes' name: float32, bfloat16, float16


class Source(Protocol):
    """A model on a disk; no weight is read until it is asked for."""

    name: str  # of the model, for messages and manifests
    config: dict[str, Any]  # as in Hugging Face's config.json
    preprocessor: dict[str, Any]  # as in preprocessor_config.json; empty without one
    tensors: Mapping[str, TensorInfo]  # by Hugging Face's names, in the order they are best read

    def read(self, name: str) -> np.ndarray:
        """One tensor; no other stays in memory."""
        ...

    def write_tokenizer(self, folder: Path) -> bool:
        """tokenizer.json, and tokenizer_config.json with the chat template; False without one."""
        ...

    def write_vocabulary(self, folder: Path) -> bool:
        """tokenizer.json and tokenizer_config.json made of the vocab.json of a model of sound;
        False without one."""
        ...
