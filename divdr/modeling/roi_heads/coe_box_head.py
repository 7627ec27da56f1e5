"""Collaboration of Experts as a box head: a light delegator, and an expert for what it doubts.

"Collaboration of Experts: Achieving 80% Top-1 Accuracy on ImageNet with 100M FLOPs", Section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    DelegatorFirst,
    Lesson,
    check_probability,
    common_lesson,
    delegated,
    each_macs,
    overwrite,
    process_count,
    run_groups,
)
from ...routing import to_iterations
from ...settings import BoxCollaborationSettings
from ..neck_cost import module_macs
from .box_losses import BoxTargets, predictor_losses
from .expert import BoxExpert, ExpertPass, expert_losses
from .layers import BoxLayers
from .mixture_roi_heads import BoxMixture, BoxPrediction


@ROI_BOX_HEAD_REGISTRY.register()
class CoEBoxHead(DelegatorFirst, BoxMixture):
    """The delegator classifies every proposal; those that it doubts go on to one expert each.

    Delegator: layers, the ROI heads' own box predictor (its task predictor, of classes and boxes)
    and the expert selector. Boxes come from where the scores come from, the expert if one ran.

    Args:
        delegator: pooled features to a vector.
        experts: E whole box heads, equal or not.
        settings: τ, η and ablations; how many experts there are, ``experts`` says.
        in_shape: of the pooled features.
        delegator_share: share of training that is the first stage; from then on selector and
            experts train.
        max_iter: iterations of the whole training, for trainers that do not say how far it is.

    Attributes:
        threshold: τ; a proposal whose delegated scores reach no higher maximum class probability
            goes on to an expert. 1 sends all, 0 none. It can be changed at any time.

    Raises:
        ConfigError: there are no experts, or τ is not within 0 and 1.
    """

    settings: BoxCollaborationSettings

    @configurable
    def __init__(
        self,
        *,
        delegator: BoxLayers,
        experts: Sequence[BoxExpert],
        settings: BoxCollaborationSettings,
        in_shape: ShapeSpec,
        delegator_share: float = 0.0,
        max_iter: int = 1,
    ) -> None:
        super().__init__()
        self.check_threshold(settings.threshold)
        if not experts:
            raise ConfigError("MODEL.ROI_BOX_HEAD.COE.EXPERTS must be at least 1, not 0")
        self.in_shape = in_shape
        self.output_shape = delegator.output_shape
        self.settings = settings
        self.threshold = settings.threshold
        if not 0 <= delegator_share < 1:
            raise ConfigError(
                "MODEL.ROI_BOX_HEAD.COE.START must lie before the end of the training, not at a "
                f"share of {delegator_share}"
            )
        self.delegator_share = delegator_share
        self.max_iter = max_iter
        self._progress: float | None = None
        self.delegator = delegator
        self.selector = nn.Linear(self.output_shape.channels, len(experts))
        self.experts = nn.ModuleList(experts)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from ``cfg.MODEL.ROI_BOX_HEAD.COE``.

        Raises:
            ConfigError: a setting is out of its range, or scores are not a softmax.
        """
        settings = BoxCollaborationSettings.of(cfg.MODEL.ROI_BOX_HEAD.COE)
        norm = cfg.MODEL.ROI_BOX_HEAD.NORM
        if cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE"):  # Detectron2 0.6 has no such key
            raise ConfigError(
                "CoEBoxHead compares class probabilities, which USE_SIGMOID_CE does not give"
            )
        if not (settings.delegator_fc_dims and settings.expert_fc_dims):
            missing = "EXPERT" if settings.delegator_fc_dims else "DELEGATOR"
            raise ConfigError(
                f"MODEL.ROI_BOX_HEAD.COE.{missing}_FC_DIMS must name at least one linear layer"
            )

        def expert() -> BoxExpert:
            dims = settings.expert_conv_dims, settings.expert_fc_dims
            layers = BoxLayers(input_shape, *dims, norm=norm)
            return BoxExpert(layers, FastRCNNOutputLayers(cfg, layers.output_shape))

        max_iter = cfg.SOLVER.MAX_ITER
        return {
            "delegator": BoxLayers(
                input_shape,
                settings.delegator_conv_dims,
                settings.delegator_fc_dims,
                kernel=settings.delegator_kernel,
                norm=norm,
            ),
            "experts": [expert() for _ in range(settings.experts)],
            "settings": settings,
            "in_shape": input_shape,
            "delegator_share": to_iterations(settings.start, max_iter) / max_iter,
            "max_iter": max_iter,
        }

    @property
    def progress(self) -> float:
        """How far training is, 0 to 1; if no hook says it, by the iteration of Detectron2's log."""
        if self._progress is None:
            return get_event_storage().iter / self.max_iter
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress = value

    def check_threshold(self, threshold: float) -> None:
        """See that a τ is one.

        Raises:
            ConfigError: it is not within 0 and 1.
        """
        check_probability(threshold, "the delegator's threshold τ")

    def predict(self, pooled: Tensor, predictor: FastRCNNOutputLayers) -> BoxPrediction:
        """Section 3.1: early termination, then each expert on the proposals that it got."""
        rough = self.delegator(pooled)
        scores, deltas = predictor(rough)
        best = self.selector(rough).argmax(1)
        ran = delegated(scores, best, len(self.experts), self.threshold)
        both = torch.cat([scores, deltas], dim=1)
        both = overwrite(both, run_groups(self.experts, pooled, ran))
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
        second = not self.trains_delegator
        frozen = second and self.settings.freeze_delegator
        if frozen:
            self.delegator.eval()  # BatchNorm's statistics as well
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            rough = self.delegator(pooled)
            scores, deltas = predictor(rough)
        ran = torch.full((len(pooled), len(self.experts)), second, device=pooled.device)
        prediction = BoxPrediction(scores, deltas, ran)
        losses = {}
        if not frozen:
            losses = predictor_losses(predictor, scores, deltas, proposals)
        if second:
            logits = self.selector(rough.detach())
            targets = BoxTargets.of(proposals)
            losses |= self._second_stage(logits, pooled, targets)
        return prediction, losses

    def _second_stage(
        self, logits: Tensor, pooled: Tensor, targets: BoxTargets
    ) -> dict[str, Tensor]:
        shared = pooled.view_as(pooled)
        if shared.requires_grad:
            # E experts see every proposal in training and one in evaluation; without this the
            # maps below would learn E times as fast as under a plain head.
            shared.register_hook(lambda gradient: gradient / len(self.experts))
        passes = [ExpertPass.of(expert, shared, targets) for expert in self.experts]
        true_class = torch.stack([each.true_class for each in passes], dim=1)
        lesson = self._lesson(true_class, logits.detach().float().softmax(1))
        each = F.cross_entropy(logits.float(), lesson.labels, reduction="none")
        selection = (lesson.selection_weights.float() * each).sum()
        losses = {
            "loss_selector": self.settings.selector_weight * selection,
            **expert_losses(passes, lesson.expert_weights.float(), targets),
        }
        # DDP averages gradients over the processes; the sums of Eq. 9 and 10 go over all of them.
        return {name: process_count() * loss for name, loss in losses.items()}

    def _lesson(self, true_class: Tensor, probabilities: Tensor) -> Lesson:
        """The lesson of this process's proposals, from those of all; (M, E) both."""
        return common_lesson(true_class, probabilities, self.alpha, self.settings)

    def embed(self, pooled: Tensor) -> Tensor:
        """(N, D) the delegator's features."""
        return self.delegator(pooled)

    def cost(self, predictor: nn.Module) -> Cost:
        """Delegator, its predictor and the selector always, each expert if it runs."""
        shape = (self.in_shape.channels, self.in_shape.height, self.in_shape.width)
        width = (self.output_shape.channels,)
        shared = module_macs(self.delegator, shape)
        shared += module_macs(predictor, width) + module_macs(self.selector, width)
        return Cost(shared, each_macs(self.experts, shape, "all"))
