"""Hooks of training: K-means over gate activations, drop path, BatchNorm's statistics, seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data import seed_everything
from ..experts import LocalExperts
from ..modeling import cluster_and_log
from ..routing import DynamicRoutingNetwork, Periods


class ClusteringHook(HookBase):
    """Clusters the activation bank every so many iterations (DivDR, Section 3.2).

    What it found goes to the event storage, see ``divdr.modeling.cluster_and_log``.

    Args:
        experts: bank and centres.
        periods: when to cluster.
        refill: called before each clustering to fill the bank anew (``BANK: exact``).
    """

    def __init__(
        self, experts: LocalExperts, periods: Periods, refill: Callable[[], Any] | None = None
    ) -> None:
        self.experts = experts
        self.periods = periods
        self.refill = refill

    def after_step(self) -> None:
        """Cluster if it is time."""
        if not self.periods.due(self.trainer.iter):
            return
        if self.refill is not None:
            self.refill()
        cluster_and_log(self.experts, self.trainer.iter, self.trainer.storage)


class DropPathHook(HookBase):
    """Tells the network how far training is, for scheduled drop path.

    Args:
        networks: routed networks of the model.
        max_iter: iterations of the whole training.
    """

    def __init__(self, networks: Iterable[DynamicRoutingNetwork], max_iter: int) -> None:
        self.networks = list(networks)
        self.max_iter = max(1, max_iter)

    def before_step(self) -> None:
        """Update the progress."""
        for network in self.networks:
            network.drop_path.progress = self.trainer.iter / self.max_iter


class SeedHook(HookBase):
    """Seeds all generators anew each iteration, so that a resumed run draws the same numbers.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        """Seed from run, iteration and process."""
        seed_everything(self.seed, 1, self.trainer.iter, comm.get_rank())


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
        world = comm.get_world_size()
        if world == 1 or not (last or any(done % period == 0 for period in self.periods)):
            return
        # Also of layers that stand still by now: they may have been trained before.
        layers = (m for m in self.model.modules() if isinstance(m, _BatchNorm))
        for statistic in (s for bn in layers for s in (bn.running_mean, bn.running_var)):
            if statistic is not None:
                dist.all_reduce(statistic)
                statistic /= world


class PreciseBNHook(HookBase):
    """Re-estimates BatchNorm statistics before each evaluation, from the same batches each time.

    Args:
        period: iterations between evaluations; 0: at the end alone.
        model: the model, in training mode.
        loader: makes the loader of the batches.
        num_iter: batches to look at.
    """

    def __init__(
        self,
        period: int,
        model: nn.Module,
        loader: Callable[[], Iterable],
        num_iter: int,
    ) -> None:
        self.period = period
        self.model = model
        self.loader = loader
        self.num_iter = num_iter

    def after_step(self) -> None:
        """Update the statistics if an evaluation follows."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self.period > 0 and done % self.period == 0):
            with EventStorage():  # the passes are no training; nothing of them is logged
                update_precise_bn(self.model, self.loader(), self.num_iter)


def update_precise_bn(model: nn.Module, batches: Iterable, num_iter: int) -> None:
    """Population statistics of BatchNorm over ``num_iter`` batches, the same on all processes.

    Layers of cells that no image reaches keep the statistics they have.
    """
    layers = get_bn_modules(model)
    before = [(bn.running_mean.clone(), bn.running_var.clone()) for bn in layers]
    used: set[nn.Module] = set()
    handles = [bn.register_forward_pre_hook(lambda module, args: used.add(module)) for bn in layers]
    try:
        update_bn_stats(model, batches, num_iter)
    finally:
        for handle in handles:
            handle.remove()
    for bn, (mean, var) in zip(layers, before, strict=True):
        if bn not in used:
            bn.running_mean, bn.running_var = mean, var
        if comm.get_world_size() > 1:
            dist.broadcast(bn.running_mean, 0)
            dist.broadcast(bn.running_var, 0)


@torch.no_grad()
def refill_bank(
    model: nn.Module,
    experts: LocalExperts,
    loader: Iterable[list[dict]],
    values: Callable[[], torch.Tensor],
    keys: Callable[[list[dict]], list[str]],
    step: int,
) -> None:
    """Fill the bank by a pass over the training set in evaluation mode (``BANK: exact``).

    Args:
        model: the model; its mode is restored.
        experts: whose bank to fill.
        loader: this process's share of the training set.
        values: (N, D) activations of the last forward.
        keys: keys of a batch's images.
        step: noted with the rows.
    """
    training = model.training
    model.eval()
    try:
        experts.bank.clear()
        for inputs in loader:
            model(inputs)
            experts.bank.update(keys(inputs), values(), step)
    finally:
        model.train(training)
