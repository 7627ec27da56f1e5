"""What routing did in a forward pass: the contract between the backbone and its users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .transfer import to_host


@dataclass
class Routing:
    """Decisions and cost of N images in one forward pass.

    D = T × cells is the length of the gate activation A(x); cells are ordered layer by layer,
    stride 4 first, and each has three entries [up, keep, down].

    Attributes:
        activations: (N, D) gate activations A(x) in [0, 1]; 0 where a transform does not exist or
            the image does not reach the cell. Carries gradients in training.
        logits: (N, D) the same before ReLU(tanh(·)); 0 where ``activations`` is 0 by definition.
        initial: (N, T) gates of the initial cell, which belong neither to A(x) nor to the cells.
        reached: (N, cells) bool, whether an open path leads into the cell.
        expected_cost: (N,) differentiable cost, multiply-adds (gates × MACs).
        real_cost: (N,) multiply-adds that run in evaluation for these images.
        full_cost: expected cost of this input size with every gate at 1, multiply-adds.
        fixed_cost: real cost that no gate can save, the stem's, multiply-adds.
        full_real_cost: real cost of this input size with every gate open, multiply-adds.
        size: (height, width) of the network's input in pixels.
        op_weights: (N, cells, O) weights G(x) of each cell's operations, where they are chosen by
            image: 0 for those that do not run, and for cells that compute nothing. With a graph in
            training. None where all are summed.
        op_loads: (N, cells, O) likewise, their loads (``divdr.routing.chosen_ops``).
    """

    activations: Tensor
    logits: Tensor
    initial: Tensor
    reached: Tensor
    expected_cost: Tensor
    real_cost: Tensor
    full_cost: float
    fixed_cost: float
    full_real_cost: float
    size: tuple[int, int]
    op_weights: Tensor | None = None
    op_loads: Tensor | None = None

    def __len__(self) -> int:
        return self.activations.shape[0]

    @property
    def real_share(self) -> Tensor:
        """(N,) what runs of what gates decide upon: 1 where all are open; the stem is left out."""
        return (self.real_cost - self.fixed_cost) / (self.full_real_cost - self.fixed_cost)

    def __getitem__(self, index: int) -> Routing:
        """The record of one image, with N = 1."""
        return self._map(lambda t: t[index : index + 1] if index != -1 else t[index:])

    def detach(self) -> Routing:
        """The same numbers without their graph."""
        return self._map(Tensor.detach)

    def to(self, device: torch.device | str) -> Routing:
        """The record on another device; on its way to the host in one copy."""
        if torch.device(device).type == "cpu":
            return self.with_tensors(to_host(self.tensors()))
        return self._map(lambda t: t.to(device))

    def tensors(self) -> list[Tensor]:
        """All that are there, in the order of the fields."""
        values = [getattr(self, f.name) for f in fields(self)]
        return [value for value in values if isinstance(value, Tensor)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Routing:
        """The record with others in place of its :meth:`tensors`."""
        given = iter(tensors)
        return self._map(lambda _: next(given))

    def with_logits(self, logits: Tensor) -> Routing:
        """The record with logits that were decided for all cells at once, reached or not.

        Args:
            logits: (N, D).
        """
        each = logits.unflatten(1, (self.reached.shape[1], -1))  # (N, cells, T)
        return replace(self, logits=torch.where(self.reached[..., None], each, 0.0).flatten(1))

    def _map(self, function) -> Routing:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Routing(
            **{k: function(v) if isinstance(v, Tensor) else v for k, v in values.items()}
        )
