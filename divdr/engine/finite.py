"""Numbers that are none: losses that must not reach the weights, and figures in JSON files."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ..errors import NonFiniteLossError

logger = logging.getLogger(__name__)


_ATTRIBUTE = "_divdr_loss_check"


class LossCheck:
    """Stops training at a loss that is not finite, before it is learned from: a forward hook.

    Of a batch in which no pixel has a class, Detectron2's losses of semantic segmentation are the
    mean over no pixel, NaN. They become 0, with gradients of 0, as divdr's decoder has it.

    Attributes:
        deferred: whether somebody asks :meth:`broken` after each training forward and keeps its
            losses from the weights, so that the host need not look at every one.
    """

    def __init__(self) -> None:
        self.deferred = False
        self._broken: Tensor | None = None

    @classmethod
    def attach(cls, model: nn.Module) -> LossCheck:
        """Put one on a model (before it is wrapped for several processes)."""
        check = cls()
        setattr(model, _ATTRIBUTE, check)
        model.register_forward_hook(check)
        return check

    @staticmethod
    def of(model: nn.Module) -> LossCheck | None:
        """The one that is attached to a model; None if there is none."""
        return getattr(model, _ATTRIBUTE, None)

    def __call__(self, model: nn.Module, args: tuple, output: Any) -> Any:
        """Look at what the model returns.

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
        # Passes without gradients (precise BatchNorm) are no steps that could be left out.
        if self.deferred and torch.is_grad_enabled():
            return self._defer(model, args, output, losses)
        values = stacked(losses).tolist()
        broken = not_finite(dict(zip(losses, values, strict=True)))
        if not broken:
            return None
        if all("sem_seg" in name for name in broken) and _nothing_labelled(model, args):
            return _without(output, broken)
        raise NonFiniteLossError(
            f"{', '.join(broken)} is not finite; training stops, the last good checkpoint stays"
        )

    def broken(self) -> Tensor | None:
        """1 if a loss of the last training forward is not finite, else 0; on its device.

        float32 without dimensions, which the caller may change; None where there was no loss.
        """
        broken, self._broken = self._broken, None
        return broken

    def __deepcopy__(self, memo: dict) -> LossCheck:
        # Whoever trains a copied model need not know of this.
        return LossCheck()

    def _defer(
        self, model: nn.Module, args: tuple, output: Mapping[str, Any], losses: dict[str, Tensor]
    ) -> Any:
        changed = None
        semantic = [name for name in losses if "sem_seg" in name]
        labels = _labels(model, args) if semantic else []
        if labels and labels[0].device.type == "cpu":
            if _nothing_labelled(model, args):
                changed = _without(output, semantic)
        elif labels:
            ignored = cast(Any, model).sem_seg_head.ignore_value
            nothing = torch.stack([(label == ignored).all() for label in labels]).all()
            changed = {
                k: torch.where(nothing, torch.nan_to_num(v), v) if k in semantic else v
                for k, v in output.items()
            }
        if changed is not None:
            losses = {name: changed[name] for name in losses}
        finite = stacked(losses).isfinite().all()
        self._broken = (~finite).float()
        return changed


def not_finite(values: Mapping[str, float]) -> list[str]:
    """Names of numbers that are infinite or none."""
    return [name for name, value in values.items() if not math.isfinite(value)]


def stacked(losses: Mapping[str, Tensor]) -> Tensor:
    """(n,) losses of one number each, in float32 and detached."""
    return torch.stack([v.detach().float().flatten()[0] for v in losses.values()])


def _without(output: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The losses, those of these names 0 where they are NaN."""
    logger.warning("No pixel of this batch has a class: %s counts as 0", ", ".join(names))
    return {k: torch.nan_to_num(v) if k in names else v for k, v in output.items()}


def _labels(model: nn.Module, args: tuple) -> list[Tensor]:
    """Of every image of the batch; none if some have none, or no value is ignored."""
    ignored = getattr(getattr(model, "sem_seg_head", None), "ignore_value", None)
    inputs = args[0] if args else None
    if ignored is None or not isinstance(inputs, list):
        return []
    labels = [item.get("sem_seg") for item in inputs if isinstance(item, Mapping)]
    found = [label for label in labels if isinstance(label, Tensor)]
    return found if len(found) == len(labels) else []


def _nothing_labelled(model: nn.Module, args: tuple) -> bool:
    labels = _labels(model, args)
    return bool(labels) and all(
        _all_are(label, cast(Any, model).sem_seg_head.ignore_value) for label in labels
    )


def _all_are(label: Tensor, value: int) -> bool:
    # A few pixels mostly tell, and one of these is looked at in every step.
    few = label[..., ::32, ::32]
    return bool((few == value).all()) and bool((label == value).all())


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


def figures_by_iteration(
    storage: EventStorage, window: int, after: int
) -> list[tuple[int, dict[str, float]]]:
    """Figures of a storage by the iteration that they are of, in its order.

    Args:
        storage: of the training.
        window: numbers that are smoothed are the median of so many.
        after: iterations up to this one are left out.
    """
    lines: dict[int, dict[str, float]] = defaultdict(dict)
    for name, (value, at) in storage.latest_with_smoothing_hint(window).items():
        if at > after:
            lines[at][name] = value
    return sorted(lines.items())


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
        for at, figures in figures_by_iteration(get_event_storage(), self._window, self._last):
            text = json.dumps(plain_numbers({**figures, "iteration": at}), sort_keys=True)
            self._file.write(text + "\n")
            self._last = at
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
