"""Batches as loaders give them: in parts, and on their way to a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from ..errors import ConfigError
from ..routing import to_device


def split_batch(batch: Any, parts: int) -> list[Any]:
    """A batch in so many parts of equal size, in its order.

    Args:
        batch: what a loader gives, a list where there are several parts.
        parts: 1 leaves the batch as it is, whatever it is.

    Raises:
        ConfigError: it is no list, or does not divide.
    """
    if parts == 1:
        return [batch]
    if not isinstance(batch, list) or not batch or len(batch) % parts:
        what = f"{len(batch)} images" if isinstance(batch, list) else type(batch).__name__
        raise ConfigError(f"SOLVER.ACCUMULATE {parts} does not divide a batch of {what}")
    size = len(batch) // parts
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def batch_on_device(batch: Any, device: torch.device | str) -> Any:
    """A list of dicts whose images, labels and objects are on a device; the host does not wait.

    Detectron2's models bring each of them there by a copy that waits until the device has done all
    that came before; what is there already they leave. Anything else is returned as it is, and so
    are fields of other kinds.

    Args:
        batch: what a loader gives.
        device: of the model.
    """
    if not isinstance(batch, list) or not all(isinstance(item, Mapping) for item in batch):
        return batch
    return [{name: _moved(value, device) for name, value in item.items()} for item in batch]


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return to_device(value, device)
    if type(value) in (Boxes, BitMasks):
        return type(value)(to_device(value.tensor, device))
    if isinstance(value, Instances):
        moved = Instances(value.image_size)
        for name, field in value.get_fields().items():
            moved.set(name, _moved(field, device))
        return moved
    return value
