"""Numbers that are none: losses that must not reach the weights, and figures in JSON files."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils.events import EventWriter, get_event_storage
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..errors import NonFiniteLossError

logger = logging.getLogger(__name__)


def finite_losses(model: nn.Module, args: tuple, output: Any) -> Any:
    """A forward hook that stops training at a loss which is not finite, before it is learned from.

    Of a batch in which no pixel has a class, Detectron2's losses of semantic segmentation are the
    mean over no pixel, NaN. They become 0, with gradients of 0, as divdr's decoder has it.

    Returns:
        The losses if some were changed, else None, which leaves them as they are.

    Raises:
        NonFiniteLossError: a loss is not finite; the message names it.
    """
    if not (model.training and isinstance(output, Mapping)):
        return None
    losses = {k: v for k, v in output.items() if isinstance(v, Tensor) and v.numel() == 1}
    if not losses:
        return None
    values = torch.stack([v.detach().float().flatten()[0] for v in losses.values()]).tolist()
    broken = [name for name, value in zip(losses, values, strict=True) if not math.isfinite(value)]
    if not broken:
        return None
    if all("sem_seg" in name for name in broken) and _nothing_labelled(model, args):
        logger.warning("No pixel of this batch has a class: %s counts as 0", ", ".join(broken))
        return {k: torch.nan_to_num(v) if k in broken else v for k, v in output.items()}
    raise NonFiniteLossError(
        f"{', '.join(broken)} is not finite; training stops, the last good checkpoint stays"
    )


def _nothing_labelled(model: nn.Module, args: tuple) -> bool:
    ignored = getattr(getattr(model, "sem_seg_head", None), "ignore_value", None)
    inputs = args[0] if args else None
    if ignored is None or not isinstance(inputs, list):
        return False
    labels = [item.get("sem_seg") for item in inputs if isinstance(item, Mapping)]
    return bool(labels) and all(
        isinstance(label, Tensor) and bool((label == ignored).all()) for label in labels
    )


def plain_numbers(results: Any) -> Any:
    """Nested figures as JSON has them: Python's numbers, and None for those that are not finite."""
    if isinstance(results, Mapping):
        return {str(key): plain_numbers(value) for key, value in results.items()}
    if isinstance(results, list | tuple):
        return [plain_numbers(value) for value in results]
    if results is None or isinstance(results, str | bool | int):
        return results
    number = float(results)
    return number if math.isfinite(number) else None


class MetricsFile(EventWriter):
    """Detectron2's ``metrics.json``, an object a line, with null for figures that are none.

    Args:
        path: of the file, which goes on where it ends.
        window: numbers that are smoothed are the median of so many.
    """

    def __init__(self, path: str, window: int = 20) -> None:
        self._file = PathManager.open(path, "a")
        self._window = window
        self._last = -1

    def write(self) -> None:
        """Write what was put into the storage since the last time, by iteration."""
        lines: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, (value, at) in (
            get_event_storage().latest_with_smoothing_hint(self._window).items()
        ):
            if at > self._last:
                lines[at][name] = value
        for at, figures in sorted(lines.items()):
            text = json.dumps(plain_numbers({**figures, "iteration": at}), sort_keys=True)
            self._file.write(text + "\n")
            self._last = at
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
