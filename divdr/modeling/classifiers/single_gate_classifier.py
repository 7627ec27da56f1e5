"""Single-gated mixtures from ``cfg.MODEL.CLASSIFIER.SINGLE_GATE``."""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor

from ...checkpoint import read_part
from ...errors import ConfigError
from ...moe import (
    SingleGate,
    is_named,
    split_at,
    stages_of,
    take_common_weights,
    with_embedding,
)
from ...settings import ClassifierSettings
from .builders import CLASSIFIER_REGISTRY, image_channels, network


@CLASSIFIER_REGISTRY.register()
def build_single_gate_classifier(cfg: CfgNode) -> SingleGate:
    """A base by the keys of ``MODEL.CLASSIFIER``, a gate, and ``EXPERTS`` experts behind its node.

    Raises:
        ConfigError: the network cannot be split there, or settings contradict each other.
    """
    classifier = ClassifierSettings.of(cfg.MODEL.CLASSIFIER)
    settings = classifier.single_gate
    node = settings.split_at or default_node(classifier)
    base = network(cfg)
    shared, rest = split_at(base, node)
    embedding, width = with_embedding(rest)
    # What the whole network has and never runs, as auxiliary classifiers, may be in its checkpoint.
    unused = set(base.state_dict()).difference(shared.state_dict(), embedding.state_dict())
    experts = []
    for _ in range(settings.experts):
        expert = split_at(network(_experts_config(cfg)), node)[1]
        take_common_weights(expert, rest)
        experts.append(expert)
    return SingleGate(
        shared,
        embedding,
        experts,
        width,
        classifier.num_classes,
        settings,
        in_channels=image_channels(cfg),
        stages=stages_of(settings, cfg.SOLVER.MAX_ITER),
        seed=max(0, cfg.SEED),
        base_weights=partial(single_weights, settings.base, unused) if settings.base else None,
    )


def default_node(classifier: ClassifierSettings) -> str:
    """Where experts begin if nobody says it: after the second stage, as in the paper.

    Raises:
        ConfigError: for this architecture nobody knows.
    """
    name = classifier.architecture
    if not is_named(name):
        return "stem"
    model = name.partition(":")[2]
    if "resnet" in model or "resnext" in model:
        return "layer2"
    if model == "mobilenet_v3_small":
        return "features.7"
    raise ConfigError(
        f"MODEL.CLASSIFIER.SINGLE_GATE.SPLIT_AT must name the module of {name} after which experts "
        "begin"
    )


def single_weights(path: str, unused: Container[str] = ()) -> Mapping[str, Tensor]:
    """Weights of the network in a checkpoint of ``build_single_classifier``, by its own names.

    Args:
        path: of the checkpoint.
        unused: names that are left out.

    Raises:
        CheckpointError: the file is missing or damaged, or is of another system.
    """
    found = read_part(path, "system.members.0.", "network of build_single_classifier")
    return {name: value for name, value in found.items() if name not in unused}


def _experts_config(cfg: CfgNode) -> CfgNode:
    """The configuration with the keys of the experts' network."""
    settings = ClassifierSettings.of(cfg.MODEL.CLASSIFIER).single_gate
    other: Any = cfg.clone()
    other.defrost()
    if settings.expert_architecture:
        other.MODEL.CLASSIFIER.ARCHITECTURE = settings.expert_architecture
    if settings.expert_depth:
        other.MODEL.CLASSIFIER.DEPTH = settings.expert_depth
    return other
