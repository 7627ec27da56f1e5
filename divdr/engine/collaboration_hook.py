"""Takes a Collaboration of Experts through its stages."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from ..modeling import unwrap
from ..modeling.classifiers import collaboration_of, first_stage, prepare_collaboration
from ..moe import PWLU, align
from ..routing import to_iterations
from .agreement import together

logger = logging.getLogger(__name__)


class CollaborationHook(HookBase):
    """Tells the system how far training is, and realigns PWLUs when they have seen enough.

    Other models are left alone.

    Args:
        cfg: the whole configuration.
        model: what is trained.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.cfg = cfg
        self.system = collaboration_of(unwrap(model))
        self.functions = [m for m in model.modules() if isinstance(m, PWLU)]

    def before_train(self) -> None:
        """Take over delegator and teacher.

        Raises:
            DivdrError: a setting or a file cannot be used; the message says why.
        """
        if self.system is not None:
            together(prepare_collaboration, self.cfg, self.system)

    def before_step(self) -> None:
        """Set stage and α by the iteration."""
        if self.system is None:
            return
        done, whole = self.trainer.iter, self.cfg.SOLVER.MAX_ITER
        start = first_stage(self.cfg)
        if done == start:
            logger.info("From here on the expert selector and the experts train")
        self.system.progress = done / whole
        wait = to_iterations(self.cfg.MODEL.CLASSIFIER.COE.PWLU_STATISTICS, whole - start)
        if done >= start + wait:
            # Those that are done are asked no more: on a GPU each question waits for the device.
            self.functions = [f for f in self.functions if not bool(f.aligned)]
            align(self.functions)
