"""Optimizer, learning rate schedule and mixed precision, with the additions of divdr's recipe."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    PolynomialDecayParamScheduler,
)
from torch import Tensor, nn

from ..errors import ConfigError
from ..routing import to_iterations
from ..settings import OptimizerSettings, PrecisionSettings


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as Detectron2 builds it, Adam or AdamW, plus ``SOLVER.GATE_LR_FACTOR`` and clipping of
    the norm of all gradients together (``CLIP_GRADIENTS.CLIP_TYPE: full_model``).

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
    clip = solver.CLIP_GRADIENTS
    if not (clip.ENABLED and clip.CLIP_TYPE == "full_model"):
        return maybe_add_gradient_clipping(cfg, optimizer)

    def clip_all(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        tensors = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(tensors, clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_all)
    return optimizer


def is_gate_parameter(name: str) -> bool:
    """Whether a parameter of a routed model belongs to a gate."""
    return ".gate." in name and "network." in name


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


AMP_DTYPES = {name: getattr(torch, name) for name in PrecisionSettings.choices("dtype")}


class StepTrainer(SimpleTrainer):
    """Detectron2's training loop, in which processes may have different losses.

    With several tasks a process may train one and another process another in the same step.
    """

    def _write_metrics(
        self,
        loss_dict: Mapping[str, Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,  # as Detectron2 calls it
    ) -> None:
        """A loss is logged as the mean over the processes that have it, their sum as that over all.

        Raises:
            FloatingPointError: the sum is not finite.
        """
        at = self.iter if iter is None else iter
        if (at + 1) % getattr(self, "gather_metric_period", 1):  # which Detectron2 0.6 lacks
            return
        own = {name: float(value.detach()) for name, value in loss_dict.items()}
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time)
        gathered = comm.gather((own, data_time))
        if not comm.is_main_process():
            return
        every = [losses for losses, _ in gathered]
        total = sum(sum(losses.values()) for losses in every) / len(every)
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss of iteration {at} is not finite: {every}")
        storage.put_scalar("data_time", max(seconds for _, seconds in gathered))
        storage.put_scalar(f"{prefix}total_loss", total)
        names = dict.fromkeys(name for losses in every for name in losses)
        for name in names if len(names) > 1 else ():
            values = [losses[name] for losses in every if name in losses]
            storage.put_scalar(name, sum(values) / len(values))


class MixedPrecisionTrainer(StepTrainer):
    """Detectron2's training loop under autocast, with scaled gradients where float16 needs them.

    Its ``AMPTrainer`` does the same on CUDA alone.

    Args:
        model: the model, perhaps wrapped for several processes.
        data_loader: gives its inputs.
        optimizer: of its parameters.
        dtype: "float16", or "bfloat16", which needs no scaling.

    Raises:
        ConfigError: another ``dtype``.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        dtype: str = PrecisionSettings.dtype,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        if dtype not in AMP_DTYPES:
            raise ConfigError(
                f"SOLVER.AMP.DTYPE must be one of {', '.join(AMP_DTYPES)}, not {dtype!r}"
            )
        self.dtype = AMP_DTYPES[dtype]
        self._device = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self._device, enabled=dtype == "float16")

    def run_step(self) -> None:
        """One iteration; it moves no weight where a gradient is not finite, but scales by less."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self._device, dtype=self.dtype):
            losses = self.model(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        if hasattr(self, "after_backward"):  # Detectron2 0.6 has no such moment
            self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, and the scale."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, in this or the other precision."""
        super().load_state_dict(state_dict)
        scaler = state_dict.get("grad_scaler")
        if scaler and self.grad_scaler.is_enabled():  # bfloat16 leaves none
            self.grad_scaler.load_state_dict(scaler)
