"""Weights found in a file, under a model's names, and whether they are those of that model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .files import read_weights

_SHOWN = 3


def check_routing_space(
    path: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """See that weights of a routed backbone are of the model's routing space, its stem as wide.

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
            if name == f"{prefix}stem.first.0.weight":  # by then all cells fit
                _check_stem(path, weights[name], own[name])
            raise CheckpointError(
                f"checkpoint {path} belongs to another routing space: {name!r} has shape "
                f"{tuple(weights[name].shape)} in it and {tuple(own[name].shape)} in this model"
            )


def _check_stem(path: str, theirs: Tensor, own: Tensor) -> None:
    """See that stems begin with as many channels: weights are (inner, image channels, 3, 3)."""
    if len(theirs) != len(own):
        raise CheckpointError(
            f"checkpoint {path} has {len(theirs)} channels inside its stem and this model "
            f"{len(own)}: set MODEL.ROUTING.STEM_CHANNELS to {len(theirs)} (small configs had 64 "
            "before they set it)"
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


WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "model_state", "weights"),
    *("ema", "model_ema", "state_dict_ema", "module", "net"),
)
"""Keys under which training programs keep a model's weights; the first that has some counts."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, ``torch.compile`` and Lightning put before names."""

_DEPTH = 4
_NUMBERS = (
    *("bool", "uint8", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)


class Found(NamedTuple):
    """Weights in a file.

    Attributes:
        weights: tensors by name.
        keys: the keys that lead to them, from outside.
    """

    weights: dict[str, Tensor]
    keys: tuple[str, ...]


class Renamed(NamedTuple):
    """Weights under a model's names.

    Attributes:
        weights: tensors; those that the model has not are there too.
        taken_off: prefixes that the names had beyond the model's.
    """

    weights: dict[str, Tensor]
    taken_off: tuple[str, ...]


def find_weights(content: Any) -> Found | None:
    """A state dict inside what a file holds; None: there is none.

    Arrays of numbers become tensors; what is neither is left out.
    """
    found = _find(content, _DEPTH)
    if found is None:
        return None
    state, keys = found
    arrays = {n: v for n, v in state.items() if isinstance(n, str) and _is_array(v)}
    return Found({name: _tensor(value) for name, value in arrays.items()}, keys)


def rename(weights: Mapping[str, Tensor], own: Iterable[str]) -> Renamed:
    """Take usual prefixes off names, or put them before, where a model's names are met by that.

    Args:
        weights: tensors by name.
        own: names of the model's weights.
    """
    own = set(own)
    by_bare = {_bare(name): name for name in own}
    if len(by_bare) < len(own):  # two names of the model differ by such a prefix alone
        by_bare = {}
    result = {name: value for name, value in weights.items() if name in own}
    taken: dict[str, None] = {}
    rest = {}
    for name, value in weights.items():
        if name in own:
            continue
        target = by_bare.get(_bare(name))
        if target is None or target in result:
            rest[name] = value
            continue
        result[target] = value
        taken[_prefix(name)] = None
    for name, value in rest.items():
        bare = _bare(name) if taken else name
        result[name if bare in result else bare] = value
    return Renamed(result, tuple(taken))


def _find(content: Any, depth: int) -> tuple[Mapping, tuple[str, ...]] | None:
    if not isinstance(content, Mapping) or depth == 0:
        return None
    for key in WRAPPERS:
        inner = _find(content.get(key), depth - 1)
        if inner is not None:
            return inner[0], (key, *inner[1])
    if any(isinstance(n, str) and _is_array(v) for n, v in content.items()):
        return content, ()
    return None


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.name in _NUMBERS
    return isinstance(value, Tensor)


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))


def _bare(name: str) -> str:
    while True:
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is None:
            return name.replace("._orig_mod.", ".")
        name = name[len(prefix) :]


def _prefix(name: str) -> str:
    """What :func:`_bare` takes off; nothing where the model's own name has more."""
    start = name
    while (prefix := next((p for p in PREFIXES if start.startswith(p)), None)) is not None:
        start = start[len(prefix) :]
    return name[: len(name) - len(start)] or ("_orig_mod." if "._orig_mod." in name else "")


def load_exactly(parts: Iterable[nn.Module], weights: Mapping[str, Tensor], what: str) -> None:
    """Load parts of a network from its weights, by the names that they have in it.

    Args:
        parts: together have every weight, each under another name.
        weights: tensors by name.
        what: begins the error's sentence.

    Raises:
        CheckpointError: a weight is missing there or here, or of another shape.
    """
    parts = list(parts)
    own = {name: value for part in parts for name, value in part.state_dict().items()}
    for name in sorted({*weights, *own}):
        theirs, ours = (
            tuple(held[name].shape) if name in held else "missing" for held in (weights, own)
        )
        if theirs != ours:
            raise CheckpointError(f"{what}: {name} is {theirs} there and {ours} here")
    for part in parts:
        part.load_state_dict({name: weights[name] for name in part.state_dict()})


def read_part(path: str, prefix: str, what: str) -> dict[str, Tensor]:
    """Weights of a part of a model from its checkpoint, by the names that they have in the part.

    Args:
        path: of the checkpoint.
        prefix: that the part's names have in the model.
        what: the part, for the error's sentence.

    Raises:
        CheckpointError: the file is missing or damaged, or holds no such part.
    """
    content = find_weights(read_weights(path))
    weights = {} if content is None else content.weights
    found = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    if not found:
        raise CheckpointError(f"checkpoint {path} holds no {what}")
    return found
