"""CondConv: convolutions whose kernel is mixed for every image (Yang et al., 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError


class CondConv2d(nn.Module):
    """Σ r_k W_k, with r = sigmoid(linear(pooled input)) for each image, then one convolution.

    Args:
        like: the convolution whose sizes it takes; it has no bias and pads with zeros.
        kernels: K.
    """

    def __init__(self, like: nn.Conv2d, kernels: int) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = like.stride, like.padding, like.dilation
        self.groups = like.groups
        self.shape = like.weight.shape
        self.weight = nn.Parameter(torch.empty(kernels, *self.shape))
        for kernel in self.weight:
            nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")
        self.route = nn.Linear(like.in_channels, kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        count = len(x)
        mixed = self.route(x.mean(dim=(2, 3))).sigmoid() @ self.weight.flatten(1)
        # All images in one call, each as groups of its own.
        output = F.conv2d(
            x.flatten(0, 1)[None],
            mixed.view(count * self.shape[0], *self.shape[1:]),
            None,
            self.stride,
            self.padding,
            self.dilation,
            count * self.groups,
        )
        return output[0].unflatten(0, (count, self.shape[0]))


def with_condconv(model: nn.Module, kernels: int) -> nn.Module:
    """Replace a network's convolutions by mixtures of K kernels, in place.

    The first, which sees the image, stays, and so do convolutions with a bias: those of squeeze and
    excitation.

    Args:
        model: any network.
        kernels: K; 4 in Collaboration of Experts.

    Raises:
        ConfigError: K is below 1, or the network has no such convolution.
    """
    if kernels < 1:
        raise ConfigError(f"CONDCONV must be at least 1 kernel, not {kernels}")
    found = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)][1:]
    replaced = 0
    for name in found:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        old = getattr(owner, child)
        if old.bias is None and old.padding_mode == "zeros":
            setattr(owner, child, CondConv2d(old, kernels))
            replaced += 1
    if not replaced:
        raise ConfigError(f"{type(model).__name__} has no convolution that CondConv could replace")
    return model
