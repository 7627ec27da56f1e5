"""Hooks of training: K-means over gate activations, drop path, seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

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
