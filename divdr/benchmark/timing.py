"""Times of functions that take turns, so that a slow moment of the machine meets them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Times:
    """Times of one function.

    Attributes:
        seconds: of every call that counts, in the order of the calls.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    def summary(self) -> dict[str, float]:
        """Median, quartiles and extremes in seconds."""
        low, middle, high = np.percentile(self.seconds, [25, 50, 75])
        return {
            "median": float(middle),
            "quartile_1": float(low),
            "quartile_3": float(high),
            "min": min(self.seconds),
            "max": max(self.seconds),
        }


def in_turns(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str,
    *,
    warm_up: int = 1,
) -> dict[str, Times]:
    """Call every function once a round.

    Args:
        functions: by name.
        rounds: calls of each that count, at least 1.
        device: where they compute; on CUDA events on the stream are timed, elsewhere the clock.
        warm_up: rounds before, which do not count.
    """
    clock = _cuda_seconds if torch.device(device).type == "cuda" else _host_seconds
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + rounds):
        for name, function in functions.items():
            seconds = clock(function)
            if turn >= warm_up:
                times[name].append(seconds)
    return {name: Times(tuple(seconds)) for name, seconds in times.items()}


def _host_seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _cuda_seconds(function: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    function()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3  # milliseconds
