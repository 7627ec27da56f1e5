"""Times of functions that take turns, so that a slow moment of the machine meets them all, and
which machine that is.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..routing.ops import PointwiseConv2d


@dataclass(frozen=True)
class Times:
    """Times of one function.

    Attributes:
        seconds: of every call that counts, in the order of the calls.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of all calls, in seconds."""
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


def describe_machine(device: torch.device | str) -> dict[str, object]:
    """Name of the processor, cores, threads, versions and device, ready for JSON."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def gemm_peak(
    device: torch.device | str, dtype: torch.dtype, *, size: int = 2048, rounds: int = 5
) -> float:
    """Multiply-adds a second of products of square matrices, the best of several calls.

    Of ``torch.mm`` and of a 1×1 convolution, which on a CPU are two libraries' (on many the second
    is twice as fast).

    Args:
        device: where.
        dtype: precision of both matrices. On CUDA the precision of fp32 products is the process's
            setting (``torch.backends.cuda.matmul``).
        size: rows and columns, a multiple of 16; 256 where a call would take seconds, as on a CPU
            without instructions for the precision.
        rounds: calls.
    """
    if size > 256:
        # By the slower library, which may be a hundred times slower.
        small = max(_gemm_seconds(device, dtype, 256, 1))
        if small * (size / 256) ** 3 > 2:
            size = 256
    return size**3 / min(_gemm_seconds(device, dtype, size, rounds))


def _gemm_seconds(
    device: torch.device | str, dtype: torch.dtype, size: int, rounds: int
) -> list[float]:
    """The fastest call of each library."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    maps = a.view(1, 16, -1, size).permute(0, 3, 1, 2)  # channels last
    layer = PointwiseConv2d(size, size, 1, bias=False, device=device, dtype=dtype)
    layer.requires_grad_(False)
    calls = {"mm": lambda: torch.mm(a, b, out=out), "convolution": lambda: layer(maps)}
    return [min(taken.seconds) for taken in in_turns(calls, rounds, device).values()]
