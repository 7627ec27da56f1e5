"""Routing losses and records for any Detectron2 model, by one call.

:func:`attach_routing` puts a forward hook on a built model that holds a ``DynamicRouting``
backbone. In training the model's loss dict gains ``loss_budget`` and ``loss_clustering``; in
evaluation each image's output gains a ``routing`` record. The model's state dict stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..experts import LocalExperts
from ..routing import Ramp, Routing, budget_loss, to_iterations
from .backbone import DynamicRouting, find_backbone

_ATTRIBUTE = "_divdr_routing"


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

    weight: float = 0.1
    margin: float = 1.0
    squared: bool = False
    gates: str = "after"
    update_bank: bool = True


class RoutingSupervision:
    """What :func:`attach_routing` attaches: losses, records, and the state behind them.

    Attributes:
        backbone: the routed backbone of the model.
        experts: activation bank and centres; None without clustering.
        clustering: settings of the clustering loss.
        budget: weight of the budget loss over training.
        budget_target: μ.
    """

    def __init__(
        self,
        backbone: DynamicRouting,
        experts: LocalExperts | None,
        clustering: ClusteringLossSettings,
        budget: Ramp,
        budget_target: float,
    ) -> None:
        self.backbone = backbone
        self.experts = experts
        self.clustering = clustering
        self.budget = budget
        self.budget_target = budget_target
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Bank, centres, σ² and the step count: tensors, numbers, strings and lists alone."""
        state: dict[str, Any] = {"steps": self._steps}
        if self.experts is not None:
            state["experts"] = self.experts.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            CheckpointError: another number of experts or another routing space.
        """
        self._steps = int(state.get("steps", 0))
        if self.experts is not None and "experts" in state:
            self.experts.load_state_dict(state["experts"])

    def clustered_values(self, routing: Routing) -> Tensor:
        """(N, D) what is clustered: gates after or before their non-linearity."""
        return routing.activations if self.clustering.gates == "after" else routing.logits

    def losses(self, routing: Routing, iteration: int) -> dict[str, Tensor]:
        """The routing losses of a batch, weighted."""
        losses = {}
        if self.budget.weight > 0:
            value = budget_loss(routing, self.budget_target).mean()
            losses["loss_budget"] = value * self.budget.at(iteration)
        if self.experts is not None and self.clustering.weight > 0:
            values = self.clustered_values(routing)
            loss = self.experts.loss(
                values, margin=self.clustering.margin, squared=self.clustering.squared
            )
            losses["loss_clustering"] = loss.mean() * self.clustering.weight
        return losses

    def before_forward(self, model: nn.Module, args: tuple) -> None:
        """Forget the last record, so that it is never taken for this forward's."""
        self.backbone.forget()

    def after_forward(self, model: nn.Module, args: tuple, output: Any) -> Any:
        """Add losses or records to what the model returns."""
        routing = self.backbone.routing
        if routing is None:
            return output
        if self.experts is not None:
            self.experts.to(routing.activations.device)
        if model.training and isinstance(output, dict):
            return self._train(args[0], routing, output)
        if isinstance(output, list) and len(output) == len(routing):
            detached = routing.detach()
            for index, result in enumerate(output):
                if isinstance(result, dict):
                    result["routing"] = detached[index]
        return output

    def _train(self, inputs: list[dict], routing: Routing, losses: dict) -> dict:
        storage = _event_storage()
        iteration = storage.iter if storage is not None else self._steps
        added = self.losses(routing, iteration)
        # Passes without gradients (precise BatchNorm) are no training and leave no trace.
        if torch.is_grad_enabled():
            self._steps = iteration + 1
            if self.experts is not None and self.clustering.update_bank:
                rows = self.clustered_values(routing).detach()
                self.experts.bank.update(image_keys(inputs), rows, iteration)
            if storage is not None:
                _log_costs(storage, routing)
        return {**losses, **added}


def _event_storage() -> EventStorage | None:
    try:
        return get_event_storage()
    except AssertionError:  # outside of a trainer's loop there is none
        return None


def _log_costs(storage: EventStorage, routing: Routing) -> None:
    expected = routing.expected_cost.detach().mean()
    pair = torch.stack([expected, routing.real_cost.mean()]) / 1e9
    expected_gflops, real_gflops = pair.tolist()
    storage.put_scalar("train/expected_gflops", expected_gflops)
    storage.put_scalar("train/real_gflops", real_gflops)


def image_keys(inputs: list[dict]) -> list[str]:
    """Keys of a batch's images in the activation bank: their file names, else their ids.

    Raises:
        DataError: an image has neither.
    """
    keys = []
    for item in inputs:
        key = item.get("file_name", item.get("image_id"))
        if key is None:
            raise DataError(
                "gate clustering keeps one activation per training image and needs "
                "'file_name' or 'image_id' in every input dict"
            )
        keys.append(str(key))
    return keys


def attach_routing(
    model: nn.Module,
    *,
    num_experts: int = 0,
    clustering: ClusteringLossSettings | None = None,
    budget: Ramp | None = None,
    budget_target: float = 0.1,
    **expert_options: Any,
) -> RoutingSupervision:
    """Attach routing losses and records to a built model (before it is wrapped for DDP).

    Args:
        model: a Detectron2 model with one ``DynamicRouting`` backbone, wherever it sits.
        num_experts: K; 0 for no clustering.
        clustering: settings of the clustering loss.
        budget: weight of the budget loss over training; None is off.
        budget_target: μ.
        expert_options: more arguments of ``LocalExperts`` (restarts, warm_start, backend, seed,
            sigma2_floor).

    Returns:
        The attached object; it belongs into the checkpointer, and
        ``divdr.engine.ClusteringHook`` clusters its bank.

    Raises:
        ValueError: the model has no such backbone, or several, or routing is attached already.
    """
    if getattr(model, _ATTRIBUTE, None) is not None:
        raise ValueError("routing losses are attached to this model already")
    backbone = find_backbone(model)
    experts = None
    if num_experts:
        experts = LocalExperts(num_experts, backbone.space.activation_size, **expert_options)
    supervision = RoutingSupervision(
        backbone,
        experts,
        clustering or ClusteringLossSettings(),
        budget or Ramp(0.0, 0, 0),
        budget_target,
    )
    setattr(model, _ATTRIBUTE, supervision)
    model.register_forward_pre_hook(supervision.before_forward)
    model.register_forward_hook(supervision.after_forward)
    return supervision


def attach_routing_from_config(model: nn.Module, cfg: CfgNode) -> RoutingSupervision | None:
    """Attach as ``cfg.MODEL.ROUTING`` says; None for a model without a routed backbone.

    Raises:
        ConfigError: a setting is out of its range.
    """
    if not any(isinstance(m, DynamicRouting) for m in model.modules()):
        return None
    routing = cfg.MODEL.ROUTING
    settings = routing.CLUSTERING
    if settings.GATES not in ("after", "before"):
        raise ConfigError(
            f'MODEL.ROUTING.CLUSTERING.GATES must be "after" or "before", not {settings.GATES!r}'
        )
    if settings.BANK not in ("latest", "exact"):
        raise ConfigError(
            f'MODEL.ROUTING.CLUSTERING.BANK must be "latest" or "exact", not {settings.BANK!r}'
        )
    max_iter = cfg.SOLVER.MAX_ITER
    budget = routing.BUDGET
    return attach_routing(
        model,
        num_experts=settings.NUM_EXPERTS if settings.ENABLED else 0,
        clustering=ClusteringLossSettings(
            weight=settings.WEIGHT,
            margin=settings.MARGIN,
            squared=settings.SQUARED,
            gates=settings.GATES,
            update_bank=settings.BANK == "latest",
        ),
        budget=Ramp(
            budget.WEIGHT,
            to_iterations(budget.START, max_iter),
            to_iterations(budget.RAMP, max_iter),
        ),
        budget_target=budget.TARGET,
        restarts=settings.KMEANS.RESTARTS,
        warm_start=settings.KMEANS.WARM_START,
        backend=settings.KMEANS.BACKEND,
        seed=max(0, cfg.SEED),
        sigma2_floor=settings.SIGMA2_FLOOR,
    )


def attached_routing(model: nn.Module) -> RoutingSupervision | None:
    """What is attached to a model (or to the one inside a DDP wrapper); None if nothing is."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return getattr(inner, _ATTRIBUTE, None)
