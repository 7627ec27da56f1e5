"""Optimizer and learning rate schedule, with the additions of divdr's recipe."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    PolynomialDecayParamScheduler,
)
from torch import nn

from ..errors import ConfigError
from ..modeling import READ_EVERY
from ..routing import to_iterations
from ..settings import OptimizerSettings


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as Detectron2 builds it, Adam or AdamW, plus ``SOLVER.GATE_LR_FACTOR`` and clipping of
    the norm of all gradients together (``CLIP_GRADIENTS.CLIP_TYPE: full_model``).

    It is fused on a CPU, and where losses are looked at less often than every iteration: only fused
    optimisers of PyTorch's can skip a step by a flag of the device.

    Raises:
        ConfigError: ``SOLVER.OPTIMIZER`` is unknown.
    """
    solver = cfg.SOLVER
    factor = solver.GATE_LR_FACTOR
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: factor if is_gate_parameter(name) else 1.0,
    )
    common: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    # One kernel for all weights, an eighth of a loop's time.
    if cfg.MODEL.DEVICE == "cpu" or loss_check_period(cfg) > 1:
        common["fused"] = True
    optimizer: torch.optim.Optimizer
    name = solver.get("OPTIMIZER", OptimizerSettings.optimizer)  # a key of Panoptic-DeepLab
    if name == "SGD":
        optimizer = torch.optim.SGD(
            parameters, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **common
        )
    elif name == "ADAM":
        optimizer = torch.optim.Adam(parameters, **common)
    elif name == "ADAMW":
        optimizer = torch.optim.AdamW(parameters, **common)
    else:
        known = ", ".join(OptimizerSettings.choices("optimizer"))
        raise ConfigError(f"SOLVER.OPTIMIZER must be one of {known}, not {name!r}")
    if common.get("fused") and name == "SGD" and solver.MOMENTUM:
        optimizer.register_step_pre_hook(_start_momentum)
    clip = solver.CLIP_GRADIENTS
    if not (clip.ENABLED and clip.CLIP_TYPE == "full_model"):
        return maybe_add_gradient_clipping(cfg, optimizer)

    def clip_all(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        tensors = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(tensors, clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_all)
    return optimizer


def _start_momentum(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Give weights momentum of 0 before their first step, which is what that step makes of it.

    PyTorch's fused SGD fails where some weights of a group have momentum and others get their first
    gradient, and takes memory as it finds it if a flag of the device skips a first step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def loss_check_period(cfg: CfgNode) -> int:
    """Iterations between looks at the losses, by ``SOLVER.LOSS_CHECK_PERIOD`` and the device.

    On a CPU nobody waits for them, so that every iteration looks unless the key says otherwise.
    """
    period = cfg.SOLVER.LOSS_CHECK_PERIOD
    return period or (1 if cfg.MODEL.DEVICE == "cpu" else READ_EVERY)


def is_gate_parameter(name: str) -> bool:
    """Whether a parameter of a routed model belongs to a gate."""
    return "network." in name and (".gate." in name or ".early." in name)


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """Detectron2's schedules, and three more.

    "WarmupPolyLR" is (1 − i / MAX_ITER)^``POLY_LR_POWER``, "WarmupStepFactorsLR" takes the values
    of ``STEP_FACTORS`` at ``STEPS``, "WarmupCosineRestartsLR" is a cosine that starts anew at each
    of ``RESTARTS`` (without any, ``Trainer`` takes the starts of the model's stages).

    Raises:
        ConfigError: the name is unknown, steps and factors differ in number, or restarts do not
            follow each other.
    """
    solver = cfg.SOLVER
    schedule: ParamScheduler
    if solver.LR_SCHEDULER_NAME == "WarmupPolyLR":
        schedule = PolynomialDecayParamScheduler(1.0, solver.POLY_LR_POWER)
    elif solver.LR_SCHEDULER_NAME == "WarmupStepFactorsLR":
        schedule = _steps(cfg)
    elif solver.LR_SCHEDULER_NAME == "WarmupCosineRestartsLR":
        schedule = _restarts(cfg)
    else:
        try:
            return build_detectron2_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise ConfigError(f"SOLVER.LR_SCHEDULER_NAME: {error}") from None
    warmed = WarmupParamScheduler(
        schedule,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, warmed, max_iter=solver.MAX_ITER)


def with_restarts(cfg: CfgNode, starts: Iterable[int]) -> CfgNode:
    """The configuration with ``RESTARTS`` where a model's stages begin, if it names none itself.

    Args:
        cfg: the whole configuration; it is not changed.
        starts: iterations.
    """
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupCosineRestartsLR" or len(cfg.SOLVER.RESTARTS):
        return cfg
    restarting = cfg.clone()
    restarting.defrost()
    restarting.SOLVER.RESTARTS = [float(start) for start in starts]
    return restarting


def advance(scheduler: torch.optim.lr_scheduler.LRScheduler, iterations: int) -> None:
    """Put a new schedule, and the learning rates of its optimiser, where it is so much later."""
    if not iterations:
        return
    scheduler.last_epoch = iterations
    rates = scheduler.get_lr()
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = list(rates)


def _steps(cfg: CfgNode) -> ParamScheduler:
    solver = cfg.SOLVER
    if len(solver.STEP_FACTORS) != len(solver.STEPS):
        raise ConfigError(
            f"SOLVER.STEP_FACTORS needs one number for each of the {len(solver.STEPS)} STEPS, not "
            f"{len(solver.STEP_FACTORS)}"
        )
    # As Detectron2 does it: steps after the end count for nothing.
    pairs = zip(solver.STEPS, solver.STEP_FACTORS, strict=True)
    taken = [(step, factor) for step, factor in pairs if step < solver.MAX_ITER]
    return MultiStepParamScheduler(
        values=[1.0, *(factor for _, factor in taken)],
        milestones=[step for step, _ in taken],
        num_updates=solver.MAX_ITER,
    )


def _restarts(cfg: CfgNode) -> ParamScheduler:
    whole = cfg.SOLVER.MAX_ITER
    bounds = [0, *(to_iterations(value, whole) for value in cfg.SOLVER.RESTARTS), whole]
    lengths = [end - start for start, end in pairwise(bounds)]
    if min(lengths) < 1:
        raise ConfigError(
            f"SOLVER.RESTARTS {list(cfg.SOLVER.RESTARTS)} must grow, between 0 and the end of "
            f"training at {whole}"
        )
    if len(lengths) == 1:
        return CosineParamScheduler(1.0, 0.0)
    return CompositeParamScheduler(
        [CosineParamScheduler(1.0, 0.0) for _ in lengths],
        [length / whole for length in lengths],
        ["rescaled"] * len(lengths),
    )
