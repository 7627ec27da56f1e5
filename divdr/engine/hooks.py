"""Hooks of training: K-means over gate activations, drop path, seeds, cost targets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ..data import seed_everything
from ..experts import LocalExperts
from ..inference.controls import real_share, route_of_share
from ..modeling import DynamicRouting, RoutingSupervision, cluster_and_log, unwrap
from ..routing import TRANSFORMS, CostController, DynamicRoutingNetwork, Periods, Routing
from .precise_bn import average_statistics

logger = logging.getLogger(__name__)


class ClusteringHook(HookBase):
    """Clusters the activation bank every so many iterations (DivDR, Section 3.2).

    What it found goes to the event storage, see ``divdr.modeling.cluster_and_log``.

    Args:
        experts: bank and centres.
        periods: when to cluster.
        refill: called before each clustering to fill the bank anew (``BANK``: subset, exact).
        checkpoint_period: iterations between checkpoints; 0: at the end alone.
    """

    def __init__(
        self,
        experts: LocalExperts,
        periods: Periods,
        refill: Callable[[], Any] | None = None,
        checkpoint_period: int = 0,
    ) -> None:
        self.experts = experts
        self.periods = periods
        self.refill = refill
        self.checkpoint_period = checkpoint_period

    def after_step(self) -> None:
        """Cluster if it is time, and complete the bank if a checkpoint follows.

        One process writes it, and the rows of the others since the last clustering belong in it.
        """
        if self.periods.due(self.trainer.iter):
            if self.refill is not None:
                self.refill()
            cluster_and_log(self.experts, self.trainer.iter, self.trainer.storage)
        done, period = self.trainer.iter + 1, self.checkpoint_period
        if done >= self.trainer.max_iter or (period > 0 and done % period == 0):
            self.experts.bank.synchronise()


class DropPathHook(HookBase):
    """Sets how far training is, for scheduled drop path.

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


class FixRouteHook(HookBase):
    """From an iteration on all images take one route, of the cost that is asked for.

    Args:
        routing: of the model, with a cost target.
        start: the iteration, from 0.
    """

    def __init__(self, routing: RoutingSupervision, start: int) -> None:
        self.routing = routing
        self.start = start

    def before_train(self) -> None:
        """Begin to note what images open, until their route is fixed."""
        self.routing.watch_opened = not self.routing.backbone.network.stays_open

    def before_step(self) -> None:
        """Fix the route if it is time."""
        network, opened = self.routing.backbone.network, self.routing.opened
        if self.trainer.iter < self.start or network.stays_open or opened is None:
            return
        cost, size = self.routing.cost, self.routing.opened_size
        assert cost is not None
        shares = torch.stack(comm.all_gather(opened.cpu())).mean(dim=0)
        gates, initial = shares.split([network.space.activation_size, len(TRANSFORMS)])
        route = route_of_share(network, gates, initial, size, cost.share)
        self.routing.backbone.fix_route(route.gates > 0, route.initial > 0)
        self.routing.opened, self.routing.watch_opened = None, False
        logger.info(
            "From now on all images take one route, of %d cells and a real share of %.3f",
            int((route.gates > 0).any(dim=1).sum()),
            real_share(network, route, size),
        )


class FreezeGatesHook(HookBase):
    """From an iteration on each image keeps its route.

    Args:
        network: whose gates are of an early look.
        start: the iteration, from 0.
    """

    def __init__(self, network: DynamicRoutingNetwork, start: int) -> None:
        self.network = network
        self.start = start

    def before_step(self) -> None:
        """Freeze the gates if it is time; a run that goes on later does so at once."""
        if self.trainer.iter >= self.start and not self.network.frozen:
            gates = self.network.gates_to_freeze()
            average_statistics(gates)  # the same image has one route on all processes
            gates.freeze()
            logger.info("From now on each image keeps its route")


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
    backbone: nn.Module,
    experts: LocalExperts,
    loader: Iterable[list[dict]],
    values: Callable[[], torch.Tensor],
    keys: Callable[[list[dict]], list[str]],
    step: int,
) -> None:
    """Fill the bank by a pass over images in evaluation mode (``BANK``: subset, exact).

    The model prepares its images as ever, and its forward ends as soon as its backbone has run:
    proposals, heads and suppression of boxes are left out.

    Args:
        model: the model, not wrapped for several processes; modes of all its modules are restored.
        backbone: the part of it that computes gates.
        experts: whose bank to fill.
        loader: this process's share of the images.
        values: (N, D) activations of the backbone's last forward.
        keys: keys of a batch's images.
        step: noted with the rows.
    """
    with backbone_alone(model, backbone) as run:
        experts.bank.clear()
        for inputs in loader:
            run(inputs)
            experts.bank.update(keys(inputs), values(), step)


@contextmanager
def backbone_alone(model: nn.Module, backbone: nn.Module) -> Iterator[Callable[[list[dict]], None]]:
    """In evaluation mode, what runs a model for a batch until its backbone has run.

    Args:
        model: not wrapped for several processes; modes of all its modules are restored.
        backbone: part of it.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    handle = backbone.register_forward_hook(_end_forward)

    def run(inputs: list[dict]) -> None:
        with suppress(_ForwardEnds):
            model(inputs)

    try:
        yield run
    finally:
        handle.remove()
        for module, training in modes:
            module.training = training


@torch.no_grad()
def routing_records(
    model: nn.Module, backbone: DynamicRouting, batches: Iterable[list[dict]]
) -> Iterator[tuple[list[dict], Routing]]:
    """Batches, each with the record of its images in evaluation; the backbone runs, and no head.

    Args:
        model: the model; modes of all its modules are restored after the last batch.
        backbone: its routed backbone.
        batches: of dataset dicts.
    """
    with backbone_alone(unwrap(model), backbone) as run:
        for inputs in batches:
            run(inputs)
            record = backbone.routing
            assert record is not None
            yield inputs, record


class _ForwardEnds(Exception):  # noqa: N818  nothing went wrong
    """The backbone has run, and nothing else is wanted of the model."""


def _end_forward(module: nn.Module, args: tuple, output: Any) -> None:
    raise _ForwardEnds


class CostTargetHook(HookBase):
    """Notes the learning rate before every step.

    Args:
        controller: to tell.
    """

    def __init__(self, controller: CostController) -> None:
        self.controller = controller

    def before_step(self) -> None:
        """Note it as a share of its largest."""
        group = self.trainer.optimizer.param_groups[0]
        self.controller.rate = group["lr"] / group["initial_lr"]
