"""Collaboration of Experts as a box head: a light delegator, and an expert for what it doubts.

"Collaboration of Experts: Achieving 80% Top-1 Accuracy on ImageNet with 100M FLOPs", Section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ...errors import ConfigError
from ...moe import (
    Cost,
    Lesson,
    TeachingSettings,
    gather_rows,
    one_hot_choice,
    process_count,
    run_groups,
    teach,
)
from ...routing import to_iterations
from ...settings import BoxCollaborationSettings
from ..neck_cost import module_macs
from .expert import BoxExpert, BoxTargets, ExpertPass, expert_losses
from .layers import BoxLayers
from .mixture_roi_heads import BoxMixture, BoxPrediction


@dataclass
class CoEBoxSettings:
    """When experts train and when they run.

    Attributes:
        threshold: τ; a proposal whose delegated scores reach no higher maximum class probability
            goes on to an expert. 1 sends all, 0 none. It can be changed at any time.
        start: iteration of the second stage, from which on selector and experts train.
        max_iter: iterations of the whole training.
        teaching: LGM, WGM and SRM.
        selector_weight: η (Eq. 8).
        freeze_delegator: the paper's second stage, in which the delegator learns no more.

    Raises:
        ConfigError: τ is not within 0 and 1.
    """

    threshold: float = BoxCollaborationSettings.threshold
    start: int = 0
    max_iter: int = 1
    teaching: TeachingSettings = field(default_factory=TeachingSettings)
    selector_weight: float = BoxCollaborationSettings.selector_weight
    freeze_delegator: bool = BoxCollaborationSettings.freeze_delegator

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(
                f"the delegator's threshold τ must be between 0 and 1, not {self.threshold}"
            )

    def alpha_at(self, iteration: int) -> float:
        """α of Eq. 5, linear over the second stage."""
        length = max(1, self.max_iter - 1 - self.start)
        return self.teaching.alpha_at((iteration - self.start) / length)


@ROI_BOX_HEAD_REGISTRY.register()
class CoEBoxHead(BoxMixture):
    """The delegator classifies every proposal; those that it doubts go on to one expert each.

    Delegator: layers, the ROI heads' own box predictor (its task predictor, of classes and boxes)
    and the expert selector. Boxes come from where the scores come from, the expert if one ran.

    Args:
        delegator: pooled features to a vector.
        experts: E whole box heads, equal or not.
        settings: see there.
        in_shape: of the pooled features.

    Raises:
        ConfigError: there are no experts.
    """

    @configurable
    def __init__(
        self,
        *,
        delegator: BoxLayers,
        experts: Sequence[BoxExpert],
        settings: CoEBoxSettings,
        in_shape: ShapeSpec,
    ) -> None:
        super().__init__()
        if not experts:
            raise ConfigError("MODEL.ROI_BOX_HEAD.COE.EXPERTS must be at least 1, not 0")
        self.in_shape = in_shape
        self.output_shape = delegator.output_shape
        self.settings = settings
        self.delegator = delegator
        self.selector = nn.Linear(self.output_shape.channels, len(experts))
        self.experts = nn.ModuleList(experts)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from ``cfg.MODEL.ROI_BOX_HEAD.COE``.

        Raises:
            ConfigError: a setting is out of its range, or scores are not a softmax.
        """
        coe, norm = cfg.MODEL.ROI_BOX_HEAD.COE, cfg.MODEL.ROI_BOX_HEAD.NORM
        if cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE"):  # Detectron2 0.6 has no such key
            raise ConfigError(
                "CoEBoxHead compares class probabilities, which USE_SIGMOID_CE does not give"
            )
        for key in ("DELEGATOR_FC_DIMS", "EXPERT_FC_DIMS"):
            if not coe[key]:
                raise ConfigError(
                    f"MODEL.ROI_BOX_HEAD.COE.{key} must name at least one linear layer"
                )

        def expert() -> BoxExpert:
            layers = BoxLayers(input_shape, coe.EXPERT_CONV_DIMS, coe.EXPERT_FC_DIMS, norm=norm)
            return BoxExpert(layers, FastRCNNOutputLayers(cfg, layers.output_shape))

        max_iter = cfg.SOLVER.MAX_ITER
        return {
            "delegator": BoxLayers(
                input_shape,
                coe.DELEGATOR_CONV_DIMS,
                coe.DELEGATOR_FC_DIMS,
                kernel=coe.DELEGATOR_KERNEL,
                norm=norm,
            ),
            "experts": [expert() for _ in range(coe.EXPERTS)],
            "settings": CoEBoxSettings(
                threshold=coe.THRESHOLD,
                start=to_iterations(coe.START, max_iter),
                max_iter=max_iter,
                teaching=TeachingSettings(alpha=tuple(coe.ALPHA)),
                selector_weight=coe.SELECTOR_WEIGHT,
                freeze_delegator=coe.FREEZE_DELEGATOR,
            ),
            "in_shape": input_shape,
        }

    def predict(self, pooled: Tensor, predictor: FastRCNNOutputLayers) -> BoxPrediction:
        """Section 3.1: early termination, then each expert on the proposals that it got."""
        rough = self.delegator(pooled)
        scores, deltas = predictor(rough)
        certain = scores.float().softmax(1).amax(1) > self.settings.threshold
        chosen = self.selector(rough).argmax(1).masked_fill(certain, -1)
        ran = one_hot_choice(chosen, len(self.experts))
        both = torch.cat([scores, deltas], dim=1)
        for group in run_groups(self.experts, pooled, ran):
            both = both.index_copy(0, group.rows, group.output.to(both.dtype))
        scores, deltas = both.split([scores.shape[1], deltas.shape[1]], dim=1)
        return BoxPrediction(scores, deltas, ran)

    def losses(
        self, pooled: Tensor, predictor: FastRCNNOutputLayers, proposals: list[Instances]
    ) -> tuple[BoxPrediction, dict[str, Tensor]]:
        """The delegator's losses, and in the second stage those of selector and experts.

        ``loss_cls`` and ``loss_box_reg`` are the delegator's, ``loss_selector`` Eq. 9 by η, which
        reaches the selector alone, ``loss_expert_cls`` and ``loss_expert_box_reg`` Eq. 10, which
        reach all experts. Into the shared maps their gradient counts as one expert's. The sums of
        the second stage go over the proposals of all processes together, which all have to call.

        Returns:
            What the delegator predicts, and the losses.
        """
        settings = self.settings
        iteration = get_event_storage().iter
        second = iteration >= settings.start
        frozen = second and settings.freeze_delegator
        if frozen:
            self.delegator.eval()  # BatchNorm's statistics as well
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            rough = self.delegator(pooled)
            scores, deltas = predictor(rough)
        ran = torch.full((len(pooled), len(self.experts)), second, device=pooled.device)
        prediction = BoxPrediction(scores, deltas, ran)
        losses = {}
        if not frozen:
            losses = predictor.losses((scores, deltas), proposals)
        if second:
            logits = self.selector(rough.detach())
            targets = BoxTargets.of(proposals)
            losses |= self._second_stage(logits, pooled, targets, settings.alpha_at(iteration))
        return prediction, losses

    def _second_stage(
        self, logits: Tensor, pooled: Tensor, targets: BoxTargets, alpha: float
    ) -> dict[str, Tensor]:
        shared = pooled.view_as(pooled)
        if shared.requires_grad:
            # E experts see every proposal in training and one in evaluation; without this the
            # maps below would learn E times as fast as under a plain head.
            shared.register_hook(lambda gradient: gradient / len(self.experts))
        passes = [ExpertPass.of(expert, shared, targets) for expert in self.experts]
        true_class = torch.stack([each.true_class for each in passes], dim=1)
        lesson = self._lesson(true_class, logits.detach().float().softmax(1), alpha)
        each = F.cross_entropy(logits.float(), lesson.labels, reduction="none")
        selection = (lesson.selection_weights.float() * each).sum()
        losses = {
            "loss_selector": self.settings.selector_weight * selection,
            **expert_losses(passes, lesson.expert_weights.float(), targets),
        }
        # DDP averages gradients over the processes; the sums of Eq. 9 and 10 go over all of them.
        return {name: process_count() * loss for name, loss in losses.items()}

    def _lesson(self, true_class: Tensor, probabilities: Tensor, alpha: float) -> Lesson:
        """The lesson of this process's proposals, from those of all; (M, E) both."""
        together, own = gather_rows(torch.cat([true_class, probabilities], dim=1))
        true_class, probabilities = together.chunk(2, dim=1)
        lesson = teach(true_class, probabilities, alpha, self.settings.teaching)
        return Lesson(*(part[own] for part in lesson))

    def embed(self, pooled: Tensor) -> Tensor:
        """(N, D) the delegator's features."""
        return self.delegator(pooled)

    def cost(self, predictor: nn.Module) -> Cost:
        """Delegator, its predictor and the selector always, each expert if it runs."""
        shape = (self.in_shape.channels, self.in_shape.height, self.in_shape.width)
        width = (self.output_shape.channels,)
        shared = module_macs(self.delegator, shape)
        shared += module_macs(predictor, width) + module_macs(self.selector, width)
        return Cost(shared, tuple(module_macs(expert, shape) for expert in self.experts))
