"""Routing losses and records for any Detectron2 model, by one call.

:func:`attach_routing` puts a forward hook on a built model that holds a ``DynamicRouting``
backbone. In training the model's loss dict gains ``loss_budget`` and ``loss_clustering``; in
evaluation each image's output gains a ``routing`` record. The model's state dict stays as it is.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ..errors import ConfigError
from ..experts import KnownLabels, LocalExperts
from ..routing import CostController, CostTarget, Periods, Ramp, to_iterations
from ..routing.cost_target import check_per
from ..settings import BudgetSettings, ClusteringSettings, RoutingSettings
from .backbone import find_backbone, has_routed_backbone
from .distillation import Distillation
from .supervision import ClusteringLossSettings, RoutingSupervision

_ATTRIBUTE = "_divdr_routing"


def attach_routing(
    model: nn.Module,
    *,
    num_experts: int = 0,
    clustering: ClusteringLossSettings | None = None,
    budget: Ramp | None = None,
    budget_target: float = BudgetSettings.target,
    budget_per: str = BudgetSettings.per,
    periods: Periods | None = None,
    cost_target: CostTarget | None = None,
    save_bank: bool = True,
    distillation: Distillation | None = None,
    **expert_options: Any,
) -> RoutingSupervision:
    """Attach routing losses and records to a built model (before it is wrapped for DDP).

    With ``periods`` that is all: the model's training forwards cluster the bank when it is due.
    Without, ``divdr.engine.ClusteringHook`` does, which can also fill the bank anew before.

    Args:
        model: a Detectron2 model with one ``DynamicRouting`` backbone, wherever it sits.
        num_experts: K; 0 for no clustering.
        clustering: settings of the clustering loss.
        budget: weight of the budget loss over training; None is off.
        budget_target: μ.
        budget_per: "image" or "batch", see ``divdr.routing.budget_loss``.
        periods: when to cluster the bank; None: never from here.
        cost_target: what the real cost of training images is driven to, in place of ``budget``.
        save_bank: whether the attached object's state holds the bank.
        distillation: of the model's backbone, from a teacher; None for none.
        expert_options: more arguments of ``LocalExperts`` (restarts, warm_start, backend, seed,
            sigma2_floor, labels, scaling, partition, stability, bank_iterations).

    Returns:
        The attached object; its state belongs into the checkpointer.

    Raises:
        ValueError: the model has no such backbone, or several, or routing is attached already.
        ConfigError: a cost target beside a budget loss, or for a network without gates; or
            ``budget_per`` is unknown.
    """
    check_per(budget_per)
    if cost_target is not None:
        _check_cost_target(model, budget)
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
        periods,
        CostController(cost_target) if cost_target is not None else None,
        save_bank,
        budget_per,
        distillation,
    )
    setattr(model, _ATTRIBUTE, supervision)
    model.register_forward_pre_hook(supervision.before_forward, with_kwargs=True)
    model.register_forward_hook(supervision.after_forward, with_kwargs=True)
    return supervision


def _check_cost_target(model: nn.Module, budget: Ramp | None) -> None:
    if budget is not None and budget.weight > 0:
        raise ConfigError(
            "a cost target replaces the published budget loss: set MODEL.ROUTING.BUDGET.WEIGHT "
            "to 0, or both TARGET_SHARE and TARGET_GFLOPS"
        )
    if not find_backbone(model).network.has_gates:
        raise ConfigError('a cost target needs gates to steer, and MODEL.ROUTING.GATE is "none"')
    if find_backbone(model).network.stays_open:
        raise ConfigError(
            "a cost target needs gates that can close, which those of a fixed route "
            "(MODEL.ROUTING.ROUTE) do not"
        )


def with_routing(
    model: nn.Module, *, routing: RoutingSettings | None = None, **settings: Any
) -> nn.Module:
    """The model itself, with routing attached: for LazyConfig, whose models are calls.

    Args:
        model: a Detectron2 model with one ``DynamicRouting`` backbone.
        routing: settings of budget and clustering, whole.
        settings: with ``routing`` of :func:`attach_settings`, and else of :func:`attach_routing`.

    Raises:
        ValueError: see :func:`attach_routing`.
    """
    if routing is not None:
        attach_settings(model, routing, **settings)
    else:
        attach_routing(model, **settings)
    return model


def attach_routing_from_config(
    model: nn.Module, cfg: CfgNode, *, cluster: bool = False
) -> RoutingSupervision | None:
    """Attach as ``cfg.MODEL.ROUTING`` says; None for a model without a routed backbone.

    Args:
        model: a Detectron2 model.
        cfg: with divdr's keys.
        cluster: let training forwards cluster the bank when it is due, for trainers that know
            nothing of ``divdr.engine.ClusteringHook``.

    Raises:
        ConfigError: a setting is out of its range, or needs that hook (``BANK``: subset, exact).
    """
    if not has_routed_backbone(model):
        return None
    solver = cfg.SOLVER
    return attach_settings(
        model,
        RoutingSettings.of(cfg.MODEL.ROUTING),
        max_iter=solver.MAX_ITER,
        batch_size=solver.IMS_PER_BATCH,
        seed=max(0, cfg.SEED),
        cluster=cluster,
        # A run that stops to be continued, as those that studies fork, hands its bank on.
        stops=0 < solver.STOP_ITER < solver.MAX_ITER,
    )


def attach_settings(
    model: nn.Module,
    settings: RoutingSettings,
    *,
    max_iter: int,
    batch_size: int,
    seed: int = 0,
    cluster: bool = True,
    stops: bool = False,
) -> RoutingSupervision:
    """Attach as settings say, whose times may be shares of training.

    Args:
        model: a Detectron2 model with one ``DynamicRouting`` backbone.
        settings: of which those of budget and clustering are taken.
        max_iter: length of training.
        batch_size: images of an iteration, of all processes together.
        seed: of K-means.
        cluster: let training forwards cluster the bank when it is due.
        stops: whether the run will be continued, and needs the bank in any case.

    Raises:
        ValueError: see :func:`attach_routing`.
        ConfigError: settings contradict each other, or the model.
    """
    clustering, budget = settings.clustering, settings.budget
    _check_bank(clustering, batch_size, cluster)
    if budget.freeze_gates:
        find_backbone(model).network.gates_to_freeze()  # refused where there are none
    return attach_routing(
        model,
        num_experts=clustering.num_experts if clustering.enabled else 0,
        clustering=ClusteringLossSettings(
            weight=clustering.weight,
            margin=clustering.margin,
            squared=clustering.squared,
            gates=clustering.gates,
            update_bank=clustering.bank in ("latest", "recent"),
        ),
        budget=Ramp(
            budget.weight,
            to_iterations(budget.start, max_iter),
            to_iterations(budget.ramp, max_iter),
        ),
        budget_target=budget.target,
        budget_per=budget.per,
        cost_target=_cost_target(budget, max_iter),
        periods=_periods(clustering, max_iter) if cluster else None,
        save_bank=clustering.weight > 0 or stops,
        distillation=Distillation.of(find_backbone(model), settings),
        bank_iterations=clustering.bank_iterations if clustering.bank == "recent" else 0,
        restarts=clustering.kmeans.restarts,
        warm_start=clustering.kmeans.warm_start,
        backend=clustering.kmeans.backend,
        seed=seed,
        sigma2_floor=clustering.sigma2_floor,
        scaling=clustering.scaling,
        partition=clustering.partition,
        stability=clustering.stability,
        labels=KnownLabels.from_file(clustering.labels) if clustering.labels else None,
    )


def _check_bank(clustering: ClusteringSettings, batch_size: int, cluster: bool) -> None:
    bank, experts, key = clustering.bank, clustering.num_experts, clustering.KEY
    if cluster and bank in ("subset", "exact"):
        raise ConfigError(
            f'{key}.BANK "{bank}" passes over training images, which a model cannot do from its '
            "forward; use divdr.engine.ClusteringHook"
        )
    seen = clustering.bank_iterations * batch_size
    if bank == "recent" and seen < experts:
        raise ConfigError(
            f"{key}.BANK_ITERATIONS must be 1 or more and see {experts} images, one for each "
            f"expert, but {clustering.bank_iterations} iterations see {max(0, seen)}"
        )
    if bank == "subset" and max(1, experts) > clustering.bank_images:
        raise ConfigError(
            f"{key}.BANK_IMAGES must be at least the number of experts, {experts}, not "
            f"{clustering.bank_images}"
        )


def _cost_target(budget: BudgetSettings, max_iter: int) -> CostTarget | None:
    """What the real cost is driven to; None if to nothing."""
    ends = {"FIX_ROUTE": budget.fix_route, "FREEZE_GATES": budget.freeze_gates}
    set_ends = {f"{budget.KEY}.{k}": to_iterations(v, max_iter) for k, v in ends.items() if v}
    if budget.target_share == 0 and budget.target_gflops == 0:
        for key in set_ends:
            raise ConfigError(f"{key} keeps routes of a cost: set TARGET_SHARE or TARGET_GFLOPS")
        return None
    if len(set_ends) > 1:
        raise ConfigError(f"{' and '.join(set_ends)}: a route for all, or one for each image")
    start = to_iterations(budget.target_start, max_iter)
    ramp = to_iterations(budget.target_ramp, max_iter)
    for key, iteration in set_ends.items():
        if iteration < start + ramp:
            raise ConfigError(
                f"{key} is iteration {iteration}, before the cost target has come down "
                f"(TARGET_START and TARGET_RAMP: iteration {start + ramp})"
            )
    return CostTarget(
        share=budget.target_share,
        gflops=budget.target_gflops,
        start=start,
        ramp=ramp,
        gain=budget.target_gain,
        memory=budget.target_memory,
        temperature=budget.target_temperature,
    )


def periods_from_config(cfg: CfgNode) -> Periods:
    """When ``cfg.MODEL.ROUTING.CLUSTERING`` clusters.

    Raises:
        ConfigError: a setting is out of its range.
    """
    return _periods(ClusteringSettings.of(cfg.MODEL.ROUTING.CLUSTERING), cfg.SOLVER.MAX_ITER)


def _periods(clustering: ClusteringSettings, max_iter: int) -> Periods:
    start = to_iterations(clustering.start, max_iter)
    return Periods(start, clustering.period, clustering.period_growth)


def attached_routing(model: nn.Module) -> RoutingSupervision | None:
    """What is attached to a model (or to the one inside a DDP wrapper); None if nothing is."""
    return getattr(unwrap(model), _ATTRIBUTE, None)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a DDP wrapper, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
