"""Multiply-adds of any module, counted as PyTorch runs its operators, on tensors without data.

Two conventions: "products" counts convolutions and matrix products alone, as papers on classifiers
do; "all" is that of ``divdr.routing``'s costs, where a normalisation also counts 2 per number, ReLU
1 and pooling 1 per number read. Sums and resizing count nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ConfigError

_aten = torch.ops.aten


def part_macs(
    module: nn.Module, shape: Sequence[int], convention: str = "products"
) -> tuple[float, tuple[int, ...]]:
    """Multiply-adds of a module in evaluation for one input, and the shape of its output.

    Args:
        module: of one tensor; it is not changed.
        shape: of the input, without the batch.
        convention: "products" or "all".

    Returns:
        Multiply-adds, and the output's shape without the batch; of a tuple of outputs that of the
        last, of other outputs that are no tensor ().

    Raises:
        ConfigError: there is no such convention.
    """
    return count_macs(without_data(module), (1, *shape), convention)


def each_macs(
    modules: Iterable[nn.Module], shape: Sequence[int], convention: str = "products"
) -> tuple[float, ...]:
    """Multiply-adds of several modules for one input; those of equal build are counted once.

    Args:
        modules: experts or branches.
        shape: of the input, without the batch.
        convention: "products" or "all".
    """
    found: dict[Any, float] = {}
    numbers = []
    for module in modules:
        build = _build(module)
        if build not in found:
            found[build] = part_macs(module, shape, convention)[0]
        numbers.append(found[build])
    return tuple(numbers)


def without_data(module: nn.Module, instead: dict[int, Any] | None = None) -> nn.Module:
    """A copy in evaluation that holds no numbers.

    Args:
        module: of any kind; it is not changed.
        instead: what stands in the copy for a part, by the part's ``id``.
    """
    return copy.deepcopy(module, instead).to("meta").eval()


def count_macs(
    module: nn.Module, shape: Sequence[int], convention: str
) -> tuple[float, tuple[int, ...]]:
    """What :func:`part_macs` gives, of a module without data and a whole batch's shape."""
    macs, output = call_macs(module, torch.empty(tuple(shape), device="meta"), convention)
    if isinstance(output, tuple):
        output = output[-1]
    return macs, tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else ()


def call_macs(module: nn.Module, argument: Any, convention: str) -> tuple[float, Any]:
    """Multiply-adds of one call, and what it returns.

    Args:
        module: without data, see :func:`without_data`.
        argument: tensors on "meta", in whatever structure the module takes.
        convention: "products" or "all".

    Raises:
        ConfigError: there is no such convention.
    """
    if convention not in _CONVENTIONS:
        raise ConfigError(f'multiply-adds are counted as "products" or "all", not {convention!r}')
    counter = FlopCounterMode(display=False, custom_mapping=_CONVENTIONS[convention])
    with torch.no_grad(), counter:
        output = module(argument)
    # PyTorch counts two operations a multiply-add.
    return counter.get_total_flops() / 2, output


def _build(module: nn.Module) -> tuple:
    """Equal for modules that run the same operators on inputs of one shape."""
    plain = (bool, int, float, str, tuple, list, type(None))
    parts = []
    for name, part in module.named_modules():
        values = {k: v for k, v in vars(part).items() if isinstance(v, plain) and k != "training"}
        parts.append((name, type(part), repr(sorted(values.items()))))
    shapes = tuple((name, tuple(value.shape)) for name, value in module.state_dict().items())
    return tuple(parts), shapes


def _per_input(macs: float) -> Callable[..., float]:
    def count(shape: torch.Size, *args: Any, **kwargs: Any) -> float:
        return 2 * macs * math.prod(shape)

    return count


def _pooling(shape: torch.Size, kernel: list[int], *args: Any, out_shape: Any, **kwargs: Any):
    out = out_shape[0] if isinstance(out_shape[0], torch.Size | tuple | list) else out_shape
    return 2 * math.prod(out) * math.prod(kernel if len(kernel) == 2 else [*kernel, *kernel])


# PyTorch's counter knows convolutions and matrix products, and counts two operations a
# multiply-add; so do these.
_CONVENTIONS: dict[str, dict[Any, Callable[..., float]]] = {
    "products": {},
    "all": {
        _aten.native_batch_norm: _per_input(2),
        _aten._native_batch_norm_legit_no_training: _per_input(2),
        _aten.native_group_norm: _per_input(2),
        _aten.native_layer_norm: _per_input(2),
        _aten.relu: _per_input(1),
        _aten.relu_: _per_input(1),
        _aten.mean: _per_input(1),
        _aten._adaptive_avg_pool2d: _per_input(1),
        _aten.max_pool2d_with_indices: _pooling,
        _aten.avg_pool2d: _pooling,
    },
}
