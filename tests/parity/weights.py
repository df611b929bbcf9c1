"""Weights of small models of transformers that are no longer as trivial as they start."""

import torch


def move(model: torch.nn.Module) -> None:
    """Move all that a file of the model has away from ones and zeros, even what no gradient
    reaches."""
    generator = torch.Generator().manual_seed(0)
    for tensor in {each.data_ptr(): each for each in model.state_dict().values()}.values():
        tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
