"""HydraRes and DynK-Hydra as a box head: the classification system's parts on pooled features.

DynK-Hydra: "Dynamic top-K ensemble", Complex & Intelligent Systems 2023, Sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import StandardROIHeads
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNOutputLayers
from detectron2.structures import Instances
from fvcore.nn import weight_init
from torch import Tensor, nn

from ...errors import ConfigError
from ...moe import (
    Cost,
    Group,
    NeededGroups,
    PooledGate,
    check_gating,
    check_selection,
    chosen_branches,
    each_macs,
    own_loss,
    run_groups,
    scatter_sum,
)
from ...settings import BoxHydraSettings
from ..attach import unwrap
from ..neck_cost import module_macs
from ..partition_source import PartitionSource, partition_as_set
from .box_losses import predictor_losses
from .class_branches import BranchClasses
from .layers import BoxLayers
from .mixture_roi_heads import BoxMixture, BoxPrediction


def hydra_arguments(cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
    """Arguments of ``HydraBoxHead``.

    Raises:
        ConfigError: no branches, or branches without a linear layer.
    """
    hydra = BoxHydraSettings.of(cfg.MODEL.ROI_BOX_HEAD.HYDRA)
    norm = cfg.MODEL.ROI_BOX_HEAD.NORM
    if not hydra.branch_fc_dims:
        raise ConfigError(f"{hydra.KEY}.BRANCH_FC_DIMS must name at least one linear layer")
    stem = BoxLayers(input_shape, hydra.stem_conv_dims, kernel=hydra.stem_kernel, norm=norm)
    maps, width = stem.output_shape, hydra.gater_dim
    return {
        "stem": stem,
        "branches": [
            BoxLayers(maps, hydra.branch_conv_dims, hydra.branch_fc_dims, norm=norm)
            for _ in range(hydra.branches)
        ],
        "gater": PooledGate(_trunk(maps.channels, width), width, hydra.branches),
        "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        "settings": hydra,
        "in_shape": input_shape,
    }


def _trunk(channels: int, width: int) -> nn.Module:
    """The gater's layers before its last: it looks at the mean of the stem's map."""
    layer = nn.Conv2d(channels, width, 1)
    weight_init.c2_msra_fill(layer)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), layer, nn.ReLU(inplace=True))


@ROI_BOX_HEAD_REGISTRY.register()
class HydraBoxHead(BoxMixture):
    """Runs the stem, asks the gater, runs the branches that it chose, sums and combines.

    The predictor takes scores and box deltas from the combined features: where an object ends is
    decided by the branches that know its kind, and by no branch more than by another.

    Background belongs to no cluster. The gater learns from foreground proposals alone; a branch
    learns to tell its classes from the background that the gater sends it.

    Args:
        stem: pooled features to maps.
        branches: nb modules from maps to vectors of one length.
        gater: from maps to logits over the branches.
        num_classes: C, without background.
        settings: K, τ, loss weights; how many branches there are, ``branches`` says.
        in_shape: of the pooled features.

    Attributes:
        threshold: τ in evaluation; it can be changed at any time.

    Raises:
        ConfigError: K or τ is out of range, or there are more branches than classes.
    """

    @configurable
    def __init__(
        self,
        *,
        stem: BoxLayers,
        branches: Sequence[BoxLayers],
        gater: PooledGate,
        num_classes: int,
        settings: BoxHydraSettings,
        in_shape: ShapeSpec,
    ) -> None:
        super().__init__()
        check_gating(settings, len(branches))
        self.in_shape = in_shape
        self.output_shape = branches[0].output_shape
        #: Which branch is for which classes; checkpoints keep it.
        self.classes = BranchClasses(num_classes, len(branches))
        self.settings = settings
        self.threshold = settings.threshold
        self.stem = stem
        self.branches = nn.ModuleList(branches)
        self.gater = gater
        width = self.output_shape.channels
        linear = nn.Linear(width, width)
        weight_init.c2_xavier_fill(linear)
        self.combiner = nn.Sequential(linear, nn.ReLU(inplace=True))
        specialised = len(branches) if settings.branch_weight > 0 else 0
        self.branch_heads = nn.ModuleList(
            nn.Linear(width, num_classes + 1) for _ in range(specialised)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments from ``cfg.MODEL.ROI_BOX_HEAD.HYDRA``.

        Raises:
            ConfigError: no branches, or branches without a linear layer.
        """
        return hydra_arguments(cfg, input_shape)

    def predict(self, pooled: Tensor, predictor: FastRCNNOutputLayers) -> BoxPrediction:
        """Algorithm 1 for every proposal."""
        maps = self.stem(pooled)
        chosen = self._choose(self.gater(maps))
        features = self._combine(list(run_groups(self.branches, maps, chosen)), len(pooled))
        scores, deltas = predictor(features)
        return BoxPrediction(scores, deltas, chosen)

    def losses(
        self, pooled: Tensor, predictor: FastRCNNOutputLayers, proposals: list[Instances]
    ) -> tuple[BoxPrediction, dict[str, Tensor]]:
        """Eq. 7 beside the predictor's own losses.

        ``loss_cls`` is the ensemble's (α1) and reaches, like ``loss_box_reg``, predictor, combiner,
        chosen branches and stem; ``loss_gater`` gater and stem; ``loss_branch`` the branches of the
        proposals' classes, those that got background, their extra heads and the stem. A branch's
        mean is over its proposals in all processes together.

        Raises:
            ConfigError: no partition has been set.
        """
        if not self.classes.known:
            raise ConfigError("the box head has no class partition yet: call classes.set first")
        settings = self.settings
        labels = torch.cat([p.gt_classes for p in proposals])
        maps = self.stem(pooled)
        gate_logits = self.gater(maps)
        chosen = self._choose(gate_logits)
        own = self.classes.owners(labels, chosen)
        groups = NeededGroups.of(self.branches, maps, chosen, own if self.branch_heads else None)
        scores, deltas = predictor(self._combine(groups.chosen, len(pooled)))
        losses = predictor_losses(predictor, scores, deltas, proposals)
        losses["loss_cls"] = settings.ensemble_weight * losses["loss_cls"]
        losses["loss_gater"] = settings.gater_weight * self._gater_loss(gate_logits, labels)
        if self.branch_heads:
            nothing = maps[:0].float().sum()
            found = own_loss(self.branch_heads, groups.own, labels, own, nothing)
            losses["loss_branch"] = settings.branch_weight * found
        return BoxPrediction(scores, deltas, chosen), losses

    def embed(self, pooled: Tensor) -> Tensor:
        """(N, D) combined features with all branches open, whatever the gater says."""
        maps = self.stem(pooled)
        every = torch.ones(len(pooled), len(self.branches), dtype=torch.bool, device=maps.device)
        return self._combine(list(run_groups(self.branches, maps, every)), len(pooled))

    def cost(self, predictor: nn.Module) -> Cost:
        """Stem, gater, combiner and predictor always, each branch if it runs; the extra heads
        never.
        """
        pooled, maps = _sizes(self.in_shape), _sizes(self.stem.output_shape)
        width = (self.output_shape.channels,)
        shared = module_macs(self.stem, pooled) + module_macs(self.gater, maps)
        shared += module_macs(self.combiner, width) + module_macs(predictor, width)
        return Cost(shared, each_macs(self.branches, maps, "all"))

    def check_threshold(self, threshold: float) -> None:
        """See that a τ is one.

        Raises:
            ConfigError: it is not within 0 and 1.
        """
        check_selection(self.settings.top_k, threshold, len(self.branches))

    def _choose(self, gate_logits: Tensor) -> Tensor:
        return chosen_branches(self.settings, gate_logits, self.threshold, training=self.training)

    def _combine(self, groups: Sequence[Group], count: int) -> Tensor:
        if not groups:  # no proposal
            width = self.output_shape.channels
            return self.classes.keys.new_zeros((count, width), dtype=torch.float32)
        return self.combiner(scatter_sum(groups, count))

    def _gater_loss(self, gate_logits: Tensor, labels: Tensor) -> Tensor:
        """Eq. 4 over the objects, divided by the number of all proposals.

        So an object weighs here what it weighs in the losses of classes and boxes. A mean over the
        objects alone, an eighth of the proposals, pulled the backbone up to ten times as hard as
        the loss of the classes.
        """
        objects = labels < self.classes.num_classes
        branches = self.classes.of(labels)
        each = F.cross_entropy(gate_logits.float(), branches, reduction="none")
        return torch.where(objects, each, 0.0).sum() / max(1, len(labels))


def _sizes(shape: ShapeSpec) -> tuple[int, int, int]:
    return shape.channels, shape.height, shape.width


def hydra_box_head_of(model: nn.Module) -> HydraBoxHead | None:
    """The Hydra in a detector's ROI heads; None for other box heads and models."""
    head = getattr(getattr(unwrap(model), "roi_heads", None), "box_head", None)
    return head if isinstance(head, HydraBoxHead) else None


def choose_box_partition(cfg: CfgNode, source: PartitionSource) -> Tensor:
    """(C,) the branch of every class, as ``cfg.MODEL.ROI_BOX_HEAD.HYDRA`` says.

    Raises:
        DivdrError: the partition cannot be made; the message says why.
    """
    return partition_as_set(BoxHydraSettings.of(cfg.MODEL.ROI_BOX_HEAD.HYDRA), source)


@torch.no_grad()
def box_embeddings(model: nn.Module, images: Iterable[dict]) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (R, D) of each image's true boxes by the model's box head, and their classes (R,).

    Features are those that scores are predicted from; of a Hydra, with all branches open.

    Args:
        model: a detector with a box head, in evaluation.
        images: dicts with "image" and "instances" in the same pixels; those without boxes are left
            out.

    Raises:
        ConfigError: the model has no single box head.
    """
    inner: Any = unwrap(model)
    heads = getattr(inner, "roi_heads", None)
    if not isinstance(heads, StandardROIHeads) or isinstance(heads.box_head, nn.ModuleList):
        raise ConfigError(
            "classes are embedded by a detector with one box head, which this model does not have"
        )
    head = heads.box_head
    for item in images:
        instances = item["instances"].to(inner.device)
        if len(instances) == 0:
            continue
        features = inner.backbone(inner.preprocess_image([item]).tensor)
        maps = [features[name] for name in heads.box_in_features]
        pooled = heads.box_pooler(maps, [instances.gt_boxes])
        features = head.embed(pooled) if isinstance(head, BoxMixture) else head(pooled)
        yield features.flatten(1), instances.gt_classes
