"""Weights of the published Dynamic Routing code, brought to the names used here.

Only torch is needed. A published checkpoint file holds the whole model under "model", with
``backbone.`` and ``sem_seg_head.`` before the names that :func:`convert_backbone` and
:func:`convert_decoder` take.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError

StateDict = Mapping[str, Tensor]

# (published, ours) beginnings of names inside a cell; a name followed by ``norm.`` is a
# normalisation behind its convolution.
_CELL_PARTS = (
    (r"cell_ops\._ops\.0\.op\.0\.", "ops.sep_conv_3x3.0."),
    (r"cell_ops\._ops\.0\.op\.1\.norm\.", "ops.sep_conv_3x3.1.1."),
    (r"cell_ops\._ops\.0\.op\.1\.", "ops.sep_conv_3x3.1.0."),
    (r"cell_ops\._ops\.0\.op\.2\.", "ops.sep_conv_3x3.2."),
    (r"cell_ops\._ops\.0\.op\.3\.norm\.", "ops.sep_conv_3x3.3.1."),
    (r"cell_ops\._ops\.0\.op\.3\.", "ops.sep_conv_3x3.3.0."),
    (r"res_(up|down)\.1\.norm\.", r"changes.\1.1."),
    (r"res_(up|down)\.1\.", r"changes.\1.0."),
    (r"gate_conv_beta\.0\.norm\.", "gate.reduce.1."),
    (r"gate_conv_beta\.0\.", "gate.reduce.0."),
    (r"gate_conv_beta\.2\.", "gate.predict."),
)
_STEM_PARTS = (
    (r"stem\.stem_1\.norm\.", "stem.first.1."),
    (r"stem\.stem_1\.", "stem.first.0."),
    (r"stem\.stem_2\.0\.", "stem.second.0."),
    (r"stem\.stem_2\.1\.norm\.", "stem.second.1.1."),
    (r"stem\.stem_2\.1\.", "stem.second.1.0."),
    (r"stem\.stem_3\.0\.", "stem.third.0."),
    (r"stem\.stem_3\.1\.norm\.", "stem.third.1.1."),
    (r"stem\.stem_3\.1\.", "stem.third.1.0."),
)
_DECODER_PARTS = (
    (r"layer_decoder_list\.(\d+)\.norm\.", r"merge.\1.1."),
    (r"layer_decoder_list\.(\d+)\.", r"merge.\1.0."),
    (r"predictor\.", "predictor."),
)
_CELL = re.compile(r"^(?:all_cell_list\.(\d+)\.(\d+)|init_layer)\.")


def convert_backbone(published: StateDict, target: StateDict) -> dict[str, Tensor]:
    """A published backbone's weights under the names of ``DynamicRoutingNetwork``.

    Args:
        published: state dict of the published backbone (``stem.…``, ``all_cell_list.…``).
        target: state dict of the network that is to take it.

    Raises:
        CheckpointError: names or shapes differ; the first key and shape are named.
    """
    converted = {}
    for name, value in published.items():
        new_name = _backbone_name(name)
        if ".gate.predict." in new_name:
            value = _gate_rows(value, published, name)
        converted[new_name] = value
    return _fitting(converted, target)


def convert_decoder(published: StateDict, target: StateDict) -> dict[str, Tensor]:
    """A published decoder head's weights under the names of ``DynamicRoutingDecoder``.

    Raises:
        CheckpointError: names or shapes differ; the first key and shape are named.
    """
    converted = {_rename(name, _DECODER_PARTS, name): v for name, v in published.items()}
    return _fitting(converted, target)


def convert_model(published: StateDict, target: StateDict) -> dict[str, Tensor]:
    """A published segmentation model under the names of a ``SemanticSegmentor`` made of
    ``DynamicRouting`` and ``DynamicRoutingDecoder``.

    Args:
        published: names begin with ``backbone.`` and ``sem_seg_head.``; others are left out.
        target: state dict of the model that is to take it.

    Raises:
        CheckpointError: names or shapes differ; the first key and shape are named.
    """
    result: dict[str, Tensor] = {}
    for prefix, new_prefix, convert in (
        ("backbone.", "backbone.network.", convert_backbone),
        ("sem_seg_head.", "sem_seg_head.", convert_decoder),
    ):
        part = _without(published, prefix)
        wanted = _without(target, new_prefix)
        result.update({new_prefix + k: v for k, v in convert(part, wanted).items()})
    return result


def _without(state: StateDict, prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}


def _backbone_name(name: str) -> str:
    cell = _CELL.match(name)
    if cell is None:
        return _rename(name, _STEM_PARTS, name)
    place = "initial." if cell[1] is None else f"layers.{cell[1]}.{cell[2]}."
    return place + _rename(name[cell.end() :], _CELL_PARTS, name)


def _rename(name: str, parts: tuple[tuple[str, str], ...], full_name: str) -> str:
    for pattern, replacement in parts:
        renamed, count = re.subn("^" + pattern, replacement, name)
        if count:
            return renamed
    raise CheckpointError(f"the weights hold {full_name!r}, which no part of this network has")


def _gate_rows(value: Tensor, published: StateDict, name: str) -> Tensor:
    """Published gates come as [keep, up, down]; here as [up, keep, down]."""
    cell = name[: name.index("gate_conv_beta")]
    if f"{cell}res_up.1.weight" not in published or len(value) < 2:
        return value
    return torch.cat([value[1:2], value[:1], value[2:]])


def _fitting(converted: dict[str, Tensor], target: StateDict) -> dict[str, Tensor]:
    for name, wanted in target.items():
        if name not in converted:
            if name.endswith("num_batches_tracked"):
                converted[name] = torch.zeros_like(wanted)
                continue
            raise CheckpointError(
                f"the weights lack {name!r} of shape {tuple(wanted.shape)}, which this model has"
            )
        shape = tuple(converted[name].shape)
        if shape != tuple(wanted.shape):
            raise CheckpointError(
                f"{name!r} has shape {shape} in the weights and {tuple(wanted.shape)} in this model"
            )
    for name, value in converted.items():
        if name not in target:
            raise CheckpointError(
                f"the weights hold {name!r} of shape {tuple(value.shape)}, "
                "which this model does not have"
            )
    return converted
