"""Weights by the names that a model has for them, wherever a file keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
