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
from .backbone import DynamicRouting, find_backbone
from .supervision import ClusteringLossSettings, RoutingSupervision

_ATTRIBUTE = "_divdr_routing"

BANKS = ("latest", "recent", "subset", "exact")


def attach_routing(
    model: nn.Module,
    *,
    num_experts: int = 0,
    clustering: ClusteringLossSettings | None = None,
    budget: Ramp | None = None,
    budget_target: float = 0.1,
    budget_per: str = "image",
    periods: Periods | None = None,
    cost_target: CostTarget | None = None,
    save_bank: bool = True,
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
    if find_backbone(model).network.initial.gate is None:
        raise ConfigError('a cost target needs gates to steer, and MODEL.ROUTING.GATE is "none"')


def with_routing(model: nn.Module, **settings: Any) -> nn.Module:
    """The model itself, with routing attached: for LazyConfig, whose models are calls.

    Args:
        model: a Detectron2 model with one ``DynamicRouting`` backbone.
        settings: of :func:`attach_routing`.

    Raises:
        ValueError: see :func:`attach_routing`.
    """
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
    if not any(isinstance(m, DynamicRouting) for m in model.modules()):
        return None
    routing = cfg.MODEL.ROUTING
    settings = routing.CLUSTERING
    if settings.GATES not in ("after", "before"):
        raise ConfigError(
            f'MODEL.ROUTING.CLUSTERING.GATES must be "after" or "before", not {settings.GATES!r}'
        )
    _check_bank(cfg, cluster)
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
            update_bank=settings.BANK in ("latest", "recent"),
        ),
        budget=Ramp(
            budget.WEIGHT,
            to_iterations(budget.START, max_iter),
            to_iterations(budget.RAMP, max_iter),
        ),
        budget_target=budget.TARGET,
        budget_per=budget.PER,
        cost_target=cost_target_from_config(cfg),
        periods=periods_from_config(cfg) if cluster else None,
        # A run that stops to be continued, as those that studies fork, hands its bank on.
        save_bank=settings.WEIGHT > 0 or 0 < cfg.SOLVER.STOP_ITER < max_iter,
        bank_iterations=settings.BANK_ITERATIONS if settings.BANK == "recent" else 0,
        restarts=settings.KMEANS.RESTARTS,
        warm_start=settings.KMEANS.WARM_START,
        backend=settings.KMEANS.BACKEND,
        seed=max(0, cfg.SEED),
        sigma2_floor=settings.SIGMA2_FLOOR,
        scaling=settings.SCALING,
        partition=settings.PARTITION,
        stability=settings.STABILITY,
        labels=KnownLabels.from_file(settings.LABELS) if settings.LABELS else None,
    )


def _check_bank(cfg: CfgNode, cluster: bool) -> None:
    settings = cfg.MODEL.ROUTING.CLUSTERING
    bank, experts = settings.BANK, settings.NUM_EXPERTS
    if bank not in BANKS:
        raise ConfigError(
            f"MODEL.ROUTING.CLUSTERING.BANK must be one of {', '.join(BANKS)}, not {bank!r}"
        )
    if cluster and bank in ("subset", "exact"):
        raise ConfigError(
            f'MODEL.ROUTING.CLUSTERING.BANK "{bank}" passes over training images, which a model '
            "cannot do from its forward; use divdr.engine.ClusteringHook"
        )
    seen = settings.BANK_ITERATIONS * cfg.SOLVER.IMS_PER_BATCH
    if bank == "recent" and (settings.BANK_ITERATIONS < 1 or seen < experts):
        raise ConfigError(
            f"MODEL.ROUTING.CLUSTERING.BANK_ITERATIONS must be 1 or more and see {experts} images, "
            f"one for each expert, but {settings.BANK_ITERATIONS} iterations see {max(0, seen)}"
        )
    if bank == "subset" and max(1, experts) > settings.BANK_IMAGES:
        raise ConfigError(
            f"MODEL.ROUTING.CLUSTERING.BANK_IMAGES must be at least the number of experts, "
            f"{experts}, not {settings.BANK_IMAGES}"
        )


def cost_target_from_config(cfg: CfgNode) -> CostTarget | None:
    """What ``cfg.MODEL.ROUTING.BUDGET`` drives the real cost to; None if to nothing.

    Raises:
        ConfigError: a setting is out of its range.
    """
    budget, max_iter = cfg.MODEL.ROUTING.BUDGET, cfg.SOLVER.MAX_ITER
    if budget.TARGET_SHARE == 0 and budget.TARGET_GFLOPS == 0:
        return None
    return CostTarget(
        share=budget.TARGET_SHARE,
        gflops=budget.TARGET_GFLOPS,
        start=to_iterations(budget.TARGET_START, max_iter),
        ramp=to_iterations(budget.TARGET_RAMP, max_iter),
        gain=budget.TARGET_GAIN,
        memory=budget.TARGET_MEMORY,
        temperature=budget.TARGET_TEMPERATURE,
    )


def periods_from_config(cfg: CfgNode) -> Periods:
    """When ``cfg.MODEL.ROUTING.CLUSTERING`` clusters.

    Raises:
        ConfigError: a setting is out of its range.
    """
    settings = cfg.MODEL.ROUTING.CLUSTERING
    start = to_iterations(settings.START, cfg.SOLVER.MAX_ITER)
    return Periods(start, settings.PERIOD, settings.PERIOD_GROWTH)


def attached_routing(model: nn.Module) -> RoutingSupervision | None:
    """What is attached to a model (or to the one inside a DDP wrapper); None if nothing is."""
    return getattr(unwrap(model), _ATTRIBUTE, None)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a DDP wrapper, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
