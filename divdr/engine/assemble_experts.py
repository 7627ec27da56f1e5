"""Experts of a single-gated mixture that were trained one by one, put together."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import CfgNode

from ..checkpoint import write_atomically, write_text_atomically
from ..errors import CheckpointError, ConfigError
from ..modeling import ImageClassifier
from ..moe import SingleGate, take_expert
from .execution_modes import load_trained


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
