"""Weights of the published Dynamic Routing code, brought to the names used here.

Only torch is needed. A published checkpoint file holds the whole model under "model", with
``backbone.`` and ``sem_seg_head.`` before the names that :func:`convert_backbone` and
:func:`convert_decoder` take. It was trained on images that come in otherwise than divdr's configs
have them (:data:`PUBLISHED_PIXELS`); :func:`convert_model` rewrites the first convolution for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from .pixels import PUBLISHED_PIXELS, Pixels, adapt_first_convolution

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


def convert_backbone(
    published: StateDict,
    target: StateDict,
    pixels: Pixels | None = None,
    trained_on: Pixels = PUBLISHED_PIXELS,
) -> dict[str, Tensor]:
    """A published backbone's weights under the names of ``DynamicRoutingNetwork``.

    Args:
        published: state dict of the published backbone (``stem.…``, ``all_cell_list.…``).
        target: state dict of the network that is to take it.
        pixels: how that network gets its images; None: as the published one did.
        trained_on: how the published one did.

    Raises:
        CheckpointError: names or shapes differ; the first key and shape are named. Or the images'
            channels differ.
    """
    converted = {}
    for name, value in published.items():
        new_name = _backbone_name(name)
        if ".gate.predict." in new_name:
            value = _gate_rows(value, published, name)
        converted[new_name] = value
    fitting = _fitting(converted, target)
    if pixels is None:
        return fitting
    return adapt_first_convolution(fitting, "stem.first.", trained_on, pixels)


def convert_decoder(published: StateDict, target: StateDict) -> dict[str, Tensor]:
    """A published decoder head's weights under the names of ``DynamicRoutingDecoder``.

    Raises:
        CheckpointError: names or shapes differ; the first key and shape are named.
    """
    converted = {_rename(name, _DECODER_PARTS, name): v for name, v in published.items()}
    return _fitting(converted, target)


def convert_model(
    published: StateDict,
    target: StateDict,
    pixels: Pixels | None = None,
    trained_on: Pixels = PUBLISHED_PIXELS,
) -> dict[str, Tensor]:
    """A published model's weights under the names of a model with a ``DynamicRouting`` backbone.

    Args:
        published: names begin with ``backbone.`` and ``sem_seg_head.``, others are left out; or a
            backbone alone, with or without ``backbone.`` before its names, whose model keeps the
            head that it starts with.
        target: state dict of the model that is to take it: with a ``DynamicRoutingDecoder``
            unless the backbone is alone.
        pixels: how that model gets its images; None: as the published one did.
        trained_on: how the published one did.

    Raises:
        CheckpointError: names or shapes differ; the first key and shape are named. Or the images'
            channels differ.
    """
    published = {name.removeprefix("module."): value for name, value in published.items()}
    if any(name.startswith("stem.") for name in published):
        published = {f"backbone.{name}": value for name, value in published.items()}
    place = _network_place(target)
    backbone = convert_backbone(
        _without(published, "backbone."), _without(target, place), pixels, trained_on
    )
    result = {place + name: value for name, value in backbone.items()}
    head = "sem_seg_head."
    if any(name.startswith(head) for name in published):
        decoder = convert_decoder(_without(published, head), _without(target, head))
        result.update({head + name: value for name, value in decoder.items()})
    return result


def _network_place(target: StateDict) -> str:
    """What stands before the names of the model's ``DynamicRoutingNetwork``."""
    first = "network.stem.first.0.weight"
    place = next((name for name in target if name.endswith(first)), None)
    if place is None:
        raise CheckpointError("the model to convert to has no Dynamic Routing backbone")
    return place.removesuffix("stem.first.0.weight")


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
