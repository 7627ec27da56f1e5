"""Checkpoints to hand on: without what only training needs, in half precision, as safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, DivdrError

_KEPT = ("model", "divdr", "routing", "experts")  # of a run's checkpoint
_OF_TRAINING = ("bank", "members", "cost", "steps")  # of the routing's state and its experts'
_REST = "divdr"  # key of a safetensors file's metadata
_TENSOR = "tensor"  # what stands for one there


def without_training(content: Mapping[str, Any], *, half: bool = False) -> dict[str, Any]:
    """A checkpoint for evaluation and prediction alone.

    Args:
        content: of a run's checkpoint, as :func:`~divdr.checkpoint.read_weights` reads it.
        half: weights in half precision, except those of normalisation and biases, which are few and
            decide about gates.

    Returns:
        Weights, description of the model, centres of its experts and its dial. Optimiser, schedule
        and activation bank are left out.

    Raises:
        CheckpointError: it holds no "model".
    """
    if not isinstance(content.get("model"), Mapping):
        raise CheckpointError("no checkpoint of a run: it holds no 'model'")
    kept = {name: content[name] for name in _KEPT if name in content}
    kept["model"] = {
        name: value.half() if half and value.dtype == torch.float32 and value.dim() > 1 else value
        for name, value in content["model"].items()
    }
    if isinstance(kept.get("routing"), Mapping):
        kept["routing"] = _less(kept["routing"])
    return kept


def _less(state: Mapping[str, Any]) -> dict[str, Any]:
    rest: dict[str, Any] = {k: v for k, v in state.items() if k not in _OF_TRAINING}
    if isinstance(rest.get("experts"), Mapping):
        rest["experts"] = {**rest["experts"], "bank": None, "members": None}
    return rest


def as_safetensors(content: Mapping[str, Any]) -> bytes:
    """A checkpoint as a safetensors file.

    The weights of "model" stand there under their own names, which other programs look for. All
    else is JSON in its metadata; tensors of that have names that begin with "divdr:".

    Raises:
        CheckpointError: it holds something that is neither tensor nor JSON.
        DivdrError: the package safetensors is missing.
    """
    save = _safetensors().torch.save
    tensors = dict(content["model"])
    rest = _flatten({k: v for k, v in content.items() if k != "model"}, "divdr:", tensors)
    # Each in memory of its own: weights that share theirs are refused.
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        return save(own, {_REST: json.dumps(rest, allow_nan=False)})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint does not fit into safetensors ({error})") from None


def read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """What :func:`as_safetensors` made; of a file of another program its weights as "model".

    Raises:
        CheckpointError: it is no safetensors file, or cannot be read.
        DivdrError: the package safetensors is missing.
    """
    library = _safetensors()
    try:
        with library.safe_open(os.fspath(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            rest = json.loads((file.metadata() or {}).get(_REST, "{}"))
    except (OSError, ValueError, library.SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read as safetensors ({error})"
        ) from None
    own = {name: tensors.pop(name) for name in list(tensors) if name.startswith("divdr:")}
    try:
        return {"model": tensors, **_joined(rest, own)}
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} lacks a tensor of its own ({error})") from None


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise DivdrError(
            "safetensors files need the package of that name: pip install safetensors"
        ) from None
    return safetensors


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of a value, whose tensors go to ``tensors`` under names that begin with ``name``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        pairs = [
            [key, _flatten(inner, f"{name}.{key}", tensors)] for key, inner in value.items()
        ]  # as pairs: keys of a description can be numbers
        return {"pairs": pairs}
    if isinstance(value, (list, tuple)):
        return [_flatten(inner, f"{name}.{number}", tensors) for number, inner in enumerate(value)]
    return value


def _joined(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_joined(inner, tensors) for inner in value]
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _joined(inner, tensors) for key, inner in value.get("pairs", [])}
    return value
