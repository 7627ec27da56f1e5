"""Layers that run one after the other, folded where that is known to be the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .convolution import Convolution
from .folding import is_foldable_norm, is_plain_convolution, leaves

Step = Callable[[Tensor], Tensor]


class AsItIs:
    """A layer of the network that the plan does not know: it runs itself, in its own precision."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._dtype = next((p.dtype for p in layer.parameters() if p.is_floating_point()), None)

    def __call__(self, x: Tensor) -> Tensor:
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
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
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
            self.steps.append(Convolution(layer, norm, relu, dtype))

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
