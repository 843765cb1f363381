"""Networks whose tensors tell them apart from freshly made ones."""

from __future__ import annotations

import torch
from torch import nn


def with_lived_in_statistics(network: nn.Module) -> nn.Module:
    """Batch-norm statistics and affine parameters that differ from their initial 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                module.num_batches_tracked.fill_(7)
    return network
