"""Tells a cost target's controller how fast gates move."""

from __future__ import annotations

from detectron2.engine import HookBase

from ..routing import CostController


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
