"""A transformers model's tensors, handed out by name, each exactly once."""

import numpy as np
import torch


class Weights:
    """The model's parameters after they are moved away from their trivial start (ones, zeros)."""

    def __init__(self, model: torch.nn.Module):
        generator = torch.Generator().manual_seed(0)
        self._tensors: dict[str, np.ndarray] = {}
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.data = tensor.data + 0.1 * noise
            self._tensors[name] = tensor.data.numpy()

    def __call__(self, name: str) -> np.ndarray:
        return self._tensors.pop(name)

    def matrix(self, name: str) -> np.ndarray:
        """A linear map's matrix, [inputs, outputs]."""
        return self(f"{name}.weight").T

    def convolution(self, name: str) -> dict[str, np.ndarray]:
        """A depthwise convolution [channels, 1, width], whose last tap is the present."""
        return {"kernel": self(f"{name}.weight")[:, 0, ::-1].T}

    @property
    def left(self) -> set[str]:
        """What nobody asked for."""
        return set(self._tensors)
