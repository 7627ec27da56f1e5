"""Whether weights are those of a model: routing space, shapes, what is missing or not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import CheckpointError

_SHOWN = 3


def check_routing_space(
    path: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """See that weights of a routed backbone are of the model's routing space.

    Raises:
        CheckpointError: they are not; the message has the first name that differs.
    """
    prefix = next(
        (
            k[: -len("initial.ops")]
            for k in (n.partition(".ops")[0] + ".ops" for n in own)
            if k.endswith("network.initial.ops")
        ),
        None,
    )
    if prefix is None or not any(k.startswith(prefix) for k in weights):
        return
    for name in sorted(k for k in {*weights, *own} if k.startswith(prefix)):
        if name not in weights or name not in own:
            where = "this model" if name not in weights else "the checkpoint"
            raise CheckpointError(
                f"checkpoint {path} belongs to another routing space: only {where} has {name!r}"
            )
        if tuple(weights[name].shape) != tuple(own[name].shape):
            raise CheckpointError(
                f"checkpoint {path} belongs to another routing space: {name!r} has shape "
                f"{tuple(weights[name].shape)} in it and {tuple(own[name].shape)} in this model"
            )


def other_shapes(path: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """A sentence for each weight that has another shape in the model."""
    found = []
    for name, value in weights.items():
        if name not in own or tuple(value.shape) == tuple(own[name].shape):
            continue
        message = (
            f"weight {name!r} has shape {tuple(value.shape)} in checkpoint {path} and "
            f"{tuple(own[name].shape)} in this model"
        )
        if len(value.shape) == own[name].dim() and value.shape[1:] == own[name].shape[1:]:
            message += (
                f": the checkpoint was trained for {value.shape[0]} classes, this model has "
                f"{own[name].shape[0]}"
            )
        found.append(message)
    return found


def check_finite(path: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """See that weights which the model takes are numbers, unless it starts with others itself.

    Raises:
        CheckpointError: one is not; the message has its name.
    """
    for name, value in weights.items():
        if name in own and not is_finite(value) and is_finite(own[name]):
            raise CheckpointError(
                f"weight {name!r} of checkpoint {path} is not finite: it holds values that are "
                "infinite or no numbers"
            )


def is_finite(value: Tensor) -> bool:
    """Whether no value is infinite or no number."""
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def without_shared(model: nn.Module, missing: Iterable[str]) -> list[str]:
    """Those of the missing names whose tensor has no other name that is not missing."""
    names = dict.fromkeys(missing)
    tensors = {
        name: id(tensor)
        for named in (model.named_parameters, model.named_buffers)
        for name, tensor in named(remove_duplicate=False)
    }
    filled = {tensor for name, tensor in tensors.items() if name not in names}
    return [name for name in names if tensors.get(name) not in filled]


def real_numbers(own: Mapping[str, Tensor]) -> list[str]:
    """Names of weights and statistics, not of whole numbers: counters, flags and tables, which a
    checkpoint may be older than.
    """
    return [n for n, v in own.items() if v.is_floating_point() or v.is_complex()]


def lacking(path: str, missing: Sequence[str], own: Sequence[str], held: Iterable[str]) -> str:
    """The sentence about a checkpoint that lacks weights of a model.

    Args:
        path: of the checkpoint.
        missing: names that it lacks.
        own: names of the model's weights.
        held: names in the checkpoint.
    """
    if len(missing) >= len(own):
        return (
            f"checkpoint {path} holds none of this model's {len(own)} weights: it has "
            f"{some(held)}; the model has {some(own)}"
        )
    return f"checkpoint {path} lacks {len(missing)} of this model's {len(own)} weights: " + some(
        missing
    )


def some(names: Iterable[str]) -> str:
    """The first names of many, in a few words."""
    names = list(names)
    shown = ", ".join(names[:_SHOWN])
    others = len(names) - _SHOWN
    return shown if others <= 0 else f"{shown} and {others} more"
