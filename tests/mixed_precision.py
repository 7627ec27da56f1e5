"""Training under autocast, compared with float32, also where weights are kept by the old rule."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DTYPES = [torch.float16, torch.bfloat16]
# What float16 cannot hold of a gradient, the loss's scale saves, as the trainer's does.
SCALE = 1024.0


class OldWeightCache(TorchFunctionMode):
    """Autocast's cache of weights as PyTorch 2.9 and older keep it.

    The first copy in half precision that is made of a trainable weight serves the whole region,
    whether it was made with a graph or under no_grad; now no copy of the latter kind is kept.
    """

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.copies = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("linear", "conv2d"):
            args = [self._copy(value) for value in args]
        return func(*args, **(kwargs or {}))

    def _copy(self, value):
        if not (isinstance(value, nn.Parameter) and value.requires_grad and value.is_leaf):
            return value
        if id(value) not in self.copies:
            self.copies[id(value)] = value.to(self.dtype)
        return self.copies[id(value)]


@contextmanager
def half(dtype):
    """A training step in mixed precision."""
    with torch.autocast("cpu", dtype), OldWeightCache(dtype):
        yield


def gradients(module, losses):
    """By name, of the sum of the losses; those that are zero are left out."""
    assert all(value.isfinite() for value in losses.values())
    module.zero_grad()
    (SCALE * sum(losses.values())).backward()
    return {
        name: p.grad / SCALE
        for name, p in module.named_parameters()
        if p.grad is not None and p.grad.any()
    }


def assert_close_gradients(found, exact, dtype):
    """In direction and length the same, as far as half precision tells.

    Rounding flips the sign before a ReLU for about such a share of the pixels as it has itself, and
    the norm of what they carry is that share's root.
    """
    flips = torch.finfo(dtype).eps ** 0.5
    largest = max(value.norm() for value in exact.values())
    for name, value in exact.items():
        error = (found.get(name, torch.zeros_like(value)) - value).norm()
        assert error <= 4 * flips * (value.norm() + 0.02 * largest), name


def parts(names, depth):
    """First words of parameters' names."""
    return {".".join(name.split(".")[:depth]) for name in names}
