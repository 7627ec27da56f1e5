"""BatchNorm's statistics of evaluation: the same on all processes, and of the whole data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sized
from itertools import islice

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..routing import from_all_processes, merge_moments, moments
from ..routing.batch_norm import is_synchronised

logger = logging.getLogger(__name__)

ENOUGH_IMAGES = 4
"""Images by which BatchNorm in training should normalise at least."""
_FEW = 32  # images, by which a statistic of evaluation is noise still


class CommonBNHook(HookBase):
    """Averages BatchNorm's running statistics over the processes before others look at them.

    Each process has those of its own batches. Without this, evaluation would run as many models as
    there are processes, none of them but the first in the checkpoint.

    Args:
        periods: iterations between checkpoints, and between evaluations; 0: at the end alone.
        model: the model, in training mode.
    """

    def __init__(self, periods: Iterable[int], model: nn.Module) -> None:
        self.periods = [period for period in periods if period > 0]
        self.model = model

    def after_step(self) -> None:
        """Average the statistics if an evaluation or a checkpoint follows."""
        done = self.trainer.iter + 1
        last = done == self.trainer.max_iter
        if last or any(done % period == 0 for period in self.periods):
            average_statistics(self.model)


def average_statistics(model: nn.Module) -> None:
    """Give BatchNorm's running statistics of all processes their mean.

    Also of layers that stand still by now, for they may have been trained before; not of a finished
    model, whose equal numbers a mean would still round.
    """
    world = comm.get_world_size()
    if world == 1:
        return
    layers = (m for m in model.modules() if isinstance(m, _BatchNorm) and not _is_finished(m))
    for statistic in (s for bn in layers for s in (bn.running_mean, bn.running_var)):
        if statistic is not None:
            dist.all_reduce(statistic)
            statistic /= world


def _is_finished(layer: _BatchNorm) -> bool:
    return not layer.training and layer.weight is not None and not layer.weight.requires_grad


class PreciseBNHook(HookBase):
    """Re-estimates BatchNorm statistics before each evaluation, from the same batches each time.

    Args:
        period: iterations between evaluations; 0: at the end alone.
        model: the model, in training mode.
        loader: makes the loader of the batches.
        num_iter: batches to look at.
        max_iter: iterations of the whole training. A run that stops before does not end there:
            resumed, it must find the statistics that it had. None: the trainer's own.
    """

    def __init__(
        self,
        period: int,
        model: nn.Module,
        loader: Callable[[], Iterable[Sized]],
        num_iter: int,
        max_iter: int | None = None,
    ) -> None:
        self.period = period
        self.model = model
        self.loader = loader
        self.num_iter = num_iter
        self.max_iter = max_iter
        self._told = False

    def after_step(self) -> None:
        """Update the statistics if an evaluation follows."""
        done = self.trainer.iter + 1
        end = self.trainer.max_iter if self.max_iter is None else self.max_iter
        if done == end or (self.period > 0 and done % self.period == 0):
            with EventStorage():  # the passes are no training; nothing of them is logged
                few = update_precise_bn(self.model, self.loader(), self.num_iter)
            if few and not self._told:
                self._told = True
                logger.warning(
                    "%d layers of BatchNorm are evaluated by statistics of fewer than %d images, "
                    "as few images reach their cells: accuracy may come out points too low. Raise "
                    "TEST.PRECISE_BN.NUM_ITER (now %d)",
                    *(few, _FEW, self.num_iter),
                )


@torch.no_grad()
def update_precise_bn(model: nn.Module, batches: Iterable[Sized], num_iter: int) -> int:
    """Statistics of BatchNorm's inputs over ``num_iter`` batches of every process together.

    The passes normalise by their batches' own statistics, as training does (Wu and Johnson,
    "Rethinking Batch in BatchNorm", 2021). Every value counts alike, whatever batch and process
    it comes from. Layers without a variance keep the statistics they have: those of cells that no
    image reaches, or one image with a map of one pixel. A collective call.

    Args:
        model: its BatchNorm layers in training mode are updated.
        batches: inputs of the model, a length of images each; this process's.
        num_iter: how many of them to look at.

    Returns:
        How many layers fewer than 32 images came to, and less than half of all.
    """
    layers = precise_bn_layers(model)
    found: dict[nn.Module, Tensor] = {}
    images: dict[nn.Module, int] = dict.fromkeys(layers, 0)
    given = 0  # images

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen = moments(args[0])
        images[layer] += len(args[0])
        found[layer] = seen if layer not in found else _together(torch.stack([found[layer], seen]))

    momentum = [layer.momentum for layer in layers]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0  # running statistics stand still
        for inputs in islice(batches, num_iter):
            given += len(inputs)
            model(inputs)
    finally:
        for layer, value, handle in zip(layers, momentum, handles, strict=True):
            layer.momentum = value
            handle.remove()
    if not layers:
        return 0
    own = [found[m] if m in found else _nothing(m) for m in layers]
    numbers = own[0].new_tensor([given, *(images[m] for m in layers)])
    *each, counts = _each_from_all([*own, numbers])
    for layer, parts in zip(layers, each, strict=True):
        mean, var, count = merge_moments(parts)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(torch.where(count > 1, mean, layer.running_mean))
        layer.running_var.copy_(torch.where(count > 1, var, layer.running_var))
    total, came = counts.sum(dim=0).split([1, len(layers)])  # images, and those at each layer
    return int(((came > 0) & (came < _FEW) & (2 * came < total)).sum())


def precise_bn_layers(model: nn.Module) -> list[_BatchNorm]:
    """BatchNorm layers in training mode that keep running statistics."""
    return [
        m
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None
    ]


def warn_of_small_batches(model: nn.Module, images: int, parts: int, processes: int) -> None:
    """Say in a line of the log that BatchNorm will see few images at a time, if it will.

    Args:
        model: whose BatchNorm layers are in the modes that they will be trained in.
        images: of a step, over all processes.
        parts: that each process runs its share in.
        processes: that train together.
    """
    own = images // processes // parts
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    few = [m for m in layers if own * (processes if is_synchronised(m) else 1) < ENOUGH_IMAGES]
    if few:
        logger.warning(
            "%d layers of BatchNorm will see %d image%s at a time (SOLVER.IMS_PER_BATCH %d, %d "
            "process%s, SOLVER.ACCUMULATE %d). Below %d their statistics are noise, and results "
            "end lower: train with GroupNorm (MODEL.ROUTING.NORM GN; other parts' NORM), frozen "
            "statistics (FrozenBN, from trained weights), SyncBN over several processes, or in "
            "fewer and larger parts",
            len(few),
            own,
            "" if own == 1 else "s",
            images,
            processes,
            "" if processes == 1 else "es",
            parts,
            ENOUGH_IMAGES,
        )


def _together(parts: Tensor) -> Tensor:
    mean, var, count = merge_moments(parts)
    return torch.cat([mean, var, count[None]])


def _nothing(layer: _BatchNorm) -> Tensor:
    """The moments of no value, as ``moments`` gives them."""
    assert layer.running_mean is not None
    dtype = torch.promote_types(layer.running_mean.dtype, torch.float32)
    return layer.running_mean.new_zeros(2 * layer.num_features + 1, dtype=dtype)


def _each_from_all(own: list[Tensor]) -> list[Tensor]:
    """Tensors (D,) of any lengths → (P, D) those of all P processes; a collective call."""
    parts = from_all_processes(torch.cat(own))  # one message in place of hundreds
    return list(parts.split([len(one) for one in own], dim=1))
