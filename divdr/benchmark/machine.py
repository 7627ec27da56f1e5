"""The machine that a benchmark runs on, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from .timing import in_turns


def describe(device: torch.device | str) -> dict[str, object]:
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
    """Multiply-adds a second of ``torch.mm`` on square matrices, the best of several calls.

    Args:
        device: where.
        dtype: precision of both matrices. On CUDA the precision of fp32 products is the process's
            setting (``torch.backends.cuda.matmul``).
        size: rows and columns.
        rounds: calls.
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = in_turns({"mm": lambda: torch.mm(a, b, out=out)}, rounds, device)
    return size**3 / min(times["mm"].seconds)
