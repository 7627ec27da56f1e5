"""Several tasks over one backbone, whose gates may know an image's task.

Ramachandran & Le train one routed network on twenty tasks of classification (Section 4.2); here
each task has the heads of an architecture of Detectron2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    GeneralizedRCNN,
    SemanticSegmentor,
    build_backbone,
    build_proposal_generator,
    build_roi_heads,
    build_sem_seg_head,
)
from torch import Tensor, nn

from ..config import task_config
from ..errors import DataError
from .routed_resnet import RoutedResNet


@META_ARCH_REGISTRY.register()
class MultiTask(nn.Module):
    """One backbone, and for each task its own heads; a batch is of one task.

    An image says its task by its number, as "task" in its dict. Losses and predictions are those of
    the task's architecture. A task's heads get no gradient from batches of another.

    Args:
        backbone: of all tasks.
        tasks: models of the tasks, built over this backbone; each keeps all of its parts but that.

    Attributes:
        leaves_parameters_out: DDP has to look for the heads of other tasks.
    """

    leaves_parameters_out = True

    @configurable
    def __init__(self, *, backbone: Backbone, tasks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.tasks = nn.ModuleList(tasks)
        for task in tasks:
            # One module under one name: state dicts hold the backbone once.
            del task._modules["backbone"]
            task.__dict__["backbone"] = backbone
        self._routed = [m for m in backbone.modules() if isinstance(m, RoutedResNet)]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``cfg.MODEL.MULTI_TASK``, and the keys of each task's architecture.

        Raises:
            ConfigError: settings do not suit each other.
        """
        backbone = build_backbone(cfg)
        count = len(cfg.MODEL.MULTI_TASK.ARCHITECTURES)
        tasks = [_over(backbone, task_config(cfg, task)) for task in range(count)]
        return {"backbone": backbone, "tasks": tasks}

    @property
    def device(self) -> Any:
        """Where it is."""
        return next(self.parameters()).device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict]:
        """Losses of the batch's task in training, its predictions otherwise.

        Args:
            batched_inputs: as the task's architecture takes them, each with its "task".

        Raises:
            DataError: an image does not say its task, or the task has no head; or the batch is of
                several.
        """
        task = self._task(batched_inputs)
        for routed in self._routed:
            routed.task = task
        return self.tasks[task](batched_inputs)

    def _task(self, batched_inputs: list[dict[str, Any]]) -> int:
        last = len(self.tasks) - 1
        found = {item.get("task") for item in batched_inputs}
        if None in found:
            raise DataError(f'an image must say its task: "task" in its dict, a number 0 to {last}')
        if len(found) > 1:
            listed = ", ".join(sorted(map(str, found)))
            raise DataError(f"a batch is of one task, and this one is of {listed}")
        (task,) = found
        if type(task) is not int or not 0 <= task <= last:
            raise DataError(f"task {task!r} has no head; the model's tasks are 0 to {last}")
        return task


def _over(backbone: Backbone, cfg: CfgNode) -> nn.Module:
    """A task's model over a backbone that is there already."""
    shapes = backbone.output_shape()
    pixels = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        head = build_sem_seg_head(cfg, shapes)
        return SemanticSegmentor(backbone=backbone, sem_seg_head=head, **pixels)
    return GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=build_proposal_generator(cfg, shapes),
        roi_heads=build_roi_heads(cfg, shapes),
        input_format=cfg.INPUT.FORMAT,
        vis_period=cfg.VIS_PERIOD,
        **pixels,
    )
