"""Figures of training steps that lie on a device: read together and seldom, so that no step waits.

A GPU works on what the host asked for some time ago. Every number that the host wants to know makes
it wait until the device has come there, and the device then waits for the host.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor

READ_EVERY = 20
"""Iterations between reads of figures and losses on a GPU; Detectron2 logs as often."""

_KNOWS_ITERATIONS = "cur_iter" in inspect.signature(EventStorage.put_scalar).parameters

Take = Callable[[list[float]], None]
"""Is given the numbers once the host has them."""


class LateFigures:
    """Numbers of a device that wait to be read, all in one copy.

    Attributes:
        read_by_trainer: whether somebody calls :meth:`read`; else every twentieth iteration does.
    """

    def __init__(self) -> None:
        self.read_by_trainer = False
        self._waiting: list[tuple[Tensor, Take]] = []

    def add(self, values: Tensor, take: Take, iteration: int) -> None:
        """Hand numbers to somebody later; at once if they are on the host.

        Args:
            values: (n,) any of them, detached here.
            take: is given them.
            iteration: of training.
        """
        values = values.detach()
        if values.device.type == "cpu" and not self._waiting:
            take(values.tolist())
            return
        self._waiting.append((values, take))
        if not self.read_by_trainer and (iteration + 1) % READ_EVERY == 0:
            self.read()

    def wait(self, values: Tensor, take: Take) -> None:
        """Hand numbers to somebody when :meth:`read` is called, wherever they are."""
        self._waiting.append((values.detach(), take))

    def read(self) -> None:
        """Give all that waits to those who wait for it, in their order; one wait for the device."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        # Of float32 and wider, as counts of more than 2²⁴ are no figures of a step.
        numbers = torch.cat([values.flatten().double() for values, _ in waiting]).tolist()
        for values, take in waiting:
            own, numbers = numbers[: values.numel()], numbers[values.numel() :]
            take(own)


_FIGURES: weakref.WeakKeyDictionary[EventStorage, LateFigures] = weakref.WeakKeyDictionary()


def late_figures(storage: EventStorage) -> LateFigures:
    """Those of a storage, which hold no storage alive."""
    return _FIGURES.setdefault(storage, LateFigures())


def put_scalar_at(storage: EventStorage, name: str, value: float, iteration: int) -> None:
    """Put a smoothed figure of an iteration that may have passed into a storage."""
    if _KNOWS_ITERATIONS:
        storage.put_scalar(name, value, cur_iter=iteration)
    else:  # Detectron2 0.6 notes all at the present iteration
        storage.put_scalar(name, value)


def put_later(storage: EventStorage, names: Sequence[str], values: Tensor) -> None:
    """Put figures (n,) of the present iteration into a storage, from a device not before a read."""
    iteration = storage.iter
    take = partial(_put, weakref.ref(storage), tuple(names), iteration)
    late_figures(storage).add(values, take, iteration)


def _put(
    storage: weakref.ref[EventStorage], names: Sequence[str], iteration: int, values: list[float]
) -> None:
    found = storage()
    if found is None:
        return
    for name, value in zip(names, values, strict=True):
        put_scalar_at(found, name, value, iteration)
