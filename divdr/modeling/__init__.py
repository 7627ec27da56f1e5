"""Detectron2 glue: registered backbones, necks and heads, and routing losses for any model."""

from ..image_keys import image_keys
from .attach import (
    attach_routing,
    attach_routing_from_config,
    attached_routing,
    periods_from_config,
    unwrap,
    with_routing,
)
from .backbone import DynamicRouting, Executor, find_backbone, has_routed_backbone
from .classifiers import CLASSIFIER_REGISTRY, ImageClassifier
from .cost_dial import CostDial, DialSetting
from .decoder import DynamicRoutingDecoder
from .expert_balance import (
    ExpertSupervision,
    attach_expert_balance,
    attach_expert_balance_from_config,
    attached_experts,
)
from .expert_cost import ExpertCosts
from .expert_record import ExpertRecord, ExpertRouting
from .late_figures import READ_EVERY, late_figures, put_scalar_at
from .multi_task import MultiTask
from .narrow_backbones import MobileNet, build_narrow_fpn_backbone, resnet18
from .neck import ProjectionNeck, StaticBackbone, static_model
from .neck_cost import backbone_macs, neck_macs
from .roi_heads import CoEBoxHead, HydraBoxHead, MixtureROIHeads, SingleGateBoxHead
from .routed_resnet import RoutedBottleneck, RoutedResNet
from .segmentation_loss import SegmentationLoss
from .segmentors import SingleGateSegmentor
from .single_gate_head import freeze_around_mixtures
from .supervision import ClusteringLossSettings, RoutingSupervision, cluster_and_log

__all__ = [
    "CLASSIFIER_REGISTRY",
    "READ_EVERY",
    "ClusteringLossSettings",
    "CoEBoxHead",
    "CostDial",
    "DialSetting",
    "DynamicRouting",
    "DynamicRoutingDecoder",
    "Executor",
    "ExpertCosts",
    "ExpertRecord",
    "ExpertRouting",
    "ExpertSupervision",
    "HydraBoxHead",
    "ImageClassifier",
    "MixtureROIHeads",
    "MobileNet",
    "MultiTask",
    "ProjectionNeck",
    "RoutedBottleneck",
    "RoutedResNet",
    "RoutingSupervision",
    "SegmentationLoss",
    "SingleGateBoxHead",
    "SingleGateSegmentor",
    "StaticBackbone",
    "attach_expert_balance",
    "attach_expert_balance_from_config",
    "attach_routing",
    "attach_routing_from_config",
    "attached_experts",
    "attached_routing",
    "backbone_macs",
    "build_narrow_fpn_backbone",
    "cluster_and_log",
    "find_backbone",
    "freeze_around_mixtures",
    "has_routed_backbone",
    "image_keys",
    "late_figures",
    "neck_macs",
    "periods_from_config",
    "put_scalar_at",
    "resnet18",
    "static_model",
    "unwrap",
    "with_routing",
]
