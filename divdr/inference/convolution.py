"""A convolution made ready to run: folded, in one precision, channels last, fused if possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..routing.ops import PointwiseConv2d
from .fused_ops import (
    can_sum_onto,
    fused,
    fused_onto,
    fusing_available,
    packed_weight,
    packing_available,
)

_SIZES_PACKED = 4


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested plain ``nn.Sequential`` containers, in the order they run."""
    # A subclass may run its children in another way, so it counts as one layer.
    if type(module) is not nn.Sequential:
        yield module
        return
    for child in module:
        yield from leaves(child)


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution and no more, zero padded, with numbers for its padding."""
    return (
        type(module) in (nn.Conv2d, PointwiseConv2d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def is_foldable_norm(module: nn.Module) -> bool:
    """Whether a module normalises by running statistics: BN, SyncBN, FrozenBN and their like."""
    return (
        not module.training
        and not list(module.children())
        and isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
        and hasattr(module, "eps")
        and hasattr(module, "weight")
        and hasattr(module, "bias")
    )


def fold(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one convolution that does what ``conv`` and then ``norm`` do.

    Args:
        conv: the convolution, (O, I, kH, kW).
        norm: a normalisation (``is_foldable_norm``) of O channels; None for the bare convolution.

    Returns:
        Weight (O, I, kH, kW) and bias (O,), None for none, in float64: the caller rounds once.
    """
    weight = conv.weight.detach().double()
    bias = None if conv.bias is None else conv.bias.detach().double()
    if norm is None:
        return weight, bias
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale if bias is None else (bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return weight * scale[:, None, None, None], shift


class Convolution:
    """A folded convolution, with ReLU after it if asked.

    Args:
        conv: the convolution of the network.
        norm: the normalisation after it, or None.
        relu: apply ReLU to the result.
        dtype: precision of weights and maps.
        packs: keep the weight as oneDNN reads it for each of the first few sizes of maps, where it
            is fused; else every call brings it into that order.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.Module | None,
        relu: bool,
        dtype: torch.dtype,
        *,
        packs: bool = False,
    ) -> None:
        weight, bias = fold(conv, norm)
        self.relu = relu
        self._weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self._bias = None if bias is None else bias.to(dtype)
        assert not isinstance(conv.padding, str)
        self._stride, self._padding = list(conv.stride), list(conv.padding)
        self._dilation, self._groups = list(conv.dilation), conv.groups
        self._fused = fusing_available(self._weight)
        pointwise = conv.kernel_size == (1, 1) and self._stride == [1, 1] and self._groups == 1
        # In fp32 the fused sum gains nothing over a sum of its own, in bf16 it does.
        self._sums = (
            self._fused and pointwise and self._padding == [0, 0] and dtype == torch.bfloat16
        )

        self._packs = packs and self._fused and packing_available(self._weight)
        self._packed: dict[torch.Size, Tensor] = {}

    def _weight_for(self, x: Tensor) -> Tensor:
        """The weight, packed for maps of this size if that is done.

        For another size than its own a packed weight is right, and may be twenty times slower.
        """
        if not self._packs or not x.is_contiguous(memory_format=torch.channels_last):
            return self._weight
        packed = self._packed.get(x.shape)
        if packed is None:
            if len(self._packed) >= _SIZES_PACKED or not x.numel():
                return self._weight
            options = (self._padding, self._stride, self._dilation, self._groups)
            packed = self._packed[x.shape] = packed_weight(self._weight, *options, list(x.shape))
        return packed

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W'), memory of its own."""
        options = (self._stride, self._padding, self._dilation, self._groups)
        if self._fused:
            return fused(x, self._weight_for(x), self._bias, *options, self.relu)
        y = F.conv2d(x, self._weight, self._bias, *options)
        return y.relu_() if self.relu else y

    def onto(self, total: Tensor, x: Tensor) -> Tensor:
        """ReLU(``total`` + convolution of ``x``), in the memory of ``total``."""
        if self._sums and can_sum_onto(total, x):
            return fused_onto(total, x, self._weight_for(x), self._bias)
        return total.add_(self(x)).relu_()


Step = Callable[[Tensor], Tensor]


class AsItIs:
    """A layer of the network that the plan does not know: it runs itself, in its own precision."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._dtype = next((p.dtype for p in layer.parameters() if p.is_floating_point()), None)

    def __call__(self, x: Tensor) -> Tensor:
        """What the layer makes of a map, in the map's own precision."""
        if self._dtype is None or self._dtype == x.dtype:
            return self._layer(x)
        return self._layer(x.to(self._dtype)).to(x.dtype)


class Chain:
    """A module made of layers in a row.

    Attributes:
        steps: what runs.

    Args:
        module: the module of the network, in evaluation.
        dtype: precision of the maps.
        packs: see ``Convolution``.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, *, packs: bool = False) -> None:
        self.steps: list[Step] = []
        layers = [m for m in leaves(module) if type(m) is not nn.Identity]
        while layers:
            layer = layers.pop(0)
            if not is_plain_convolution(layer):
                self.steps.append(AsItIs(layer))
                continue
            assert isinstance(layer, nn.Conv2d)
            norm = layers.pop(0) if layers and is_foldable_norm(layers[0]) else None
            relu = bool(layers) and type(layers[0]) is nn.ReLU
            if relu:
                layers.pop(0)
            self.steps.append(Convolution(layer, norm, relu, dtype, packs=packs))

    @property
    def is_identity(self) -> bool:
        """Whether it returns its input."""
        return not self.steps

    @property
    def owns_result(self) -> bool:
        """Whether its result is memory of its own, that nothing else looks at."""
        return bool(self.steps) and isinstance(self.steps[-1], Convolution)

    @property
    def tail(self) -> Convolution | None:
        """The last step if that is a convolution without ReLU."""
        last = self.steps[-1] if self.steps else None
        return last if isinstance(last, Convolution) and not last.relu else None

    def __call__(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        for step in self.steps:
            x = step(x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """All steps but the last."""
        for step in self.steps[:-1]:
            x = step(x)
        return x
