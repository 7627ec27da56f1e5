"""A single-gated mixture made of a finished model, or put together of experts trained one by one.

"Revisiting single-gated Mixtures of Experts" (Royer et al.): the finished model stays, bit by bit;
a gate and experts, copies of its last layers, learn beside it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..checkpoint import write_atomically, write_text_atomically
from ..errors import CheckpointError, ConfigError
from ..modeling import ImageClassifier, SingleGateBoxHead, SingleGateSegmentor
from ..moe import SingleGate, take_expert
from ..settings import HeadMixtureSettings
from .about import KEY
from .config_file import merge_pairs
from .execution_modes import load_trained, load_with_about
from .mixture_curve import THRESHOLDS, MixturePoint, finished_point, mixture_curve
from .settings_check import check_config
from .setup import make_output_folder, on_available_device
from .trainer import Trainer

START = "start.pth"
"""File of a mixture's start weights in its folder."""
DETECTORS = ("GeneralizedRCNN", "PanopticFPN")
SLOWER = 5
"""By this is the finished training's learning rate divided for experts of heads, which start from
learned weights."""


def mixture_config(
    cfg: CfgNode, experts: int, output: str, iterations: int = 0, overrides: Sequence[str] = ()
) -> CfgNode:
    """The configuration of a mixture made of a finished model.

    What acts on the backbone in training (routing losses, clustering, drop path, calibration) and
    precise BatchNorm are off: the finished model stays as it is.

    Args:
        cfg: of the finished model, with ``MODEL.WEIGHTS``; it is not changed.
        experts: K.
        output: folder of the mixture's run.
        iterations: length of the mixture's training; 0 is a third of the finished model's.
        overrides: KEY VALUE pairs, which come last.

    Raises:
        ConfigError: of this model no mixture can be made; or see ``load_config``.
    """
    made = cfg.clone()
    made.defrost()
    _turn_off_routing(made)
    made.TEST.PRECISE_BN.ENABLED = False
    made.TEST.EVAL_PERIOD = 0
    _shorten(made, iterations or max(2, cfg.SOLVER.MAX_ITER // 3))
    kind = cfg.MODEL.META_ARCHITECTURE
    if kind == "ImageClassifier":
        _classifier(made, cfg, experts)
    elif kind in DETECTORS:
        _detector(made, cfg, experts)
    elif kind == "SemanticSegmentor":
        _segmentor(made, cfg, experts)
    else:
        raise ConfigError(
            f"no mixture can be made of MODEL.META_ARCHITECTURE {kind}: it takes an "
            f"ImageClassifier, a SemanticSegmentor or {' or '.join(DETECTORS)}"
        )
    made.OUTPUT_DIR = output
    merge_pairs(made, overrides)
    check_config(made)
    return made


def _turn_off_routing(cfg: CfgNode) -> None:
    routing = cfg.MODEL.ROUTING
    routing.BUDGET.WEIGHT = routing.BUDGET.TARGET_SHARE = routing.BUDGET.TARGET_GFLOPS = 0.0
    routing.CLUSTERING.ENABLED = False
    routing.CLUSTERING.LABELS = ""
    routing.DROP_PATH = 0.0


def _shorten(cfg: CfgNode, iterations: int) -> None:
    solver = cfg.SOLVER
    solver.MAX_ITER, solver.STOP_ITER = iterations, 0
    solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, iterations // 20)
    solver.CHECKPOINT_PERIOD = min(solver.CHECKPOINT_PERIOD, iterations)
    # A cosine for each stage.
    solver.LR_SCHEDULER_NAME, solver.RESTARTS, solver.STEPS = "WarmupCosineRestartsLR", [], ()


def _classifier(made: CfgNode, cfg: CfgNode, experts: int) -> None:
    name = cfg.MODEL.CLASSIFIER.NAME
    if name != "build_single_classifier":
        raise ConfigError(
            f"a mixture is made of a build_single_classifier, not of MODEL.CLASSIFIER.NAME {name}"
        )
    classifier = made.MODEL.CLASSIFIER
    classifier.NAME = "build_single_gate_classifier"
    gate = classifier.SINGLE_GATE
    gate.EXPERTS, gate.BASE = experts, cfg.MODEL.WEIGHTS
    gate.EXIT, gate.THRESHOLD = "confidence", HeadMixtureSettings.threshold  # as heads have it
    made.MODEL.WEIGHTS = ""


def _detector(made: CfgNode, cfg: CfgNode, experts: int) -> None:
    heads, box = cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.NAME
    if heads != "StandardROIHeads":
        raise ConfigError(
            f"a mixture is made of a detector with StandardROIHeads, which have one box head, not "
            f"of MODEL.ROI_HEADS.NAME {heads}"
        )
    made.MODEL.ROI_HEADS.NAME = "MixtureROIHeads"
    node = made.MODEL.ROI_BOX_HEAD
    node.NAME = SingleGateBoxHead.__name__
    node.SINGLE_GATE.BASE_HEAD, node.SINGLE_GATE.EXPERTS = box, experts
    _gently(made)


def _segmentor(made: CfgNode, cfg: CfgNode, experts: int) -> None:
    name = cfg.MODEL.SEM_SEG_HEAD.NAME
    if name == SingleGateSegmentor.__name__:
        raise ConfigError(f"MODEL.SEM_SEG_HEAD.NAME {name} is a mixture already")
    node = made.MODEL.SEM_SEG_HEAD
    node.NAME = SingleGateSegmentor.__name__
    node.SINGLE_GATE.BASE_HEAD, node.SINGLE_GATE.EXPERTS = name, experts
    _gently(made)


def _gently(cfg: CfgNode) -> None:
    cfg.SOLVER.BASE_LR /= SLOWER


def make_start(
    cfg: CfgNode, experts: int, output: str, *, iterations: int = 0, overrides: Sequence[str] = ()
) -> tuple[CfgNode, nn.Module]:
    """Write the folder of a mixture's run: ``config.yaml`` and, of a head, its start weights.

    Training then needs no more than ``tools/train_net.py --config-file FOLDER/config.yaml``, on as
    many GPUs as there are.

    Args:
        cfg: see :func:`mixture_config`, as for the others.
        experts: K.
        output: the folder.
        iterations: of the mixture's training.
        overrides: KEY VALUE pairs of its configuration.

    Returns:
        The mixture's configuration, and the finished model.

    Raises:
        ConfigError: of this model no mixture can be made, the head cannot be shared as is set, or
            the folder cannot be written.
        CheckpointError: the weights are of another model.
    """
    made = mixture_config(cfg, experts, output, iterations, overrides)
    make_output_folder(output, "--output")
    cfg, made = on_available_device(cfg), on_available_device(made)
    finished, about = load_with_about(cfg, cfg.DATASETS.TEST)
    if cfg.MODEL.META_ARCHITECTURE != "ImageClassifier":
        made.MODEL.WEIGHTS = os.path.join(output, START)
        state: dict[str, Any] = {"model": start_model(finished, made).state_dict()}
        if about is not None:
            state[KEY] = about.as_dict()
        write_atomically(Path(made.MODEL.WEIGHTS), state)
    write_text_atomically(Path(output) / "config.yaml", made.dump())
    return made, finished


def train_and_evaluate(
    cfg: CfgNode,
    made: CfgNode,
    finished: nn.Module,
    thresholds: Mapping[str, Sequence[float]] = THRESHOLDS,
) -> tuple[MixturePoint, list[MixturePoint]]:
    """Train a mixture, and look at it and at the finished model on the test set.

    Args:
        cfg: of the finished model.
        made: of the mixture.
        finished: the model.
        thresholds: see :func:`mixture_curve`.

    Raises:
        DivdrError: data or settings cannot be used; the message says which and why.
    """
    trainer = Trainer(made)
    trainer.resume_or_load(resume=False)
    point = finished_point(cfg, finished)
    trainer.train()
    return point, mixture_curve(made, trainer.model, thresholds)


def start_model(finished: nn.Module, cfg: CfgNode) -> nn.Module:
    """The mixture of a head with the finished model's weights, in the base and in every expert.

    Raises:
        ConfigError: the head cannot be shared as is set.
        CheckpointError: the mixture holds no model such as the finished one.
    """
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.WEIGHTS = ""
    model = Trainer.build_model(plain)
    heads = [m for m in model.modules() if isinstance(m, (SingleGateBoxHead, SingleGateSegmentor))]
    (head,) = heads
    place = next(name for name, module in model.named_modules() if module is head) + "."
    state = {
        f"{place}base.{name.removeprefix(place)}" if name.startswith(place) else name: value
        for name, value in finished.state_dict().items()
    }
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"the mixture is of another model: {error}") from None
    own = tuple(f"{place}{part}." for part in ("gate", "experts"))
    missing = [name for name in found.missing_keys if not name.startswith(own)]
    if missing or found.unexpected_keys:
        name = (missing or found.unexpected_keys)[0]
        raise CheckpointError(f"the mixture is of another model: it differs in {name}")
    with torch.no_grad():
        if isinstance(head, SingleGateBoxHead):
            head.copy_base(model.get_submodule("roi_heads.box_predictor"))
        else:
            head.copy_base(model.get_submodule("backbone"))
    return model


def assemble_experts(cfg: CfgNode, files: Sequence[str]) -> str:
    """Put experts into the mixture whose base and gate they were trained behind.

    Args:
        cfg: of the mixture; ``MODEL.WEIGHTS`` is the checkpoint of base and gate.
        files: ``expert_K.pth`` of every expert, in any order.

    Returns:
        Path of the whole mixture's checkpoint, ``model_final.pth`` in ``OUTPUT_DIR``.

    Raises:
        ConfigError: the model is no single-gated mixture.
        CheckpointError: a file is of another base or architecture, or an expert is missing or
            there twice.
    """
    model = load_trained(cfg)
    if not isinstance(model, ImageClassifier) or not isinstance(model.system, SingleGate):
        raise ConfigError("MODEL.CLASSIFIER.NAME is not build_single_gate_classifier")
    system = model.system
    found = [take_expert(system, file) for file in files]
    for number in range(len(system.experts)):
        if found.count(number) != 1:
            times = "missing" if number not in found else "there twice"
            raise CheckpointError(f"expert {number} of {len(system.experts)} is {times}")
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    whole = cfg.clone()
    whole.defrost()
    whole.MODEL.CLASSIFIER.SINGLE_GATE.EXPERT = -1
    path = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    write_atomically(path, {"model": model.state_dict()})
    write_text_atomically(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), whole.dump())
    return path
