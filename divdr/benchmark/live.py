"""How many bytes of tensors live at once, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors that operations return, for as long as anything refers to it.

    Tensors from before are not counted, nor is what an operation takes and gives back inside.

    Attributes:
        now: bytes that live.
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_address(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor, given)
        return result

    def _note(self, tensor: Tensor, given: set[int]) -> None:
        key = _address(tensor)
        if key in self._known or key in given:
            return
        storage = tensor.untyped_storage()
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.now -= count


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes of new tensors that live at once while ``function`` runs."""
    with LiveBytes() as live, torch.no_grad():
        function()
    return live.peak
