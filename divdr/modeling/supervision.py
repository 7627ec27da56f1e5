"""What routing adds to a model: losses in training, records in evaluation, and the state behind."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..experts import LocalExperts
from ..image_keys import former_key, image_keys, recognise
from ..routing import (
    BatchCost,
    CostController,
    DynamicRoutingNetwork,
    Periods,
    Ramp,
    Routing,
    budget_loss,
    process_count,
    several_processes,
    to_device,
)
from ..settings import BudgetSettings, ClusteringSettings
from .backbone import DynamicRouting
from .cost_dial import CostDial, DialSetting
from .distillation import Distillation
from .late_figures import put_later

_LATELY = 0.02  # weight of a batch among those of late


def cost_target_loss(
    controller: CostController,
    network: DynamicRoutingNetwork,
    routing: Routing,
    iteration: int,
    storage: EventStorage | None,
) -> Tensor:
    """λ · (real cost above the set point, as a share of what gates decide upon).

    The controller moves on with every batch that is trained on, and in no other.

    Args:
        controller: gives λ and the set point.
        network: that made the record.
        routing: record of a batch.
        iteration: of training, from 0.
        storage: where share and multiplier are logged.

    Raises:
        ConfigError: no route of the training images costs what is asked for.
    """
    real = routing.real_cost.mean()
    bounds = torch.tensor([routing.fixed_cost, routing.full_real_cost], dtype=real.dtype)
    costs = torch.cat([real[None], to_device(bounds, real.device)])
    # Passes without gradients (precise BatchNorm) are no training.
    trained = torch.is_grad_enabled()
    batch = BatchCost(*(_mean_over_processes(costs) if trained else costs).tolist())
    if trained:
        controller.observe(batch, iteration)
    multiplier = controller.multiplier(batch, iteration)
    if trained and storage is not None:
        span = batch.full - batch.fixed
        storage.put_scalar("train/real_share", (batch.real - batch.fixed) / span)
        storage.put_scalar("train/budget_multiplier", multiplier)
    temperature = controller.target.temperature
    cost = network.steerable_cost(routing, temperature, closing=multiplier > 0).mean()
    above = (cost - controller.set_point(batch, iteration)) / controller.span(batch)
    return multiplier * above


def _mean_over_processes(values: Tensor) -> Tensor:
    if several_processes():
        values = values.clone()
        dist.all_reduce(values)
        values /= process_count()
    return values


def cluster_and_log(experts: LocalExperts, iteration: int, storage: EventStorage | None) -> None:
    """Cluster the bank; a collective call.

    Writes, under ``clustering/``: inter_experts, intra_pairs_experts, intra_centre_experts (the new
    experts over the bank), sigma2, movement, inertia, seconds, agreement, size_K of every
    expert, and use_entropy, 1 where experts hold equally many images and 0 where one holds all.
    Waits, with a line in the log, while the bank holds fewer images than there are experts.

    Args:
        experts: bank and centres.
        iteration: of training.
        storage: where the figures go; None: nowhere.
    """
    report = experts.cluster(iteration)
    if report is None:
        logger.info(
            "Clustering waits: %d activations for %d experts",
            len(experts.bank),
            experts.num_experts,
        )
        return
    if storage is None:
        return
    values = {
        "inter_experts": report.inter,
        "intra_pairs_experts": report.intra_pairs,
        "intra_centre_experts": report.intra_centre,
        "sigma2": report.sigma2,
        "movement": report.movement,
        "inertia": report.inertia,
        "seconds": report.seconds,
        "agreement": report.agreement,
        "use_entropy": _entropy(report.sizes),
        **{f"size_{expert}": size for expert, size in enumerate(report.sizes)},
    }
    for name, value in values.items():
        storage.put_scalar(f"clustering/{name}", value, smoothing_hint=False)


def _entropy(sizes: Sequence[int]) -> float:
    """Of the shares of K experts, in units of log K; 1 for a single one."""
    shares = [size / sum(sizes) for size in sizes if size]
    if len(sizes) < 2:
        return 1.0
    return -sum(share * math.log(share) for share in shares) / math.log(len(sizes))


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusteringLossSettings:
    """Settings of Eq. 2 of DivDR.

    Attributes:
        weight: λ2; 0 only measures.
        margin: α.
        squared: square the distances.
        gates: "after" the non-linearity, or "before" it.
        update_bank: note activations while training (the "latest" bank).
    """

    weight: float = ClusteringSettings.weight
    margin: float = ClusteringSettings.margin
    squared: bool = ClusteringSettings.squared
    gates: str = ClusteringSettings.gates
    update_bank: bool = True


class RoutingSupervision:
    """What :func:`attach_routing` attaches: losses, records, and the state behind them.

    Attributes:
        backbone: the routed backbone of the model.
        experts: activation bank and centres; None without clustering.
        clustering: settings of the clustering loss.
        budget: weight of the budget loss over training.
        budget_target: μ.
        budget_per: "image" or "batch", see ``budget_loss``.
        cost: drives the real cost to a target, in place of the budget loss; None does not.
        periods: when training forwards cluster the bank by themselves; None leaves that to
            ``divdr.engine.ClusteringHook``.
        save_bank: whether the state holds the activations. Where clustering only measures, a
            resumed run can do without: until it has seen all images again, its figures are of
            those it has.
        dial: costs that the model was calibrated for; None: it was not.
        opened: (D + T,) share of the images of late that opened each transform, those of the
            initial cell last; None before the first batch, or where nobody wants to know.
        opened_size: (height, width) of the last of these batches.
        watch_opened: whether to keep ``opened``.
    """

    def __init__(
        self,
        backbone: DynamicRouting,
        experts: LocalExperts | None,
        clustering: ClusteringLossSettings,
        budget: Ramp,
        budget_target: float,
        periods: Periods | None = None,
        cost: CostController | None = None,
        save_bank: bool = True,
        budget_per: str = BudgetSettings.per,
        distillation: Distillation | None = None,
    ) -> None:
        self.backbone = backbone
        self.experts = experts
        self.clustering = clustering
        self.budget = budget
        self.budget_target = budget_target
        self.budget_per = budget_per
        self.periods = periods
        self.cost = cost
        self.save_bank = save_bank
        self.distillation = distillation
        self.dial: CostDial | None = None
        self.watch_opened = False
        self.opened: Tensor | None = None
        self.opened_size = (0, 0)
        self._steps = 0
        self._layers: Tensor | None = None  # (2, L, cells) which cells a layer has, and gates
        self._clustered = -1  # the iteration of the last clustering from here

    def state_dict(self) -> dict[str, Any]:
        """Bank, centres, σ², cost control, dial and step count.

        Tensors, numbers, strings and lists.
        """
        state: dict[str, Any] = {"steps": self._steps}
        if self.experts is not None:
            state["experts"] = self.experts.state_dict(bank=self.save_bank)
        if self.cost is not None:
            state["cost"] = self.cost.state_dict()
        if self.opened is not None:
            state["opened"] = {"shares": self.opened.clone(), "size": list(self.opened_size)}
        if self.dial is not None:
            state["dial"] = self.dial.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            CheckpointError: another number of experts or another routing space.
        """
        self._steps = int(state.get("steps", 0))
        if self.experts is not None and "experts" in state:
            self.experts.load_state_dict(state["experts"])
        if self.cost is not None and "cost" in state:
            self.cost.load_state_dict(state["cost"])
        self.dial = CostDial.from_state(state["dial"]) if "dial" in state else None
        self.opened = None
        if "opened" in state:
            height, width = state["opened"]["size"]
            self.opened, self.opened_size = state["opened"]["shares"], (height, width)
        if "route" in state:  # where the weights have none yet
            self.backbone.fix_route(*state["route"])
        if "threshold" in state:  # likewise
            self.backbone.set_gate_threshold(float(state["threshold"]))

    def turn_dial(self, position: float) -> DialSetting:
        """Run from now on at a cost between the calibrated ones; again and again, as you like.

        Args:
            position: 0 is the cheapest, 1 the dearest.

        Returns:
            What the model is set to.

        Raises:
            ConfigError: the checkpoint has no calibrated costs, or there is no such position.
        """
        if self.dial is None:
            raise ConfigError(
                "the checkpoint has no dial: `divdr calibrate` with several costs makes one"
            )
        setting = self.dial.at(position)
        self.run_at(setting)
        return setting

    def run_at(self, setting: DialSetting) -> None:
        """Set the gates' threshold, and centres that go along with their images' activations."""
        self.backbone.set_gate_threshold(setting.threshold)
        if self.experts is not None and setting.centres is not None:
            self.experts.move_centres(setting.centres)

    def keep_images(self, keys: Sequence[str]) -> None:
        """Forget images that a loaded state remembers and that are not there, with a line.

        Paths, by which checkpoints of before know images, become the keys of the images that they
        mean. On several processes, call it on all of them.

        Args:
            keys: of all training images.
        """
        if self.experts is None:
            return
        bank = self.experts.bank
        had = bank.keys
        remembered = {*had, *self.experts.members.keys}
        names = recognise(remembered, keys) if bank.former_keys else {}
        names.update({key: key for key in keys if key in remembered})
        if bank.former_keys or len(names) < len(remembered):
            self.experts.rename(names)
        if len(bank) < len(had):
            logger.info(
                "Of the checkpoint's %d activations %d are of no image of the training set, or it "
                "is not known of which, and are forgotten",
                len(had),
                len(had) - len(bank),
            )

    def clustered_values(self, routing: Routing) -> Tensor:
        """(N, D) what is clustered: gates after or before their non-linearity."""
        return routing.activations if self.clustering.gates == "after" else routing.logits

    @property
    def _needs_keys(self) -> bool:
        return self.experts is not None and (self.experts.needs_keys or self.clustering.update_bank)

    def losses(
        self,
        routing: Routing,
        iteration: int,
        keys: Sequence[str] = (),
        storage: EventStorage | None = None,
    ) -> dict[str, Tensor]:
        """The routing losses of a batch, weighted.

        Known subsets need its images' ``keys``; a cost target is logged in ``storage``.
        """
        losses = {}
        network = self.backbone.network
        if self.cost is not None and not (network.stays_open or network.frozen):
            losses["loss_budget"] = cost_target_loss(
                self.cost, network, routing, iteration, storage
            )
        elif self.budget.weight > 0:
            value = budget_loss(routing, self.budget_target, self.budget_per).mean()
            losses["loss_budget"] = value * self.budget.at(iteration)
        if self.experts is not None and self.clustering.weight > 0:
            values = self.clustered_values(routing)
            loss = self.experts.loss(
                values,
                margin=self.clustering.margin,
                squared=self.clustering.squared,
                keys=keys,
            )
            losses["loss_clustering"] = loss.mean() * self.clustering.weight
        if self.distillation is not None and self.distillation.loss is not None:
            losses["loss_distillation"] = self.distillation.loss
        return losses

    def before_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forget the last record, so that it is never taken for this forward's."""
        self.backbone.forget()
        if self.distillation is not None:
            self.distillation.forget()

    def after_forward(
        self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Add losses or records to what the model returns.

        Raises:
            DataError: in training with clustering, no argument of the model is a list of dicts,
                or an image cannot be distinguished from others.
        """
        routing = self.backbone.routing
        if routing is None:
            return output
        if self.experts is not None:
            self.experts.to(routing.activations.device)
        if model.training and isinstance(output, dict):
            inputs = _inputs_of(args, kwargs) if self._needs_keys else []
            return self._train(inputs, routing, output)
        if isinstance(output, list) and len(output) == len(routing):
            detached = routing.detach()
            for index, result in enumerate(output):
                if isinstance(result, dict):
                    result["routing"] = detached[index]
        return output

    def _train(self, inputs: list[dict], routing: Routing, losses: dict) -> dict:
        storage = _event_storage()
        iteration = storage.iter if storage is not None else self._steps
        keys = image_keys(inputs) if self._needs_keys else []
        added = self.losses(routing, iteration, keys, storage)
        # Passes without gradients (precise BatchNorm) are no training and leave no trace.
        if torch.is_grad_enabled():
            self._steps = iteration + 1
            if self.watch_opened:
                self._note_opened(routing)
            if self.experts is not None and self.clustering.update_bank:
                bank = self.experts.bank
                if bank.former_keys:
                    bank.discard([former_key(item) for item in inputs])
                bank.update(keys, self.clustered_values(routing).detach(), iteration)
            if storage is not None:
                _log_costs(storage, routing)
                self._log_gates(storage, routing)
            self._cluster_if_due(iteration, storage)
        return {**losses, **added}

    def _note_opened(self, routing: Routing) -> None:
        both = torch.cat([routing.activations.detach(), routing.initial.detach()], dim=1) > 0
        share = both.float().mean(dim=0)
        self.opened_size = routing.size
        if self.opened is None:
            self.opened = share
        else:
            self.opened = self.opened.to(share.device).lerp(share, _LATELY)

    def _log_gates(self, storage: EventStorage, routing: Routing) -> None:
        """By layer, the share of gates that are open, of those of the cells which images reach."""
        space, device = self.backbone.space, routing.activations.device
        if self._layers is None or self._layers.device != device:
            layers = torch.zeros(space.num_layers, space.num_cells)
            for cell in space.cells:
                layers[cell.layer, cell.index] = 1
            counts = torch.tensor([float(len(cell.transforms)) for cell in space.cells])
            self._layers = to_device(torch.stack([layers, layers * counts]), device)
        opened = (routing.activations.detach() > 0).view(len(routing), space.num_cells, -1)
        seen = torch.stack([opened.sum((0, 2)), routing.reached.sum(0)]).float()  # (2, cells)
        both = (self._layers * seen[:, None]).sum(-1)  # (2, L)
        names = [f"routing/open_layer_{layer}" for layer in range(space.num_layers)]
        put_later(storage, names, both[0] / both[1].clamp(min=1))

    def _cluster_if_due(self, iteration: int, storage: EventStorage | None) -> None:
        if self.experts is None or self.periods is None or self._clustered == iteration:
            return
        if self.periods.due(iteration):
            self._clustered = iteration  # once, also where gradients of several batches add up
            cluster_and_log(self.experts, iteration, storage)


def _event_storage() -> EventStorage | None:
    try:
        return get_event_storage()
    except AssertionError:  # outside of a trainer's loop there is none
        return None


def _log_costs(storage: EventStorage, routing: Routing) -> None:
    expected = routing.expected_cost.detach().mean()
    pair = torch.stack([expected, routing.real_cost.mean()]) / 1e9
    share = expected[None] / routing.full_cost
    names = ("train/expected_gflops", "train/real_gflops", "train/expected_share")
    put_later(storage, names, torch.cat([pair, share]))


def _inputs_of(args: tuple, kwargs: Mapping[str, Any]) -> list[dict]:
    """The batch among a model's arguments, whether it was given by name or not."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, (list, tuple)) and all(isinstance(item, dict) for item in value):
            return list(value)
    raise DataError("clustering needs a batch as Detectron2 has it, a list of dicts")
