"""Importance and load losses for any Detectron2 model whose backbone chooses experts, by one call.

:func:`attach_expert_balance` puts a forward hook on a built model. In training the model's loss
dict gains ``loss_importance`` and ``loss_load``; in evaluation each image's output gains
``experts``, the (ΣE,) bool of what ran for it. The model's state dict stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..moe import Balance, Decision
from ..settings import OpGateSettings, RoutedResNetSettings
from .attach import unwrap
from .backbone import DynamicRouting
from .expert_record import ExpertRecord, ExpertRouting, expert_parts
from .late_figures import put_later

_ATTRIBUTE = "_divdr_expert_balance"


class ExpertSupervision:
    """What :func:`attach_expert_balance` attaches: losses, records, and the state behind them.

    Attributes:
        part: the backbone that chooses.
        balance: sums of the last steps.
        weight: of the losses, at the start and at the end of training.
        iterations: of the whole training.
    """

    def __init__(
        self, part: ExpertRouting, balance: Balance, weight: Sequence[float], iterations: int
    ) -> None:
        self.part = part
        self.balance = balance
        self.weight = tuple(weight)
        self.iterations = max(1, iterations)
        self._steps = 0

    @property
    def decisions(self) -> Sequence[Decision]:
        """What the backbone chooses."""
        return self.part.expert_decisions

    @property
    def record(self) -> ExpertRecord | None:
        """Of the last forward."""
        return self.part.expert_record

    def state_dict(self) -> dict[str, Any]:
        """The sums of the last steps, and how many there were."""
        return {"steps": self._steps, "balance": dict(self.balance.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is of other experts, or of sums over another number of steps.
        """
        found = tuple(state["balance"]["past"].shape)
        own = tuple(self.balance.past.shape)
        if found != own:
            raise CheckpointError(
                f"the checkpoint's sums of experts are of {found[2]} experts and {found[0] + 1} "
                f"steps, this model's of {own[2]} and {own[0] + 1}"
            )
        self._steps = int(state["steps"])
        self.balance.load_state_dict(state["balance"])

    def weight_at(self, iteration: int) -> float:
        """Weight of the losses, linear over training."""
        start, end = self.weight
        return start + (end - start) * min(1.0, iteration / self.iterations)

    def before_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forget the last record, so that it is never taken for this forward's."""
        self.part.forget_experts()

    def after_forward(
        self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Add losses or records to what the model returns; in training a collective call."""
        record = self.record
        if record is None:
            return output
        if model.training and isinstance(output, dict):
            return {**output, **self._losses(record)}
        if isinstance(output, list) and len(output) == len(record):
            for result, ran in zip(output, record.ran, strict=True):
                if isinstance(result, dict):
                    result["experts"] = ran
        return output

    def _losses(self, record: ExpertRecord) -> dict[str, Tensor]:
        storage = _storage()
        iteration = storage.iter if storage is not None else self._steps
        # Passes without gradients (precise BatchNorm) are no training and leave no trace.
        if not torch.is_grad_enabled():
            return {}
        self._steps = iteration + 1
        self.balance.to(record.ran.device)
        found = self.balance(record.weights, record.loads)
        if storage is not None:
            put_later(storage, ("train/importance", "train/load"), torch.stack(list(found)))
        weight = self.weight_at(iteration)
        return {"loss_importance": weight * found.importance, "loss_load": weight * found.load}


def _storage() -> EventStorage | None:
    try:
        return get_event_storage()
    except AssertionError:  # outside of a trainer's loop there is none
        return None


def attach_expert_balance(
    model: nn.Module,
    *,
    weight: Sequence[float] = RoutedResNetSettings.balance_weight,
    steps: int = RoutedResNetSettings.balance_steps,
    iterations: int = 1,
) -> ExpertSupervision:
    """Attach importance and load losses to a built model (before it is wrapped for DDP).

    Args:
        model: with one backbone that chooses experts (``ExpertRouting``), wherever it sits.
        weight: of both losses, at the start and at the end of training.
        steps: M, whose images the losses sum over, see ``divdr.moe.Balance``.
        iterations: of the whole training.

    Returns:
        The attached object; its state belongs into the checkpointer.

    Raises:
        ValueError: the model has no such backbone, or several, or losses are attached already.
        ConfigError: the weight is not two numbers, or there are no steps.
    """
    if len(weight) != 2:
        raise ConfigError(
            "the weight of the balance losses is two numbers, at the start and at the end, not "
            f"{len(weight)}"
        )
    if attached_experts(model) is not None:
        raise ValueError("losses of experts are attached to this model already")
    parts = expert_parts(model)
    if len(parts) != 1:
        raise ValueError(f"the model has {len(parts)} backbones that choose experts; one is needed")
    balance = Balance([len(each.experts) for each in parts[0].expert_decisions], steps)
    supervision = ExpertSupervision(parts[0], balance, weight, iterations)
    setattr(model, _ATTRIBUTE, supervision)
    model.register_forward_pre_hook(supervision.before_forward, with_kwargs=True)
    model.register_forward_hook(supervision.after_forward, with_kwargs=True)
    return supervision


def attach_expert_balance_from_config(model: nn.Module, cfg: CfgNode) -> ExpertSupervision | None:
    """Attach as the settings of the model's backbone say; None where nothing chooses experts.

    Args:
        model: a Detectron2 model.
        cfg: with divdr's keys.

    Raises:
        ConfigError: a setting is out of its range.
    """
    parts = expert_parts(model)
    if not parts:
        return None
    settings: OpGateSettings | RoutedResNetSettings
    if isinstance(parts[0], DynamicRouting):
        settings = OpGateSettings.of(cfg.MODEL.ROUTING.OP_GATE)
    else:
        settings = RoutedResNetSettings.of(cfg.MODEL.ROUTED_RESNET)
    return attach_expert_balance(
        model,
        weight=settings.balance_weight,
        steps=settings.balance_steps,
        iterations=cfg.SOLVER.MAX_ITER,
    )


def attached_experts(model: nn.Module) -> ExpertSupervision | None:
    """What is attached to a model (or to the one inside a DDP wrapper); None if nothing is."""
    return getattr(unwrap(model), _ATTRIBUTE, None)
