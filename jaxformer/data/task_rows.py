"""Rows of a synthetic task, made when they are asked for."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxformer.batch import Batch
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.tasks import TaskConfig
from jaxformer.tasks.base import Sampler

Split = Literal["train", "validation"]

TRAINING_ROWS = 1 << 40  # more than a run ever takes
VALIDATION_ROWS = 1024


@dataclass(frozen=True)
class TaskRows:
    """Row r of a split is a function of the task, the split, the length and r alone."""

    task: TaskConfig
    sample: Sampler
    split: Split
    length: int

    @property
    def tokens(self) -> int:
        return len(self) * self.length

    def manifest(self) -> dict[str, Any]:
        """What identifies the rows, besides their split and length."""
        text = json.dumps(self.task.model_dump(mode="json"), sort_keys=True)
        return {
            "source": f"task:{self.task.kind}",
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }

    def text_bytes(self, tokenizer: Tokenizer) -> int:
        """An answer counts as one byte: bits per byte are bits per answer."""
        return self.loss_tokens()

    def __len__(self) -> int:
        return TRAINING_ROWS if self.split == "train" else VALIDATION_ROWS

    def pack(self, rows: np.ndarray, keys: np.ndarray | None = None) -> Batch:
        """The rows with these numbers, [rows, length]: one document each. They are the same in
        every epoch, whatever the `keys`."""
        stream = ("train", "validation").index(self.split)
        examples = [
            self.sample(np.random.default_rng([stream, int(row)]), self.length) for row in rows
        ]
        shape = (len(examples), self.length)
        inputs, targets, mask = (np.stack(arrays) for arrays in zip(*examples, strict=True))
        positions = np.broadcast_to(np.arange(self.length, dtype=np.int32), shape)
        return Batch(inputs, targets, positions.copy(), np.ones(shape, np.int32), mask)

    def loss_tokens(self) -> int:
        """Answers in all rows of the validation split; every row has as many."""
        return len(self) * int(self.pack(np.zeros(1, np.int64)).loss_mask.sum())
